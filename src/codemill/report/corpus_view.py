"""What went into a run and what was left out: tables for the page from the corpus and tasks artifacts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from codemill.core.contracts import Task
from codemill.report.data import Run
from codemill.report.plots import share_bar
from codemill.report.text import clip

LANGUAGES = 5  # with a colour of their own; the rest is "other"


@dataclass(frozen=True, slots=True)
class Repository:
    """A row of the repositories table."""

    name: str
    source: str
    revision: str
    license: str
    evidence: str
    tier: str
    kept: int
    files: int
    bytes: int
    bar: Markup
    languages: tuple[tuple[str, float], ...]
    train: int
    held_out: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Files, functions or repositories that were left out for one reason, with an example."""

    what: str
    reason: str
    count: int
    bytes: int
    example: str
    detail: str


def repositories(run: Run) -> list[Repository]:
    tasks = Counter((task.metadata.get("repository"), task.metadata.get("split")) for task in run.made_tasks)
    ranked = list(_mapping(run.corpus.facts.get("languages")))[:LANGUAGES]
    found = []
    for entry in run.corpus.facts.get("repositories", []):
        source = str(entry.get("source", ""))
        shares = language_shares(_mapping(entry.get("languages")), ranked)
        styles = [language_style(name, ranked) for name, _ in shares]
        found.append(
            Repository(
                name=str(entry.get("name", source)),
                source=source,
                revision=str(entry.get("revision", "")),
                license=str(entry.get("license") or "none found"),
                evidence=str(entry.get("license_evidence", "")),
                tier=str(entry.get("tier", "")),
                kept=int(entry.get("kept", 0)),
                files=int(entry.get("files", 0)),
                bytes=int(entry.get("bytes", 0)),
                bar=share_bar(shares, styles),
                languages=tuple(shares),
                train=tasks[source, "train"],
                held_out=tasks[source, "held_out"],
            )
        )
    return found


def legend(run: Run) -> list[tuple[str, str, float]]:
    """Language, its style and its share of all bytes."""
    languages = _mapping(run.corpus.facts.get("languages"))
    ranked = list(languages)[:LANGUAGES]
    return [(name, language_style(name, ranked), share) for name, share in language_shares(languages, ranked)]


def language_shares(languages: Mapping[str, int], ranked: Sequence[str]) -> list[tuple[str, float]]:
    """Shares of the bytes in the order of `ranked`, what is not in it as "other"."""
    whole = sum(languages.values())
    if not whole:
        return []
    shares = [(name, languages[name] / whole) for name in ranked if languages.get(name)]
    other = sum(count for name, count in languages.items() if name not in ranked) / whole
    return [*shares, ("other", other)] if other else shares


def language_style(name: str, ranked: Sequence[str]) -> str:
    return f"l{ranked.index(name)}" if name in ranked else "l-other"


def files_left_out(run: Run) -> list[LeftOut]:
    """Dropped and quarantined files by reason, the commonest first."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in run.decisions:
        groups.setdefault((row["decision"], row["reason"]), []).append(row)
    names = {"drop": "dropped", "quarantine": "quarantined"}
    found = []
    for (decision, reason), rows in groups.items():
        first = min(rows, key=lambda row: (row["repository"], row["path"]))
        found.append(
            LeftOut(
                what=names.get(decision, decision),
                reason=reason,
                count=len(rows),
                bytes=sum(row["bytes"] for row in rows),
                example=f"{first['repository']} {first['path']}",
                detail=first["detail"],
            )
        )
    return sorted(found, key=lambda row: (row.what, -row.count, row.reason))


def tasks_thrown_away(run: Run) -> list[LeftOut]:
    """Why functions did not become tasks, the commonest reason first. A reason is what stands before its colon."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in run.rejected:
        groups.setdefault(clip(str(row.get("reason", "")).split(":")[0], 160), []).append(row)
    found = []
    for reason, rows in groups.items():
        first = min(rows, key=_place)
        detail = str(first.get("reason", "")).partition(":")[2].strip()
        found.append(LeftOut(_noun(first), reason, len(rows), 0, " ".join(filter(None, _place(first))), detail))
    return sorted(found, key=lambda row: (-row.count, row.reason))


def _place(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return (str(row.get("repository", "")), str(row.get("path", "")), str(row.get("qualname", "")))


def _noun(row: Mapping[str, Any]) -> str:
    return "function" if row.get("qualname") else "file" if row.get("path") else "repository"


def task_counts(tasks: Iterable[Task]) -> list[tuple[str, dict[str, int], int]]:
    """For each split: tasks of each kind, and in all."""
    splits: dict[str, Counter[str]] = {}
    for task in tasks:
        splits.setdefault(str(task.metadata.get("split", "")), Counter())[str(task.metadata.get("kind", ""))] += 1
    return [(split, dict(sorted(kinds.items())), kinds.total()) for split, kinds in sorted(splits.items())]


def tests_watched(run: Run) -> list[tuple[str, int, str]]:
    """For each repository: tests that can judge answers, and how many of its tests cannot, by reason."""
    found = []
    for source, suite in sorted(_mapping(run.tasks.facts.get("suites")).items()):
        unused = _mapping(_mapping(suite).get("unused"))
        reasons = ", ".join(f"{clip(str(reason), 80)} {count}" for reason, count in unused.items())
        found.append((str(source), int(_mapping(suite).get("tests", 0)), reasons))
    return found


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
