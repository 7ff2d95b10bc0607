"""Tables for people, as text."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from codemill.recipe.schema import Recipe
from codemill.recipe.stages import StageRun


def _render(*parts: Any) -> str:
    """Rich renderables as plain text, as wide as the terminal."""
    out = io.StringIO()
    console = Console(file=out, width=max(80, shutil.get_terminal_size((120, 40)).columns), color_system=None)
    for part in parts:
        console.print(part)
    return out.getvalue().rstrip()


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> Table:
    table = Table(title=title or None, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # names from outside are text, never markup
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def corpus_table(facts: Mapping[str, Any], out: Path) -> str:
    rows = [
        (r["name"], r["revision"][:12], r["license"] or "unknown", r["files"], r["kept"], f"{r['bytes']:,}")
        for r in facts["repositories"]
    ]
    counts: Counter[str] = Counter()
    for repository in facts["repositories"]:
        counts.update(repository["dropped"])
        counts.update({f"{reason} (quarantined)": n for reason, n in repository["quarantined"].items()})
    reasons = counts.most_common()
    return _render(
        _table(("repository", "revision", "license", "files", "kept", "bytes"), rows),
        _table(("not kept because", "files"), reasons) if reasons else "every file was kept",
        f"{facts['documents']} documents -> {out}",
    )


def tasks_table(facts: Mapping[str, Any], out: Path) -> str:
    rows = [(key, value) for key, value in facts.items() if isinstance(value, int | float | str)]
    return _render(_table(("fact", "value"), rows), f"-> {out}")


def suites_table(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, s in facts["suites"].items():
        for metric, e in s["scores"].items():
            interval = f"{_share(e['low'])} to {_share(e['high'])}"
            rows.append((name, metric, _share(e["value"]), interval, s["tasks"], s["samples_per_task"]))
    parts: list[Any] = [_table(("suite", "metric", "value", "95 % interval", "tasks", "samples"), rows)]
    for name, s in facts["suites"].items():
        parts.append(f"{name}: " + ", ".join(f"{count} {status}" for status, count in s["statuses"].items()))
        if s["statuses"].get("harness_error"):
            low, high = s["bounds"]["all_unscorable_wrong"], s["bounds"]["all_unscorable_left_out"]
            parts.append(f"  unscorable answers counted wrong: {_share(low)}, left out: {_share(high)}")
    if facts.get("bits_per_byte"):
        parts.append(f"bits per byte: {facts['bits_per_byte']['bits_per_byte']:.4f}")
    return _render(*parts)


def plan_table(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> str:
    numbers = {
        "parameters": lambda n: f"{n / 1e6:,.0f} M parameters",
        "trained_parameters": lambda n: f"{n / 1e6:,.1f} M trained",
        "tokens_at_most": lambda n: f"at most {n:,} tokens",
        "flops": lambda n: f"{n / 1e12:,.1f} TFLOP",
        "memory_bytes": lambda n: f"about {n / 2**30:.1f} GiB",
    }
    table = [
        (r["stage"], r["use"], ", ".join(show(r[key]) for key, show in numbers.items() if r.get(key))) for r in rows
    ]
    resolved = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110)
    return _render(Text(resolved), _table(("stage", "kind", "cost"), table))


def run_table(recipe: Recipe, done: Mapping[str, StageRun], out: Path) -> str:
    rows = [(r.name, r.use, "found" if r.cached else f"{r.seconds:.0f} s", r.folder) for r in done.values()]
    report = out / recipe.name / "report.html"
    return _render(
        _table(("stage", "kind", "time", "folder"), rows),
        f"report: {report}" if report.is_file() else f"-> {out / recipe.name}",
    )


def sandbox_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [(r["axis"], r["enforced_by"], "yes" if r["witnessed"] else "NO", r["detail"]) for r in rows]
    return _render(_table(("axis", "enforced by", "witnessed", "detail"), cells))
