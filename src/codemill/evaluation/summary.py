"""From verdicts to the numbers of a suite, and from two suites to their paired difference."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from codemill.core.contracts import Status, Task, Verdict
from codemill.evaluation.statistics import bootstrap, exact_sign_test, pass_at_k

# Above this share of answers that could not be scored, a run is not a result.
UNSCORABLE_LIMIT = 0.01


def summarise(
    tasks: Sequence[Task], verdicts: Iterable[Verdict], ks: Sequence[int] = (1,), *, seed: int = 0
) -> dict[str, Any]:
    """pass@k with intervals, status counts, and both bounds for what could not be scored.

    The denominator is every task. Main figures count an unscorable answer as wrong; `bounds` shows the other extreme.
    """
    by_task: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_task[verdict.task_id].append(verdict)
    statuses = Counter(str(v.status) for found in by_task.values() for v in found)
    answers = sum(statuses.values())
    unscorable = statuses[Status.HARNESS_ERROR]
    clusters = [str(task.metadata.get("cluster", task.id)) for task in tasks]
    samples = min((len(by_task[task.id]) for task in tasks), default=0)
    scores: dict[str, Any] = {}
    for k in ks:
        if samples < k:
            continue  # not computable, and never 1 by short cut
        values = [pass_at_k(len(by_task[t.id]), sum(v.passed for v in by_task[t.id]), k) for t in tasks]
        scores[f"pass@{k}"] = asdict(bootstrap(values, clusters, seed=seed))
    return {
        "tasks": len(tasks),
        "missing": sum(not by_task[task.id] for task in tasks),
        "samples_per_task": samples,
        "answers": answers,
        "statuses": dict(sorted(statuses.items())),
        "scores": scores,
        "bounds": {
            "all_unscorable_wrong": _share(statuses[Status.PASSED], answers),
            "all_unscorable_left_out": _share(statuses[Status.PASSED], answers - unscorable),
        },
        "valid": answers > 0 and samples > 0 and unscorable <= UNSCORABLE_LIMIT * answers,
        "by_kind": _groups(tasks, by_task, "kind"),
        "by_repository": _groups(tasks, by_task, "repository"),
        "verdict_seconds": round(sum(v.seconds for found in by_task.values() for v in found), 3),
    }


def compare(
    tasks: Sequence[Task], before: Iterable[Verdict], after: Iterable[Verdict], *, seed: int = 0
) -> dict[str, Any]:
    """The paired difference in pass@1 (after - before) over the same tasks, with its interval and wins and losses."""
    first, second = _pass_rates(before), _pass_rates(after)
    shared = [task for task in tasks if task.id in first and task.id in second]
    differences = [second[t.id] - first[t.id] for t in shared]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    estimate = bootstrap(differences, [str(t.metadata.get("cluster", t.id)) for t in shared], seed=seed)
    return {
        "tasks": len(shared),
        "difference": asdict(estimate),
        "better": better,
        "worse": worse,
        "same": len(shared) - better - worse,
        "sign_test_p": exact_sign_test(better, worse),
    }


def _pass_rates(verdicts: Iterable[Verdict]) -> dict[str, float]:
    found: dict[str, list[bool]] = defaultdict(list)
    for verdict in verdicts:
        found[verdict.task_id].append(verdict.passed)
    return {task: sum(passed) / len(passed) for task, passed in found.items()}


def _groups(tasks: Sequence[Task], by_task: Mapping[str, Sequence[Verdict]], key: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        if task.metadata.get(key) is not None:
            groups[str(task.metadata[key])].append(task)
    return {
        name: {
            "tasks": len(members),
            "pass@1": sum(_share(sum(v.passed for v in by_task[t.id]), len(by_task[t.id])) or 0.0 for t in members)
            / len(members),
        }
        for name, members in sorted(groups.items())
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
