"""The page: everything that the template shows, put into words and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from codemill.core.contracts import Status
from codemill.core.text import visible
from codemill.report import corpus_view, lineage, plots, samples, text
from codemill.report.data import Run, Side, Suite
from codemill.report.finding import Finding, unscorable_answers

TEMPLATES = Path(__file__).parent / "templates"
WIDE, NARROW = 640.0, 350.0  # CSS pixels of the loss curve on a desk and on a phone
INTERVALS = 470.0  # of an interval plot; on a phone it shrinks a little
LISTED_TASKS = 2000  # rows in the list of all tasks

# A badge never relies on colour alone: each status has its sign and its word.
SIGNS: Mapping[str, str] = {
    Status.PASSED: "✓",
    Status.FAILED: "✗",
    Status.TIMEOUT: "◷",
    Status.MEMORY: "▣",
    Status.CRASHED: "⚡",
    Status.REFUSED: "⊘",
    Status.HARNESS_ERROR: "?",
}
OUTCOME_SIGNS = {"better": "▲", "worse": "▼", "unclear": "≈", "same": "＝", "invalid": "!"}
CHANGE_WORDS = {
    "gained": ("Solved only after", "Solved more often after"),
    "lost": ("Solved only before", "Solved less often after"),
    "both": ("Solved by both", "Solved as often by both"),
    "neither": ("Solved by neither", "Solved by neither"),
}


def render(run: Run, findings: Sequence[Finding], bits: str) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=text.percent,
        points=text.points,
        size=text.size,
        duration=text.duration,
        clip=text.clip,
        code=code,
        tight=text.tight,
        moment=text.moment,
    )
    environment.globals["counted"] = text.counted
    page = environment.get_template("page.html").render(
        run=run,
        name=text.clip(run.inputs.name, 120),
        title=text.clip(run.inputs.title, 200),
        notes=[text.clip(note, 1000) for note in (*lineage.breaks(run), *run.inputs.notes)],
        css=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        finding=findings[0],
        others=findings[1:],
        bits_sentence=bits,
        outcome_signs=OUTCOME_SIGNS,
        signs=SIGNS,
        statuses=list(Status),
        result=_result(run, findings),
        data=_data(run),
        training=_training(run),
        suites=[_samples(suite, index) for index, suite in enumerate(run.suites)],
        verdicts=_verdicts(run),
        lineage=_lineage(run),
    )
    return page.rstrip() + "\n"


def _shown(value: Any) -> Any:
    """What every `{{ … }}` goes through before it is escaped: nobody has to remember it."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def code(value: str) -> str:
    """Code without tabs of unknown width."""
    return value.replace("\r\n", "\n").expandtabs(4)


def _result(run: Run, findings: Sequence[Finding]) -> dict[str, Any]:
    rows = [_suite_row(suite, finding) for suite, finding in zip(run.suites, findings, strict=True)]
    rates = [(row["name"], row["marks"]) for row in rows if row["marks"]]
    differences = [(row["name"], [row["mark"]]) for row in rows if row["mark"]]
    axis = plots.difference_axis([marks[0] for _, marks in differences], "percentage points")
    share = plots.Axis(0, 100, "pass@1 in %")
    return {
        "rows": rows,
        "rates": plots.interval_plot(
            rates, share, width=INTERVALS, title="pass@1 before and after, with 95 % intervals"
        )
        if rates
        else "",
        "differences": plots.interval_plot(
            differences, axis, width=INTERVALS, title="Paired difference with 95 % interval"
        )
        if differences
        else "",
        "endings": [_ending(suite, label, side) for suite in run.suites for label, side in suite.sides],
        "groups": [group for suite in run.suites for group in _groups(suite)],
        "bits": run.bits,
    }


def _suite_row(suite: Suite, finding: Finding) -> dict[str, Any]:
    marks = []
    for label, side in suite.sides:
        estimate = side.summary.get("scores", {}).get("pass@1")
        if estimate:
            marks.append(_mark(estimate, label, f"{text.percent(estimate['value'])} {label}"))
    difference = suite.comparison["difference"] if suite.comparison else None
    mark = _mark(difference, "difference", text.points(difference["value"])) if difference else None
    return {
        "name": text.clip(suite.name, 60),
        "finding": finding,
        "tasks": len(suite.tasks),
        "asked": suite.asked,
        "before": suite.before.summary.get("scores", {}).get("pass@1") if suite.before else None,
        "after": suite.after.summary.get("scores", {}).get("pass@1") if suite.after else None,
        "comparison": suite.comparison,
        "marks": marks,
        "mark": mark,
    }


def _mark(estimate: Mapping[str, float], style: str, label: str) -> plots.Mark:
    """An estimate of a share, in percent."""
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return plots.Mark(value, low, high, style, label)


def _ending(suite: Suite, label: str, side: Side) -> dict[str, Any]:
    summary = side.summary
    return {
        "suite": text.clip(suite.name, 60),
        "label": label,
        "answers": sum(map(len, side.verdicts.values())),
        "statuses": summary.get("statuses", {}),
        "cut_off": summary.get("cut_off"),
        "unscorable": unscorable_answers(side),
        "bounds": summary.get("bounds", {}),
        "valid": bool(summary.get("valid")),
    }


def _groups(suite: Suite) -> list[dict[str, Any]]:
    """pass@1 by repository and by kind, where there is more than one of them."""
    found = []
    for what, key in (("by repository", "by_repository"), ("by kind of task", "by_kind")):
        sides = {label: side.summary.get(key, {}) for label, side in suite.sides}
        names = sorted(set().union(*sides.values()))
        if len(names) < 2:
            continue
        rows = []
        for name in names:
            cells = {label: groups.get(name, {}) for label, groups in sides.items()}
            tasks = max(cell.get("tasks", 0) for cell in cells.values())
            rows.append((text.clip(name, 60), tasks, *(cells.get(x, {}).get("pass@1") for x in ("before", "after"))))
        found.append({"suite": text.clip(suite.name, 60), "what": what, "rows": rows})
    return found


def _data(run: Run) -> dict[str, Any]:
    facts = run.corpus.facts
    return {
        "facts": facts,
        "repositories": corpus_view.repositories(run),
        "legend": corpus_view.legend(run),
        "left_out": corpus_view.files_left_out(run),
        "thrown_away": corpus_view.tasks_thrown_away(run),
        "splits": corpus_view.task_counts(run.made_tasks),
        "text": run.tasks.facts.get("text", {}),
        "tests": corpus_view.tests_watched(run),
    }


SETTINGS = (
    ("method", "method"),
    ("lora_rank", "rank of the adapters"),
    ("lora_alpha", "alpha"),
    ("lr", "highest learning rate"),
    ("schedule", "schedule"),
    ("batch_tokens", "tokens of a step, at most"),
    ("max_tokens", "tokens of an example, at most"),
    ("weight_decay", "weight decay"),
    ("clip", "gradient norm, at most"),
    ("include", "files learnt from"),
    ("exclude", "files left out of training"),
    ("seed", "seed"),
)


def _training(run: Run) -> dict[str, Any]:
    metrics, facts, config = run.metrics, run.train.facts, run.train.config
    steps = [int(row["step"]) for row in metrics]
    losses, rates = ([row.get(key) for row in metrics] for key in ("loss", "lr"))
    full = config.get("method") == "full"
    settings = [
        (word, _setting(config[key]))
        for key, word in SETTINGS
        if key in config and not (full and key.startswith("lora"))
    ]
    fim = config.get("fim")
    if isinstance(fim, Mapping) and "rate" in fim:
        settings.append(("fill-in-the-middle share of examples", _setting(fim["rate"])))
    return {
        "facts": facts,
        "settings": settings,
        "wide": plots.loss_plot(steps, losses, rates, width=WIDE) if steps else "",
        "narrow": plots.loss_plot(steps, losses, rates, width=NARROW) if steps else "",
        "window": 2 * plots.smoothing_window(sum(loss is not None for loss in losses)) + 1,
        "trained_tokens": sum(int(row.get("trained_tokens") or 0) for row in metrics),
        "skipped": sum(bool(row.get("skipped")) for row in metrics),
        "seconds": sum(float(row.get("seconds") or 0) for row in metrics),
    }


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return text.clip(" ".join(map(str, value)) or "none", 200)
    return text.clip(f"{value:,}" if isinstance(value, int) else str(value), 200)


def _samples(suite: Suite, index: int) -> dict[str, Any]:
    rows = samples.rows(suite)
    chosen = samples.choose(suite) if suite.before and suite.after else []
    several = any(sample.before.samples > 1 or sample.after.samples > 1 for sample in chosen)
    counts = {change: sum(row.change == change for row in rows) for change in samples.CHANGES}
    groups = [
        (change, CHANGE_WORDS[change][several], counts[change], [s for s in chosen if s.change == change])
        for change in samples.CHANGES
    ]
    return {
        "name": text.clip(suite.name, 60),
        "index": index,
        "groups": groups,
        "rows": rows[:LISTED_TASKS],
        "all": len(rows),
    }


def _verdicts(run: Run) -> dict[str, Any]:
    total, not_run = lineage.verdict_counts(run)
    how = []
    for suite in run.suites:
        side = suite.after or suite.before
        assert side is not None
        how.append(
            {
                "name": text.clip(suite.name, 60),
                "limits": lineage.time_limits(list(side.tasks.values())),
                "kinds": sorted({str(task.verifier.get("kind")) for task in side.tasks.values()}),
                "sampling": side.summary.get("sampling", {}),
                "styles": side.summary.get("styles", []),
                "seconds": [side.summary.get("verdict_seconds") for _, side in suite.sides],
            }
        )
    return {"isolation": lineage.isolation(run), "total": total, "not_run": not_run, "suites": how}


def _lineage(run: Run) -> dict[str, Any]:
    recipe = json.loads(json.dumps(run.inputs.recipe, default=str))
    model, details = lineage.model_names(run)
    return {
        "model": text.clip(model, 120),
        "model_details": text.clip(details, 120),
        "stages": lineage.stages(run),
        "weights": lineage.weights(run),
        "versions": lineage.versions(run),
        "machines": lineage.machines(run),
        "command": text.clip(lineage.command(run), 2000),
        "seeds": lineage.seeds(run),
        "licenses": lineage.licenses(run),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=110),
    }
