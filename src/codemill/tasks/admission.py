"""Admitting tasks: the real verifier must pass the original code and fail an answer that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.progress import Progress
from codemill.sandbox import Sandbox
from codemill.tasks.candidates import Candidate, Rejected
from codemill.tasks.functions import indentation, parses
from codemill.tasks.harness import load_factor
from codemill.tasks.question import TaskMaker
from codemill.tasks.verifiers import verify_all
from codemill.tasks.workspace import can_be_isolated

MIN_BATCH = 16
SPARE = 1.25  # candidates tried per task still wanted, because some are thrown away
SHARE_OF_LIMIT = 0.5  # of a task's time that the original code may take where tests and answer are isolated


@dataclass(frozen=True, slots=True)
class Admitted:
    """A task that the verifier can judge, with the candidate it came from."""

    task: Task
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Admission:
    admitted: tuple[Admitted, ...]
    rejected: tuple[Rejected, ...]


def admit(
    candidates: Sequence[Candidate],
    wanted: Mapping[str, int],
    maker: TaskMaker,
    sandbox: Sandbox,
    folder: Path,
    progress: Progress,
) -> Admission:
    """Take candidates in their order until each split has as many tasks as wanted, or none is left."""
    admitted: list[Admitted] = []
    rejected: list[Rejected] = []
    waiting = {split: [c for c in candidates if c.split == split] for split in wanted}
    missing = dict(wanted)
    while True:
        batch: list[Candidate] = []
        for split, group in waiting.items():
            size = min(len(group), max(MIN_BATCH, int(missing[split] * SPARE))) if missing[split] > 0 else 0
            batch += group[:size]
            waiting[split] = group[size:]
        if not batch:
            return Admission(tuple(admitted), tuple(rejected))
        reasons = _examine([(c, maker.make(c)) for c in batch], sandbox, folder)
        for candidate in batch:
            task, reason = reasons[_key(candidate)]
            if reason:
                rejected.append(_rejected(candidate, reason))
            elif missing[candidate.split] > 0:
                missing[candidate.split] -= 1
                admitted.append(Admitted(task, candidate))
                progress.advance(note=candidate.path)


def _key(candidate: Candidate) -> str:
    return f"{candidate.cluster}:{candidate.kind}"


def _rejected(candidate: Candidate, reason: str) -> Rejected:
    return Rejected(candidate.repository, candidate.path, candidate.function.qualname, candidate.kind, reason)


def _examine(batch: Sequence[tuple[Candidate, Task]], sandbox: Sandbox, folder: Path) -> dict[str, tuple[Task, str]]:
    """Each candidate's task as it will be verified, and why it is thrown away, '' for those that are not.

    Where the original code passes with tests and answer in processes of their own, that is the way; elsewhere, because
    something cannot cross between them, it is one process for both. The answers that must fail are tried on the task's way.
    """
    tasks = {task.id: task for _, task in batch}
    reasons = dict.fromkeys(tasks, "")
    isolated = [replace(task, verifier={**task.verifier, "isolated": True}) for task in tasks.values()]
    fit = [task for task in isolated if can_be_isolated(task, folder)]
    for verdict in verify_all(_golden(fit), sandbox, folder):
        task = tasks[verdict.task_id]
        quick = verdict.seconds <= SHARE_OF_LIMIT * task.verifier["seconds"] * load_factor()
        if verdict.passed and quick:  # values by the megabyte, or calls by the million, take their time to cross
            tasks[task.id] = replace(task, verifier={**task.verifier, "isolated": True})
    nothing = [(task, answer) for task in tasks.values() for answer in empty_answers(task)]
    for verdict in verify_all(nothing, sandbox, folder):
        if verdict.passed:
            reasons[verdict.task_id] = "an answer that does nothing passes its tests"
        elif not verdict.scorable:
            reasons[verdict.task_id] = _harness(verdict)
    left = [task for name, task in tasks.items() if not reasons[name] and not is_isolated(task)]
    for verdict in verify_all(_golden(left), sandbox, folder):
        if verdict.status is Status.HARNESS_ERROR:
            reasons[verdict.task_id] = _harness(verdict)
        elif not verdict.passed:
            reasons[verdict.task_id] = f"the original code does not pass: {verdict.status}: {verdict.reason}"[:300]
    return {_key(candidate): (tasks[task.id], reasons[task.id]) for candidate, task in batch}


def is_isolated(task: Task) -> bool:
    """Whether tests and answer of a repository's task run in processes of their own."""
    return task.verifier.get("isolated") is True


def _golden(tasks: Sequence[Task]) -> list[tuple[Task, Answer]]:
    return [(task, Answer(task_id=task.id, completion=task.gold)) for task in tasks]


def _harness(verdict: Verdict) -> str:
    return f"the harness failed: {verdict.reason}"[:300]


def empty_answers(task: Task) -> list[Answer]:
    """The answers that do nothing: none at all and, where that is not even a program, `pass`."""
    answers = [""]
    if not parses(f"{task.prefix}{task.suffix or ''}"):
        # The verifier fails a syntax error without running a test, so only `pass` shows whether the tests look.
        answers = [f"{indentation(task.gold or '')}pass"]
    return [Answer(task_id=task.id, completion=text, sample=i) for i, text in enumerate(answers)]
