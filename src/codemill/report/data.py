"""Reading the artifacts of a finished run. Every file that is read must have the hash that its manifest says.

What comes out is typed and complete; whether it may be shown is `text`'s business, what it means `finding`'s.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codemill.core.artifact import file_sha256, is_finished, read_manifest
from codemill.core.contracts import Answer, Task, Verdict
from codemill.core.errors import InputError, IntegrityError
from codemill.core.records import read_json_lines, read_records
from codemill.corpus.store import DECISIONS, read_decisions
from codemill.evaluation.evaluate import ANSWERS, SUMMARY, VERDICTS
from codemill.evaluation.summary import compare
from codemill.tasks.build import REJECTED, TASKS

BITS_PER_BYTE = "bits_per_byte.json"
METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A finished stage of the run: its artifact, what it took (`seconds`), whether it was `cached` from before."""

    name: str
    use: str
    folder: Path
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """A finished run. `recipe` is the resolved recipe as plain data; `notes` are sentences that a reader must know.

    `corpus`, `tasks`, `train`, `before` and `after` are artifact folders; the last two are evaluations of the same
    suites by the model before and after training.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    recipe: Mapping[str, Any]
    stages: tuple[StageRecord, ...]
    corpus: Path
    tasks: Path
    train: Path
    before: Path
    after: Path


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished folder and its manifest."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, kind: str | None = None) -> Artifact:
        manifest = read_manifest(folder)
        if kind is not None and manifest.get("kind") != kind:
            raise InputError(f"{folder}: is a {manifest.get('kind')!r} artifact, not {kind!r}")
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest.get("fingerprint", ""))

    @property
    def config(self) -> Mapping[str, Any]:
        return _mapping(self.manifest.get("config"))

    @property
    def facts(self) -> Mapping[str, Any]:
        return _mapping(self.manifest.get("facts"))

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def file(self, name: str) -> Path:
        """The path of a file whose bytes are those of the manifest."""
        path = self.folder / name
        listed = _mapping(self.manifest.get("files")).get(name)
        if listed is None:
            raise IntegrityError(f"{path}: is not in the manifest of its folder; run the stage again")
        if not path.is_file():
            raise InputError(f"{path}: is missing; run the stage again")
        if file_sha256(path) != listed.get("sha256"):
            raise IntegrityError(f"{path}: was changed after its manifest was written; run the stage again")
        return path

    def json(self, name: str) -> dict[str, Any]:
        path = self.file(name)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{path}: not JSON: {error}") from None
        if not isinstance(data, dict):
            raise IntegrityError(f"{path}: holds a {type(data).__name__}, not an object")
        return data


@dataclass(frozen=True, slots=True)
class Side:
    """One model's answers to a suite. Answers are kept by (task id, sample), verdicts by task id in sample order."""

    summary: Mapping[str, Any]
    tasks: Mapping[str, Task]
    answers: Mapping[tuple[str, int], Answer]
    verdicts: Mapping[str, tuple[Verdict, ...]]

    def rate(self, task: str) -> float:
        """The share of a task's answers that passed."""
        found = self.verdicts[task]
        return sum(v.passed for v in found) / len(found)


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite before and after. `tasks` are those that both sides were asked, word for word, and answered."""

    name: str
    before: Side | None
    after: Side | None
    tasks: tuple[Task, ...]
    comparison: Mapping[str, Any] | None

    @property
    def asked(self) -> int:
        """Tasks that either side was asked."""
        sides = [side.tasks for side in (self.before, self.after) if side]
        return len(set().union(*sides))

    @property
    def both(self) -> tuple[Side, Side]:
        """Before and after, of a suite that has both."""
        if self.before is None or self.after is None:
            raise ValueError(f"suite {self.name} was measured on one side only")
        return self.before, self.after

    @property
    def sides(self) -> tuple[tuple[str, Side], ...]:
        return tuple((label, side) for label, side in (("before", self.before), ("after", self.after)) if side)


@dataclass(frozen=True, slots=True)
class Run:
    """Everything of a finished run that the report looks at."""

    inputs: ReportInputs
    corpus: Artifact
    tasks: Artifact
    train: Artifact
    before: Artifact
    after: Artifact
    decisions: tuple[Mapping[str, Any], ...]  # of corpus files that were not kept
    made_tasks: tuple[Task, ...]
    rejected: tuple[Mapping[str, Any], ...]
    metrics: tuple[Mapping[str, Any], ...]
    suites: tuple[Suite, ...]  # those made from the user's own repositories first
    bits: tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]
    stages: tuple[tuple[StageRecord, Artifact | None], ...]


def read_run(inputs: ReportInputs) -> Run:
    """Raises `InputError` for what is missing or unfinished, `IntegrityError` for what was changed since."""
    corpus, tasks = Artifact.read(inputs.corpus, "corpus"), Artifact.read(inputs.tasks, "tasks")
    train, before, after = (Artifact.read(f) for f in (inputs.train, inputs.before, inputs.after))
    decisions = corpus.file(DECISIONS)
    return Run(
        inputs=inputs,
        corpus=corpus,
        tasks=tasks,
        train=train,
        before=before,
        after=after,
        decisions=tuple(row for row in read_decisions(decisions) if row["decision"] != "keep"),
        made_tasks=tuple(read_records(tasks.file(TASKS), Task)),
        rejected=tuple(_rows(tasks, REJECTED)),
        metrics=tuple(_rows(train, METRICS)),
        suites=_suites(before, after),
        bits=(_bits(before), _bits(after)),
        stages=tuple(
            (stage, Artifact.read(stage.folder) if is_finished(stage.folder) else None) for stage in inputs.stages
        ),
    )


def _rows(artifact: Artifact, name: str) -> Iterator[Mapping[str, Any]]:
    path = artifact.file(name)
    for number, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: holds a {type(row).__name__}, not an object")
        yield row


def _suites(before: Artifact, after: Artifact) -> tuple[Suite, ...]:
    names = sorted({name for artifact in (before, after) for name in _suite_names(artifact)})
    if not names:
        raise InputError(f"{after.folder}: no suite in it (a folder with {SUMMARY}); evaluate something first")
    suites = [_pair(name, _side(before, name), _side(after, name)) for name in names]
    return tuple(sorted(suites, key=lambda suite: (not _is_own(suite), suite.name)))


def _suite_names(artifact: Artifact) -> list[str]:
    return [path.parent.name for path in artifact.folder.glob(f"*/{SUMMARY}")]


def _is_own(suite: Suite) -> bool:
    """Whether the suite asks about the user's own repositories."""
    return any(t.metadata.get("origin") == "repository" for _, side in suite.sides for t in side.tasks.values())


def _side(artifact: Artifact, name: str) -> Side | None:
    if not artifact.has(f"{name}/{SUMMARY}"):
        return None
    tasks = {task.id: task for task in read_records(artifact.file(f"{name}/{TASKS}"), Task)}
    verdicts: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in read_records(artifact.file(f"{name}/{VERDICTS}"), Verdict):
        verdicts[verdict.task_id].append(verdict)
    answers = read_records(artifact.file(f"{name}/{ANSWERS}"), Answer)
    side = Side(
        summary=artifact.json(f"{name}/{SUMMARY}"),
        tasks=tasks,
        answers={(answer.task_id, answer.sample): answer for answer in answers},
        verdicts={task: tuple(sorted(found, key=lambda v: v.sample)) for task, found in sorted(verdicts.items())},
    )
    _check_summary(artifact.folder / name, side)
    return side


def _check_summary(folder: Path, side: Side) -> None:
    """The headline must be what the verdicts say: the one number that is never taken on trust."""
    counted = sum(v.passed for found in side.verdicts.values() for v in found)
    claimed = _mapping(side.summary.get("statuses")).get("passed", 0)
    if claimed != counted or side.summary.get("tasks") != len(side.tasks):
        raise IntegrityError(
            f"{folder / SUMMARY}: says {claimed} passed of {side.summary.get('tasks')} tasks, its verdicts "
            f"{counted} of {len(side.tasks)}; evaluate again"
        )
    unknown = sorted(set(side.verdicts) - set(side.tasks))
    if unknown:
        raise IntegrityError(f"{folder / VERDICTS}: a verdict for {unknown[0]!r}, which is no task; evaluate again")


def _pair(name: str, before: Side | None, after: Side | None) -> Suite:
    if before is None or after is None:
        return Suite(name, before, after, (), None)
    tasks = tuple(
        task
        for task in after.tasks.values()
        if task.id in before.tasks
        and task == before.tasks[task.id]
        and before.verdicts.get(task.id)
        and after.verdicts.get(task.id)
    )
    found = compare(tasks, _flat(before, tasks), _flat(after, tasks)) if tasks else None
    return Suite(name, before, after, tasks, found)


def _flat(side: Side, tasks: Sequence[Task]) -> list[Verdict]:
    return [verdict for task in tasks for verdict in side.verdicts[task.id]]


def _bits(artifact: Artifact) -> Mapping[str, Any] | None:
    found = artifact.json(BITS_PER_BYTE) if artifact.has(BITS_PER_BYTE) else None
    bits = found.get("bits_per_byte") if found else None
    return found if isinstance(bits, int | float) and math.isfinite(bits) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
