"""Making verifiable tasks out of the repositories of a corpus.

For each repository: a pristine workspace, its dependencies as wheels, its tests run and watched; then questions are cut
out of functions that tests enter, and each is admitted only when the real verifier passes the original code and fails an
answer that does nothing. Functions are divided into training and held-out, and the training text loses the held-out ones.

A tasks folder holds `tasks.jsonl`, `rejected.jsonl`, `train_documents.parquet`, `held_out_documents.parquet`,
`workspaces/` and, written last, `manifest.json`.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from codemill.core.artifact import read_manifest, write_manifest
from codemill.core.contracts import Document, Task
from codemill.core.errors import InputError, IntegrityError
from codemill.core.paths import atomic_folder
from codemill.core.progress import Progress
from codemill.core.records import write_records
from codemill.corpus.store import read_documents, write_documents
from codemill.sandbox import Sandbox
from codemill.tasks.admission import Admission, admit, is_isolated
from codemill.tasks.candidates import (
    Candidate,
    Limits,
    Rejected,
    choose_held_out_files,
    find_candidates,
    is_subject,
    ordered,
)
from codemill.tasks.discover import Discovery, discover
from codemill.tasks.documents import LeakScanner, removed_functions
from codemill.tasks.functions import SourceFile, find_functions
from codemill.tasks.question import TaskMaker
from codemill.tasks.repository import Repository, prepare_all

TASKS = "tasks.jsonl"
REJECTED = "rejected.jsonl"
TRAIN_DOCUMENTS = "train_documents.parquet"
HELD_OUT_DOCUMENTS = "held_out_documents.parquet"


class TasksConfig(BaseModel):
    """What is asked of a corpus's repositories."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    held_out: int = Field(60, ge=0, description="Tasks to measure with; their functions leave the training text.")
    train: int = Field(60, ge=0, description="Tasks to learn from.")
    kinds: tuple[Literal["body", "span"], ...] = Field(
        ("body", "span"), min_length=1, description="What is asked for: whole bodies, runs of statements, or both."
    )
    max_answer_lines: int = Field(12, ge=1, description="Lines of the original code that an answer replaces, at most.")
    max_answer_chars: int = Field(400, ge=1, description="Characters of it, at most.")
    min_answer_lines: int = Field(1, ge=1, description="Lines of it, at least.")
    held_out_files: float = Field(
        0.05, ge=0, le=0.5, description="Share of the program text held out as whole files, for bits per byte."
    )
    seed: int = Field(0, description="Decides the split, the spans and the order.")
    test_seconds: float = Field(10.0, gt=0, description="A single test that runs longer is not used.")
    suite_seconds: float = Field(180.0, gt=0, description="A repository's tests are stopped after this long.")


def build_tasks(corpus_folder: Path, out: Path, config: TasksConfig) -> dict[str, Any]:
    """Build a tasks folder and return its manifest's facts.

    Raises `InputError` when the corpus is not one, when it changed since, or when no task at all comes out of it (with
    the reasons counted), `IsolationError` when the sandbox cannot be had. Discoveries are kept in the user's cache, so a
    build that is stopped and started again does not run the test suites again.
    """
    started = time.monotonic()
    manifest = read_manifest(corpus_folder)
    if manifest.get("kind") != "corpus":
        raise InputError(f"{corpus_folder}: is a {manifest.get('kind')!r} artifact, not a corpus")
    sources = manifest["config"].get("sources")
    if not isinstance(sources, list) or not sources:
        raise InputError(f"{corpus_folder}: its manifest names no sources")
    if config.held_out + config.train == 0:
        raise InputError("tasks: held_out and train are both 0, so there is nothing to build")
    sandbox = Sandbox()
    with atomic_folder(out) as folder:
        build = _Build(folder, config, list(read_documents(corpus_folder)), sandbox)
        facts = build.run(sources)
        write_manifest(
            folder,
            kind="tasks",
            config=config.model_dump(mode="json"),
            inputs={"corpus": manifest["fingerprint"]},
            seconds=time.monotonic() - started,
            facts=facts,
        )
    return facts


class _Build:
    """One build: its folder, what was rejected and how long each part took."""

    def __init__(self, folder: Path, config: TasksConfig, documents: list[Document], sandbox: Sandbox) -> None:
        self.folder, self.config, self.documents, self.sandbox = folder, config, documents, sandbox
        self.rejected: list[Rejected] = []
        self.seconds: dict[str, float] = {}
        self.skipped: dict[str, str] = {}

    def run(self, sources: list[str]) -> dict[str, Any]:
        repositories = self._timed("prepare", self._prepare, sources)
        discoveries = self._timed("discover", self._discover, repositories)
        held_files = choose_held_out_files(self.documents, self.config.held_out_files, self.config.seed)
        candidates = self._candidates(repositories, discoveries, held_files)
        maker = TaskMaker(repositories, discoveries)
        admission = self._timed("admit", self._admit, candidates, maker)
        held = [admitted for admitted in admission.admitted if admitted.candidate.split == "held_out"]
        scanner = self._scanner([admitted.candidate for admitted in held], held_files)
        tasks = self._finished_tasks(admission, maker, scanner)
        text_facts = self._timed("documents", self._write_documents, held, held_files, scanner)
        if not tasks:
            raise InputError(f"no task came out of {len(sources)} sources: {self._reasons()}")
        write_records(self.folder / TASKS, tasks)
        write_records(self.folder / REJECTED, self.rejected)
        return self._facts(tasks, discoveries, text_facts)

    def _timed(self, name: str, function: Any, *arguments: Any) -> Any:
        started = time.monotonic()
        value = function(*arguments)
        self.seconds[name] = round(time.monotonic() - started, 1)
        return value

    def _prepare(self, sources: list[str]) -> list[Repository]:
        def skip(source: str, reason: str) -> None:
            self.skipped[source] = reason
            self.rejected.append(Rejected(source, "", "", "", reason))

        with Progress("tasks: repositories", len(sources)) as progress:
            return prepare_all(
                sources, self.documents, self.folder / "workspaces", skip, lambda name: progress.advance(note=name)
            )

    def _discover(self, repositories: list[Repository]) -> dict[str, Discovery]:
        found: dict[str, Discovery] = {}
        with Progress("tasks: test suites", len(repositories)) as progress:
            for position, discovery in discover(
                [repository.subject for repository in repositories],
                self.sandbox,
                test_seconds=self.config.test_seconds,
                suite_seconds=self.config.suite_seconds,
            ):
                repository = repositories[position]
                progress.advance(note=repository.name)
                if discovery.skipped:
                    self.skipped[repository.source] = discovery.skipped
                    self.rejected.append(Rejected(repository.source, "", "", "", discovery.skipped))
                else:
                    found[repository.source] = discovery
        return found

    def _candidates(
        self, repositories: list[Repository], discoveries: dict[str, Discovery], held_files: set[tuple[str, str]]
    ) -> list[Candidate]:
        config = self.config
        limits = Limits(
            kinds=config.kinds,
            min_lines=config.min_answer_lines,
            max_lines=config.max_answer_lines,
            max_characters=config.max_answer_chars,
            held_out_share=config.held_out / (config.held_out + config.train),
            seed=config.seed,
        )
        found: list[Candidate] = []
        for repository in repositories:
            for document in repository.documents if repository.source in discoveries else ():
                if not is_subject(document):
                    continue
                pristine = (repository.folder / document.path).read_bytes()
                if pristine != document.text.encode("utf-8", "surrogatepass"):
                    reason = "the corpus's text is not the file's, byte for byte"
                    self.rejected.append(Rejected(repository.source, document.path, "", "", reason))
                    continue
                held_out_file = (document.repository, document.path) in held_files
                candidates, rejected = find_candidates(
                    document, discoveries[repository.source], limits, held_out_file=held_out_file
                )
                found += candidates
                self.rejected += rejected
        return ordered(found)

    def _admit(self, candidates: Sequence[Candidate], maker: TaskMaker) -> Admission:
        wanted = {"held_out": self.config.held_out, "train": self.config.train}
        with Progress("tasks: admission", sum(wanted.values()), "tasks") as progress:
            admission = admit(candidates, wanted, maker, self.sandbox, self.folder, progress)
        self.rejected += admission.rejected
        return admission

    def _scanner(self, held: list[Candidate], held_files: set[tuple[str, str]]) -> LeakScanner:
        """Searches for held-out answers and the bodies around them, and for all bodies of held-out files."""
        bodies = {f"{c.repository}:{c.path}:{c.function.qualname}:{c.kind}": c.gold for c in held}
        wanted = {(c.repository, c.path, c.function.qualname) for c in held}
        places = {(c.repository, c.path) for c in held} | held_files
        for document in self.documents:
            if (document.repository, document.path) not in places or not is_subject(document):
                continue
            whole = (document.repository, document.path) in held_files
            try:
                source = SourceFile(document.text, document.path)
                functions = find_functions(source)
            except (InputError, RecursionError):
                continue
            for function in functions:
                if function.body and (whole or (document.repository, document.path, function.qualname) in wanted):
                    identity = f"{document.repository}:{document.path}:{function.qualname}"
                    bodies[identity] = document.text[function.body.start : function.body.end]
        return LeakScanner(bodies)

    def _finished_tasks(self, admission: Admission, maker: TaskMaker, scanner: LeakScanner) -> list[Task]:
        """The admitted tasks; those to learn from do not show a held-out function in their prompts."""
        hidden: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for admitted in admission.admitted:
            candidate = admitted.candidate
            if candidate.split == "held_out":
                place = (candidate.repository, candidate.path)
                hidden.setdefault(place, []).append((candidate.function.first_line, candidate.function.last_line))
        tasks = []
        for admitted in admission.admitted:
            candidate, task = admitted.candidate, admitted.task
            if candidate.split == "train":
                shown = maker.hiding(task, candidate, hidden.get((candidate.repository, candidate.path), []))
                if shown is None or scanner.find(f"{shown.prefix}{shown.gold}{shown.suffix}"):
                    reason = "its file shows a held-out function"
                    self.rejected.append(
                        Rejected(
                            candidate.repository, candidate.path, candidate.function.qualname, candidate.kind, reason
                        )
                    )
                    continue
                task = shown
            tasks.append(task)
        return tasks

    def _write_documents(
        self, held: list[Any], held_files: set[tuple[str, str]], scanner: LeakScanner
    ) -> dict[str, Any]:
        """Training text without what is held out, and the held-out files."""
        functions: dict[tuple[str, str], set[str]] = {}
        for admitted in held:
            candidate = admitted.candidate
            functions.setdefault((candidate.repository, candidate.path), set()).add(candidate.function.qualname)
        kept: list[Document] = []
        facts: Counter[str] = Counter()
        leaks: dict[str, list[str]] = {}
        for document in self.documents:
            place = (document.repository, document.path)
            if place in held_files:
                continue
            text: str | None = document.text
            if place in functions:
                text = removed_functions(document.text, functions[place], document.path)
                facts["documents with functions cut out"] += 1
            if text is not None:
                scrubbed = scanner.scrub(text, python=document.language == "python")
                text = scrubbed.text
                if scrubbed.leaks:
                    leaks[f"{document.repository}:{document.path}"] = list(scrubbed.leaks)
            if text is None or not text.strip():
                facts["documents dropped"] += 1
                continue
            if scanner.find(text):
                raise IntegrityError(f"{document.path}: still holds a held-out function; please report this")
            kept.append(dataclasses.replace(document, text=text))
        held_documents = [d for d in self.documents if (d.repository, d.path) in held_files]
        write_documents(self.folder / TRAIN_DOCUMENTS, kept)
        write_documents(self.folder / HELD_OUT_DOCUMENTS, held_documents)
        return {
            **facts,
            "functions cut out": sum(len(names) for names in functions.values()),
            "bodies searched for": len(scanner),
            "copies removed": leaks,
            "train documents": len(kept),
            "train bytes": sum(len(document.text.encode("utf-8", "surrogatepass")) for document in kept),
            "held-out files": sorted(f"{d.repository}:{d.path}" for d in held_documents),
            "held-out file bytes": sum(len(d.text.encode("utf-8", "surrogatepass")) for d in held_documents),
        }

    def _reasons(self) -> str:
        counts = Counter(rejected.reason.split(":")[0][:120] for rejected in self.rejected)
        return "; ".join(f"{count} x {reason}" for reason, count in counts.most_common(6)) or "no functions"

    def _facts(
        self, tasks: list[Task], discoveries: dict[str, Discovery], text_facts: dict[str, Any]
    ) -> dict[str, Any]:
        def count(field: str) -> dict[str, int]:
            return dict(sorted(Counter(str(task.metadata[field]) for task in tasks).items()))

        isolated = sum(map(is_isolated, tasks))
        return {
            "tasks": len(tasks),
            "tests isolated from the answer": isolated,
            "tests in the answer's process": len(tasks) - isolated,
            "split": count("split"),
            "kind": count("kind"),
            "repository": count("repository"),
            "held_out_by_repository": dict(
                sorted(Counter(t.metadata["repository"] for t in tasks if t.metadata["split"] == "held_out").items())
            ),
            "skipped": self.skipped,
            "rejected": dict(Counter(r.reason.split(":")[0][:120] for r in self.rejected).most_common()),
            "suites": {
                source: {"tests": len(found.tests), "unused": dict(found.unused), "cut": found.cut}
                for source, found in sorted(discoveries.items())
            },
            "text": text_facts,
            "seconds": self.seconds,
        }
