"""Examples for the reader: which tasks are shown, and what of them.

They are drawn by the hash of their ids, not picked by hand, so they are neither the best nor the worst.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from codemill.core.artifact import fingerprint
from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.report.data import Side, Suite
from codemill.report.text import clip, head, tail

Change = Literal["gained", "lost", "both", "neither"]
CHANGES: tuple[Change, ...] = ("gained", "lost", "both", "neither")
PER_CHANGE = 3

PREFIX_LINES, SUFFIX_LINES, ANSWER_LINES, GOLD_LINES, MESSAGE_LINES = 14, 6, 40, 60, 14
MESSAGE_CHARACTERS = 1600


@dataclass(frozen=True, slots=True)
class Shown:
    """One model's answer to a task, as it is shown: the representative one, of `passed` right of `samples`."""

    text: str
    status: Status
    passed: int
    samples: int
    problem: str  # the failing test, trimmed; empty when it passed
    cut_off: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """A task with both answers. `lead` and `trail` are the rests of the lines in which the answer begins and ends."""

    task: Task
    change: Change
    before: Shown
    after: Shown
    above: str
    lead: str
    trail: str
    below: str
    gold: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A task in the list of all."""

    id: str
    kind: str
    change: Change | None  # None: not comparable
    before: tuple[Status, int, int] | None  # status of the representative answer, passed, samples
    after: tuple[Status, int, int] | None


def change_of(suite: Suite, task: str) -> Change:
    before, after = (side.rate(task) for side in suite.both)
    if before == after:
        return "both" if after > 0 else "neither"
    return "gained" if after > before else "lost"


def choose(suite: Suite) -> list[Sample]:
    """Up to `PER_CHANGE` tasks of each change, in the order of `CHANGES`."""
    groups: dict[Change, list[Task]] = defaultdict(list)
    for task in sorted(suite.tasks, key=lambda task: (fingerprint(task.id), task.id)):
        groups[change_of(suite, task.id)].append(task)
    return [_sample(suite, task, change) for change in CHANGES for task in groups[change][:PER_CHANGE]]


def rows(suite: Suite) -> list[Row]:
    """Every task that either side was asked; what changed comes first."""
    comparable = {task.id for task in suite.tasks}
    tasks = {task.id: task for _, side in suite.sides for task in side.tasks.values()}
    found = []
    for name, task in tasks.items():
        change = change_of(suite, name) if name in comparable else None
        before, after = (_outcome(side, name, change, which) for which, side in _both(suite))
        found.append(Row(name, str(task.metadata.get("kind", "")), change, before, after))
    order = {change: place for place, change in enumerate(CHANGES)}
    return sorted(found, key=lambda row: (order.get(row.change, 9) if row.change else 9, row.id))


def _both(suite: Suite) -> tuple[tuple[str, Side | None], ...]:
    return (("before", suite.before), ("after", suite.after))


def _outcome(side: Side | None, task: str, change: Change | None, which: str) -> tuple[Status, int, int] | None:
    if side is None or task not in side.verdicts:
        return None
    found = side.verdicts[task]
    return _representative(found, _shows_passed(change, which)).status, sum(v.passed for v in found), len(found)


def _shows_passed(change: Change | None, which: str) -> bool:
    """Whether the answer to show is one that passed, where there are both kinds."""
    return change == "both" or change == ("gained" if which == "after" else "lost")


def _representative(verdicts: Sequence[Verdict], passed: bool) -> Verdict:
    return next((v for v in verdicts if v.passed == passed), verdicts[0])


def _sample(suite: Suite, task: Task, change: Change) -> Sample:
    first, second = suite.both
    prefix = task.prefix if not task.messages else task.messages[-1].content
    above, newline, lead = prefix.rpartition("\n")
    suffix = task.suffix or ""
    trail, _, below = suffix.partition("\n")
    return Sample(
        task=task,
        change=change,
        before=_shown(first, task, _shows_passed(change, "before")),
        after=_shown(second, task, _shows_passed(change, "after")),
        above=tail(above.rstrip("\n"), PREFIX_LINES).strip("\n") if newline else "",
        lead=clip(lead, 240),
        trail=clip(trail, 240),
        below=head(below.strip("\n"), SUFFIX_LINES),
        gold=head(task.gold, GOLD_LINES) if task.gold is not None else None,
    )


def _shown(side: Side, task: Task, passed: bool) -> Shown:
    found = side.verdicts[task.id]
    verdict = _representative(found, passed)
    answer = side.answers.get((task.id, verdict.sample))
    return Shown(
        text=head(answer_text(answer), ANSWER_LINES),
        status=verdict.status,
        passed=sum(v.passed for v in found),
        samples=len(found),
        problem=problem(verdict),
        cut_off=bool(answer and answer.metadata.get("finish_reason") == "length"),
    )


def answer_text(answer: Answer | None) -> str:
    """What the model wrote, in whichever of the three forms."""
    if answer is None:
        return ""
    if answer.completion is not None:
        return answer.completion
    if answer.diff is not None:
        return answer.diff
    return "\n".join(f"--- {edit.path}\n{'(deleted)' if edit.text is None else edit.text}" for edit in answer.edits)


def problem(verdict: Verdict) -> str:
    """Why an answer did not pass: the first failing test and what it said, else the reason, else its last output."""
    if verdict.passed:
        return ""
    failed = next((test for test in verdict.tests if not test.passed), None)
    said = failed.message.strip() if failed else ""
    if failed and said:
        text = f"{failed.id}\n{said}"
    else:
        text = verdict.reason or verdict.stderr[-MESSAGE_CHARACTERS:].strip()
    return head(clip(text.expandtabs(4), MESSAGE_CHARACTERS), MESSAGE_LINES)
