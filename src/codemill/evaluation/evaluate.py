"""Running a suite of tasks: answers by a generator, verdicts by the sandbox, numbers out of verdicts.

Answers and verdicts are JSON lines, appended as they come: a run that was stopped goes on where it was. Nothing is
reused across another model, suite or sampling: the first line of the folder's story is its identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codemill.core.artifact import fingerprint
from codemill.core.contracts import Answer, Generator, Request, Sampling, Status, Task, Verdict
from codemill.core.errors import InputError, UnavailableError
from codemill.core.paths import atomic_write_text
from codemill.core.progress import Progress
from codemill.core.records import RecordLog, read_records, to_json
from codemill.evaluation.solve import answer_from, request_for, style_of
from codemill.evaluation.summary import summarise
from codemill.sandbox import Sandbox
from codemill.tasks.verifiers import verify_all

ANSWERS, VERDICTS, SUMMARY, IDENTITY = "answers.jsonl", "verdicts.jsonl", "summary.json", "identity.json"
GIVE_UP = 20  # answers in a row that cannot be had: the server is gone, and asking on would only keep it so


def evaluate(
    tasks: Sequence[Task],
    folder: Path,
    generator: Generator,
    sandbox: Sandbox,
    out: Path,
    *,
    identity: str,
    sampling: Sampling,
    samples: int = 1,
    max_prompt_tokens: int = 0,
    ks: Sequence[int] = (1,),
    unanswered: float = 0.0,
) -> dict[str, Any]:
    """Answer and verify `tasks` (of the task folder `folder`) and write answers, verdicts and `summary.json` into `out`.

    `identity` names the model's exact weights; with the tasks and the sampling it decides what may be resumed. A share
    `unanswered` of the answers may be missing; each is a `harness_error`, since no answer is known.
    """
    if samples > 1 and sampling.temperature == 0:
        raise InputError(
            f"{samples} samples at temperature 0 are {samples} times the same answer; raise the temperature"
        )
    _claim(out, {
        "model": identity,
        "tasks": fingerprint([to_json(task) for task in tasks]),
        "sampling": asdict(sampling),
        "samples": samples,
        "max_prompt_tokens": max_prompt_tokens,
    })  # fmt: skip
    missing = answer_all(
        tasks,
        generator,
        out / ANSWERS,
        sampling=sampling,
        samples=samples,
        max_prompt_tokens=max_prompt_tokens,
        unanswered=unanswered,
    )
    verdicts = grade(tasks, read_records(out / ANSWERS, Answer), folder, sandbox, out / VERDICTS)
    verdicts += _without_answer(missing, out / VERDICTS)
    styles = sorted({style_of(task, generator) for task in tasks})
    answers = list(read_records(out / ANSWERS, Answer))
    summary = {
        **summarise(tasks, verdicts, ks),
        "styles": styles,
        "sampling": {**asdict(sampling), "samples": samples, "max_prompt_tokens": max_prompt_tokens},
        "cut_off": sum(a.metadata.get("finish_reason") == "length" for a in answers),
        "cut_to_gap": sum(a.metadata.get("uncut") is not None for a in answers),
        "generated_tokens": sum(int(a.metadata.get("tokens", 0)) for a in answers),
        "prompt_tokens": sum(int(a.metadata.get("prompt_tokens", 0)) for a in answers),
        "cost": sum(float(a.metadata.get("cost", 0.0)) for a in answers),
        "isolation": dict(verdicts[0].isolation) if verdicts else {},
    }
    atomic_write_text(out / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def answer_all(
    tasks: Sequence[Task],
    generator: Generator,
    path: Path,
    *,
    sampling: Sampling,
    samples: int,
    max_prompt_tokens: int,
    unanswered: float = 0.0,
) -> dict[tuple[str, int], str]:
    """Complete `path` (answers as JSON lines) so that every task has `samples` answers.

    Where none may be missing, the first request that fails ends the run: `InputError`. Where a share `unanswered` may, the
    others go on, what failed is asked for once more, and the reasons of what is still missing are returned by task and
    sample; more than that share raises `UnavailableError`. Either way the answers that came are kept.
    """
    total = len(tasks) * samples
    with RecordLog(path) as log:
        have = {(answer.task_id, answer.sample) for answer in read_records(path, Answer)}
        wanted = {f"{t.id}#{s}": (t, s) for t in tasks for s in range(samples) if (t.id, s) not in have}
        if not wanted:
            return {}
        requests = [
            request_for(task, generator, sampling, sample=sample, max_prompt_tokens=max_prompt_tokens)
            for task, sample in wanted.values()
        ]
        with Progress(f"answer ({generator.name})", total=len(requests), unit="answers") as progress:
            ask = _Asking(generator, wanted, log, progress, strict=unanswered == 0)
            problems = ask(requests)
            if problems and len(problems) <= max(1, len(requests) // 2):
                problems = ask([request for request in requests if request.id in problems])
    if len(problems) > unanswered * total:
        first = next(iter(problems))
        raise UnavailableError(
            f"{len(problems)} of {total} answers could not be had; {wanted[first][0].id}: {problems[first]}; what came is "
            "kept, the same command asks for the rest"
        )
    return {(wanted[id][0].id, wanted[id][1]): problem for id, problem in problems.items()}


@dataclass(frozen=True)
class _Asking:
    """Asks for answers and logs them as they come."""

    generator: Generator
    wanted: Mapping[str, tuple[Task, int]]
    log: RecordLog
    progress: Progress
    strict: bool

    def __call__(self, requests: Sequence[Request]) -> dict[str, str]:
        """Why there is no answer, by request. The first of these is raised if `strict`."""
        problems: dict[str, str] = {}
        in_a_row = 0
        for completion in self.generator.generate(requests):
            task, sample = self.wanted[completion.request_id]
            if completion.finish_reason != "error" or self.strict:
                self.log.append(answer_from(completion, task, sample))
                self.progress.advance()
                in_a_row = 0
                continue
            problems[completion.request_id] = completion.error
            in_a_row += 1
            if in_a_row >= GIVE_UP:
                raise UnavailableError(
                    f"{in_a_row} answers in a row could not be had; {task.id}: {completion.error}; what came is kept, the "
                    "same command goes on"
                )
        return problems


def _without_answer(missing: Mapping[tuple[str, int], str], path: Path) -> list[Verdict]:
    """Verdicts for what was never answered, written behind the others: nobody's fault that could be scored."""
    verdicts = [
        Verdict(task_id=task, sample=sample, status=Status.HARNESS_ERROR, score=0.0, reason=f"no answer: {problem}")
        for (task, sample), problem in sorted(missing.items())
    ]
    with RecordLog(path) as log:
        for verdict in verdicts:
            log.append(verdict)
    return verdicts


def grade(
    tasks: Sequence[Task], answers: Iterable[Answer], folder: Path, sandbox: Sandbox, path: Path
) -> list[Verdict]:
    """Verify answers and write their verdicts to `path` as JSON lines, skipping those that are there already."""
    by_id = {task.id: task for task in tasks}
    with RecordLog(path) as log:
        done = {(v.task_id, v.sample): v for v in read_records(path, Verdict)}
        todo = []
        for answer in answers:
            if answer.task_id not in by_id:
                raise InputError(f"answer for unknown task {answer.task_id!r}; the suite has {len(by_id)} tasks")
            if (answer.task_id, answer.sample) not in done:
                todo.append((by_id[answer.task_id], answer))
        with Progress("verify", total=len(todo), unit="verdicts") as progress:
            for verdict in verify_all(todo, sandbox, folder):
                log.append(verdict)
                done[verdict.task_id, verdict.sample] = verdict
                progress.advance()
    return sorted(done.values(), key=lambda v: (v.task_id, v.sample))


def _claim(out: Path, identity: dict[str, Any]) -> None:
    """Make `out` the folder of this run; an `InputError` if it belongs to another."""
    path = out / IDENTITY
    mine = json.loads(json.dumps(identity))
    if path.is_file():
        theirs = json.loads(path.read_text())
        if theirs != mine:
            changed = ", ".join(key for key in mine if theirs.get(key) != mine[key])
            raise InputError(
                f"{out}: holds answers of another run (different {changed}); choose another folder or remove it"
            )
    else:
        atomic_write_text(path, json.dumps(mine, indent=1) + "\n")
