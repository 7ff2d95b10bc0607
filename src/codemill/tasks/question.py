"""Turning a candidate into a task: prompt, context, verifier description, metadata."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from codemill.core.contracts import Document, Task
from codemill.tasks.candidates import Candidate
from codemill.tasks.context import context_files, module_paths
from codemill.tasks.discover import Discovery
from codemill.tasks.documents import prompt_around
from codemill.tasks.functions import SourceFile
from codemill.tasks.layout import read_layout
from codemill.tasks.repository import Repository

FLOOR_SECONDS = 3.0
HEADROOM = 10.0  # an answer may be this much slower than the original


def time_limit(gold_seconds: float) -> float:
    """The wall limit of a task in seconds: the floor, doubled until it is `HEADROOM` times the original's own time.

    Steps of two keep the number the same from run to run, though times never are.
    """
    needed = gold_seconds * HEADROOM
    return (
        FLOOR_SECONDS * 2 ** max(0, math.ceil(math.log2(needed / FLOOR_SECONDS)))
        if needed > FLOOR_SECONDS
        else FLOOR_SECONDS
    )


class TaskMaker:
    """Makes the tasks of one build; parses each file once."""

    def __init__(self, repositories: Sequence[Repository], discoveries: Mapping[str, Discovery]) -> None:
        self._repositories = {repository.source: repository for repository in repositories}
        self._discoveries = discoveries
        self._documents: dict[str, dict[str, Document]] = {
            repository.source: {document.path: document for document in repository.documents}
            for repository in repositories
        }
        self._sources: dict[tuple[str, str], SourceFile] = {}
        names = [repository.name for repository in repositories]
        self._labels = {r.source: r.name if names.count(r.name) == 1 else r.workspace for r in repositories}

    def source(self, candidate: Candidate) -> SourceFile:
        key = (candidate.repository, candidate.path)
        if key not in self._sources:
            text = self._documents[candidate.repository][candidate.path].text
            self._sources[key] = SourceFile(text, candidate.path)
        return self._sources[key]

    def make(self, candidate: Candidate) -> Task:
        """The task of a candidate. Its prompt is the whole file around the answer."""
        repository = self._repositories[candidate.repository]
        document = self._documents[candidate.repository][candidate.path]
        source, piece = self.source(candidate), candidate.piece
        tests = self._discoveries[candidate.repository].tests
        texts = {path: other.text for path, other in self._documents[candidate.repository].items()}
        modules = module_paths(read_layout(repository.folder), texts)
        label = self._labels[candidate.repository]
        return Task(
            id=f"{label}/{candidate.path}:{candidate.function.qualname}:{candidate.kind}",
            prefix=source.text[: piece.start],
            suffix=source.text[piece.end :],
            gold=candidate.gold,
            context=context_files(candidate.path, source.tree, modules, texts),
            verifier={
                "kind": "workspace",
                "workspace": repository.workspace,
                "environment": repository.environment.id if repository.environment else None,
                "path": candidate.path,
                "start": piece.start,
                "end": piece.end,
                "tests": list(candidate.tests),
                "seconds": time_limit(sum(tests[test] for test in candidate.tests)),
            },
            metadata={
                "origin": "repository",
                "repository": candidate.repository,
                "revision": repository.revision,
                "path": candidate.path,
                "qualname": candidate.function.qualname,
                "kind": candidate.kind,
                "license": document.license,
                "language": document.language,
                "split": candidate.split,
                "cluster": candidate.cluster,
            },
        )

    def hiding(self, task: Task, candidate: Candidate, ranges: Sequence[tuple[int, int]]) -> Task | None:
        """The task with some functions left out of its prompt; None where the file would not parse any more.

        The verifier does not notice: it completes the pristine file, not the prompt.
        """
        if not ranges:
            return task
        source = self.source(candidate)
        first = source.text.count("\n", 0, candidate.piece.start) + 1
        around = prompt_around(source, first, first + candidate.piece.lines - 1, ranges)
        if around is None:
            return None
        return dataclasses.replace(task, prefix=around[0], suffix=around[1])
