"""What the numbers say, in plain words, and never more than they say.

A difference is called one only where its 95 % interval leaves out 0 and the exact sign test agrees: a bootstrap over few
changed tasks is too sure of itself, and a sign test does not know that tasks cut from one function hang together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from codemill.core.contracts import Status
from codemill.evaluation.summary import UNSCORABLE_LIMIT
from codemill.report.data import Side, Suite
from codemill.report.text import clip, counted, points, signed

Outcome = Literal["better", "worse", "unclear", "same", "invalid"]
SIGNIFICANCE = 0.05

LABELS: Mapping[Outcome, str] = {
    "better": "Better",
    "worse": "Worse",
    "unclear": "No clear change",
    "same": "No change",
    "invalid": "Not a result",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict on one suite."""

    suite: str
    outcome: Outcome
    sentence: str

    @property
    def label(self) -> str:
        return LABELS[self.outcome]


def find(suite: Suite) -> Finding:
    """What changed on a suite."""
    problem = _problem(suite)
    if problem or suite.comparison is None or suite.after is None:
        return Finding(suite.name, "invalid", f"Not a result on {clip(suite.name, 60)}: {problem}.")
    c = suite.comparison
    outcome = _outcome(c)
    left_out = suite.asked - len(suite.tasks)
    caveats = []
    if left_out:
        caveats.append(
            f"Left out: {counted(left_out, 'task')} of {suite.asked:,}, not asked or answered on both sides."
        )
    unscorable = sum(int(unscorable_answers(side)) for _, side in suite.sides)
    if unscorable:
        caveats.append(f"Counted as wrong: {counted(unscorable, 'answer')} that could not be scored.")
    differences = _asked_differently(suite)
    if differences:
        caveats.append(f"Asked differently before and after: {differences}.")
    return Finding(suite.name, outcome, " ".join([_sentence(suite, outcome, c), *caveats]))


def unscorable_answers(side: Side) -> int:
    return sum(v.status is Status.HARNESS_ERROR for found in side.verdicts.values() for v in found)


def _problem(suite: Suite) -> str:
    """Why there is nothing to conclude; empty where there is."""
    if suite.before is None or suite.after is None:
        absent = "before" if suite.before is None else "after"
        return f"the model {absent} training was not measured"
    if not suite.tasks:
        return "the two models did not answer the same tasks"
    for label, side in suite.sides:
        if side.summary.get("valid"):
            continue
        unscorable, answers = unscorable_answers(side), sum(map(len, side.verdicts.values()))
        if unscorable > UNSCORABLE_LIMIT * answers:
            return (
                f"{unscorable:,} of {answers:,} answers {label} training could not be scored, "
                f"more than the {100 * UNSCORABLE_LIMIT:g} % that a result may have"
            )
        missing = int(side.summary.get("missing") or 0)
        if missing:
            return f"{counted(missing, 'task')} of {len(side.tasks):,} have no answer {label} training"
        return f"the evaluation {label} training calls itself invalid"
    return ""


def _asked_differently(suite: Suite) -> str:
    """Which settings of the two sides are not the same, with both values."""
    first, second = ({**side.summary.get("sampling", {}), "styles": side.summary.get("styles")} for side in suite.both)
    names = sorted(name for name in {**first, **second} if first.get(name) != second.get(name))
    return ", ".join(f"{name} {first.get(name)} and {second.get(name)}" for name in names)


def _outcome(c: Mapping[str, Any]) -> Outcome:
    if c["better"] == c["worse"] == 0:
        return "same"
    low, high = c["difference"]["low"], c["difference"]["high"]
    if low <= 0 <= high or c["sign_test_p"] >= SIGNIFICANCE:
        return "unclear"
    return "better" if low > 0 else "worse"


def _sentence(suite: Suite, outcome: Outcome, c: Mapping[str, Any]) -> str:
    d = c["difference"]
    interval = f"95 % interval {points(d['low'])} to {points(d['high'])}"
    now, change = _amounts(suite)
    tasks = f"{counted(c['tasks'], f'{clip(suite.name, 60)} task')}"
    if outcome == "same":
        return f"No change: each of {tasks} ended as before ({now} solved)."
    if outcome == "unclear":
        if d["low"] <= 0 <= d["high"]:
            why = f"{points(d['value'])} points, but the {interval}, covers 0"
        else:
            changed = f"{c['better']} gained and {c['worse']} lost"
            why = f"{points(d['value'])} points, but {changed} may be chance, p = {c['sign_test_p']:.2f}"
        return f"No change that {tasks} can show: {now} solved, {change} ({why})."
    return f"Solves {now} of {tasks}, {change}: {points(d['value'])} points, {interval}."


def _amounts(suite: Suite) -> tuple[str, str]:
    """Solved after, and how many more or fewer than before. With several answers a task, averages over them."""
    before, after = (sum(side.rate(task.id) for task in suite.tasks) for side in suite.both)
    single = all(len(found) == 1 for _, side in suite.sides for found in side.verdicts.values())
    digits = 0 if single else 1
    change = after - before
    now = ("" if single else "on average ") + f"{after:.{digits}f}"
    if round(change, digits) == 0:
        return now, "as many as before"
    return now, f"{abs(change):.{digits}f} {'more' if change > 0 else 'fewer'} than before"


def bits_sentence(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Bits per byte in words; empty where one side lacks them."""
    if before is None or after is None:
        return ""
    if before.get("bytes") != after.get("bytes"):
        sizes = f"{before.get('bytes')} and {after.get('bytes')} bytes"
        return f"Bits per byte were measured on different text ({sizes}): not comparable."
    old, new = float(before["bits_per_byte"]), float(after["bits_per_byte"])
    if f"{old:.3f}" == f"{new:.3f}":
        return f"Predicts held-out files as well as before: {new:.3f} bits per byte."
    how = "better" if new < old else "worse"
    share = f" ({signed(100 * (new / old - 1))} %)" if old else ""
    return f"Predicts held-out files {how}: {new:.3f} bits per byte, before {old:.3f}{share}; lower is better."
