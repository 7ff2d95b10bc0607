"""Getting a corpus's repositories ready to be run: pristine workspace, environment, layout."""

from __future__ import annotations

import compileall
import hashlib
import py_compile
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from codemill.core.contracts import Document
from codemill.core.errors import CodemillError, InputError
from codemill.corpus.snapshot import Snapshot
from codemill.corpus.sources import fetch
from codemill.tasks.discover import Subject, doctests_of
from codemill.tasks.environment import Environment, declared_dependencies, install

TEST_FILES = ("test_*.py", "*_test.py", "tests.py", "test.py")


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that can be run. `workspace` is its folder's name under `workspaces/`."""

    source: str
    name: str
    revision: str
    workspace: str
    folder: Path
    environment: Environment | None
    documents: tuple[Document, ...] = field(repr=False)

    @property
    def subject(self) -> Subject:
        folder = self.environment.folder if self.environment else None
        return Subject(self.folder, folder, f"{self.source}@{self.revision}")


def prepare(source: str, documents: Sequence[Document], workspaces: Path) -> Repository:
    """Fetch a source, copy it, install what it needs. Raises a `CodemillError` that says why it cannot be used."""
    snapshot = fetch(source)
    if documents and documents[0].revision != snapshot.revision:
        raise InputError(
            f"{source}: is at {snapshot.revision} now, the corpus holds {documents[0].revision}; build the corpus again"
        )
    digest = hashlib.sha256(f"{source}@{snapshot.revision}".encode()).hexdigest()[:8]
    identity = f"{re.sub(r'[^A-Za-z0-9._-]', '_', snapshot.name)[:60].lstrip('.') or 'repository'}-{digest}"
    folder = workspaces / identity
    copy_snapshot(snapshot, folder)
    has_tests = any(any(folder.rglob(pattern)) for pattern in TEST_FILES)
    if not has_tests and not doctests_of(folder):
        raise InputError(f"{source}: it has no tests and no doctests")
    environment = install(declared_dependencies(folder))
    return Repository(source, snapshot.name, snapshot.revision, identity, folder, environment, tuple(documents))


def copy_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """The snapshot as a folder of its own, with byte code beside the sources.

    The byte code is bound to its source by a hash: it spares every later run the parsing of unchanged files, and an
    answer's file never matches it. Compiling runs nothing.
    """
    for path, file in snapshot.files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder, quiet=2, invalidation_mode=mode, workers=1, stripdir=str(folder))


def prepare_all(
    sources: Sequence[str],
    documents: Sequence[Document],
    workspaces: Path,
    skip: Callable[[str, str], None],
    advance: Callable[[str], None],
) -> list[Repository]:
    """Every source that can be used, in order; `skip` is told the others and why."""
    ready = []
    for source in sources:
        own = [document for document in documents if document.repository == source]
        advance(source)
        try:
            ready.append(prepare(source, own, workspaces))
        except CodemillError as error:
            skip(source, str(error).removeprefix(f"{source}: "))
    return ready
