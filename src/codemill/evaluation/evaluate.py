"""Running a suite of tasks: answers by a generator, verdicts by the sandbox, numbers out of verdicts.

Answers and verdicts are JSON lines, appended as they come: a run that was stopped goes on where it was. Nothing is
reused across another model, suite or sampling: the first line of the folder's story is its identity.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codemill.core.artifact import fingerprint
from codemill.core.contracts import Answer, Generator, Sampling, Task, Verdict
from codemill.core.errors import InputError
from codemill.core.paths import atomic_write_text
from codemill.core.progress import Progress
from codemill.core.records import RecordLog, read_records, to_json
from codemill.evaluation.solve import answer_from, request_for, style_of
from codemill.evaluation.summary import summarise
from codemill.sandbox import Sandbox
from codemill.tasks.verifiers import verify_all

ANSWERS, VERDICTS, SUMMARY, IDENTITY = "answers.jsonl", "verdicts.jsonl", "summary.json", "identity.json"


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
) -> dict[str, Any]:
    """Answer and verify `tasks` (of the task folder `folder`) and write answers, verdicts and `summary.json` into `out`.

    `identity` names the model's exact weights; with the tasks and the sampling it decides what may be resumed.
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
    answer_all(
        tasks,
        generator,
        out / ANSWERS,
        sampling=sampling,
        samples=samples,
        max_prompt_tokens=max_prompt_tokens,
    )
    verdicts = grade(tasks, read_records(out / ANSWERS, Answer), folder, sandbox, out / VERDICTS)
    styles = sorted({style_of(task, generator) for task in tasks})
    answers = list(read_records(out / ANSWERS, Answer))
    summary = {
        **summarise(tasks, verdicts, ks),
        "styles": styles,
        "sampling": {**asdict(sampling), "samples": samples, "max_prompt_tokens": max_prompt_tokens},
        "cut_off": sum(a.metadata.get("finish_reason") == "length" for a in answers),
        "cut_to_gap": sum(a.metadata.get("uncut") is not None for a in answers),
        "generated_tokens": sum(int(a.metadata.get("tokens", 0)) for a in answers),
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
) -> None:
    """Complete `path` (answers as JSON lines) so that every task has `samples` answers."""
    with RecordLog(path) as log:
        have = {(answer.task_id, answer.sample) for answer in read_records(path, Answer)}
        wanted = {f"{t.id}#{s}": (t, s) for t in tasks for s in range(samples) if (t.id, s) not in have}
        if not wanted:
            return
        requests = [
            request_for(task, generator, sampling, sample=sample, max_prompt_tokens=max_prompt_tokens)
            for task, sample in wanted.values()
        ]
        with Progress(f"answer ({generator.name})", total=len(requests), unit="answers") as progress:
            for completion in generator.generate(requests):
                task, sample = wanted[completion.request_id]
                log.append(answer_from(completion, task, sample))
                progress.advance()


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
