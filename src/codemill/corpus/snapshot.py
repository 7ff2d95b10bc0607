"""Snapshots: the regular files of one source, collected so that nothing hostile in them can do harm.

Every way in (a folder, an archive, a git tree) hands its members to one `Collector`, which alone decides what
is kept. What is left out is recorded with its reason, never lost in silence.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from codemill.core.errors import InputError, UnavailableError

BLOCK = 1 << 20
NAME_SHOWN = 1024  # characters of a name that is recorded: a hostile one may hold a megabyte

# Folders of tools and installed packages: never somebody's source. Compared in lower case.
SKIPPED_FOLDERS = frozenset(
    {
        *(
            ".git",
            ".hg",
            ".svn",
            ".tox",
            ".nox",
            ".venv",
            "venv",
            "node_modules",
            "__pycache__",
            ".mypy_cache",
        ),
        *(".pytest_cache", ".ruff_cache", "site-packages", ".eggs"),
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one source may hold. All sizes in bytes, uncompressed.

    A file above `file_bytes` is left out and recorded; a source above any other limit is refused as a whole.
    """

    file_bytes: int = 8 << 20
    total_bytes: int = 2 << 30
    members: int = 100_000
    ratio: int = 200  # uncompressed to compressed, past the first 64 MiB
    depth: int = 64  # folders in one path
    path_bytes: int = 1024


@dataclass(frozen=True, slots=True)
class Skipped:
    """A member of a source that is not in its snapshot. `bytes` is 0 for folders and unknown sizes."""

    path: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one revision of a source, under `root`. Part of the cache: never write to it."""

    source: str  # as given, for instance "pypi:toolz==1.0.0"
    name: str
    revision: str
    root: Path
    skipped: tuple[Skipped, ...] = ()

    def files(self) -> Iterator[tuple[str, Path]]:
        """Pairs of POSIX path relative to the root and file, in the order of the paths' code points."""
        found = [Path(folder, name) for folder, _, names in os.walk(self.root, onerror=_raise) for name in names]
        yield from sorted((path.relative_to(self.root).as_posix(), path) for path in found)


def _raise(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read: {error.strerror}")


def printable(name: str) -> str:
    """A file name for people and records: on one line, valid UTF-8, whatever the name held."""
    text = name[:NAME_SHOWN].encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def name_problem(name: str, limits: Limits) -> str | None:
    """Why a member's path is not taken, None for a good one. Undecodable bytes are expected as surrogates."""
    if any("\ud800" <= c <= "\udfff" for c in name):
        return "file name is not UTF-8"
    if not name.isprintable():
        return "unprintable character in the file name"
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name) or not path.parts:
        return "unsafe path"
    if len(path.parts) > limits.depth:
        return f"more than {limits.depth} folders deep"
    if len(name.encode()) > limits.path_bytes or any(len(part.encode()) > 255 for part in path.parts):
        return "path too long"
    return None


@dataclass(slots=True)
class Collector:
    """Takes the members of one source: `admit` the name, then `store` the bytes.

    With `root` None nothing is written and only `digest` is wanted. `origin` names the source in errors.
    """

    root: Path | None
    origin: str
    limits: Limits = field(default_factory=Limits)
    skipped: list[Skipped] = field(default_factory=list)
    files: int = 0
    total_bytes: int = 0
    _members: int = 0
    _digests: list[tuple[str, int, str]] = field(default_factory=list)
    _file_keys: set[str] = field(default_factory=set)
    _folder_keys: set[str] = field(default_factory=set)
    _skipped_folders: set[str] = field(default_factory=set)

    def skip(self, name: str, size: int, reason: str) -> None:
        self.skipped.append(Skipped(printable(name), size, reason))

    def count_member(self) -> None:
        """Every entry a source lists counts, kept or not. Raises `InputError` past the limit."""
        self._members += 1
        if self._members > self.limits.members:
            raise InputError(f"{self.origin}: more than {self.limits.members} members; take a part of it as the source")

    def skip_folder(self, path: str) -> bool:
        """Whether `path` lies in, or is, a folder that is never source. Recorded once per folder."""
        parts = PurePosixPath(path).parts
        for depth, part in enumerate(parts, 1):
            if part.lower() in SKIPPED_FOLDERS:
                folder = "/".join(parts[:depth])
                if folder not in self._skipped_folders:
                    self._skipped_folders.add(folder)
                    self.skip(folder, 0, f"folder {part} is not source")
                return True
        return False

    def admit(self, name: str, size: int) -> str | None:
        """The normalised path when the file's bytes are wanted; None, with the reason recorded, when not."""
        self.count_member()
        problem = name_problem(name, self.limits)
        if problem:
            self.skip(name, size, problem)
            return None
        path = str(PurePosixPath(name))
        if self.skip_folder(str(PurePosixPath(path).parent)):
            return None
        problem = self._conflict(path)
        if not problem and size > self.limits.file_bytes:
            problem = f"larger than {self.limits.file_bytes} bytes"
        if problem:
            self.skip(path, size, problem)
            return None
        return path

    def _conflict(self, path: str) -> str | None:
        """The first of two members with one name wins, so that no later one can replace what was looked at.

        Names that a case-insensitive or normalising file system takes for one are one name here as well: a
        snapshot is the same on every machine.
        """
        key = unicodedata.normalize("NFC", path).casefold()
        parents = {"/".join(key.split("/")[:n]) for n in range(1, key.count("/") + 1)}
        if key in self._file_keys or key in self._folder_keys or parents & self._file_keys:
            return "name taken by an earlier member"
        self._file_keys.add(key)
        self._folder_keys |= parents
        return None

    def store(self, path: str, blocks: Iterable[bytes]) -> None:
        """Take the bytes of an admitted file. One longer than its declared size is held to the limits too."""
        digest = hashlib.blake2b(digest_size=20)
        size = 0
        target = None if self.root is None else self.root / path
        out = None
        if target is not None:
            out = _create(target)
        try:
            for block in blocks:
                size += len(block)
                if size > self.limits.file_bytes:
                    break
                digest.update(block)
                if out is not None:
                    _write_all(out, block)
        except BaseException:
            self._discard(target)
            raise
        finally:
            if out is not None:
                os.close(out)
        if size > self.limits.file_bytes:
            self._discard(target)
            self.skip(path, size, f"larger than {self.limits.file_bytes} bytes")
            return
        self._count(path, size, digest.hexdigest())

    @staticmethod
    def _discard(target: Path | None) -> None:
        if target is not None:
            target.unlink()

    def _count(self, path: str, size: int, digest: str) -> None:
        self.files += 1
        self.total_bytes += size
        self._digests.append((path, size, digest))
        if self.total_bytes > self.limits.total_bytes:
            raise InputError(f"{self.origin}: more than {self.limits.total_bytes} bytes of files; take a part of it")

    def digest(self) -> str:
        """A hash of what was kept and left out, whatever the order it came in: 40 hexadecimal digits."""
        total = hashlib.blake2b(digest_size=20)
        for line in sorted(self._digests):
            total.update(repr(line).encode())
        for skipped in sorted(self.skipped, key=_order):
            total.update(repr((skipped.path, skipped.bytes, skipped.reason)).encode())
        return total.hexdigest()

    def ordered_skips(self) -> list[Skipped]:
        return sorted(self.skipped, key=_order)


def _order(skipped: Skipped) -> tuple[str, str, int]:
    return skipped.path, skipped.reason, skipped.bytes


# A write that fails is no trait of the file read: as an OSError it would be recorded as a file that cannot be read.
def _create(target: Path) -> int:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UnavailableError(f"{target}: cannot be written: {error.strerror}") from None


def _write_all(descriptor: int, block: bytes) -> None:
    view = memoryview(block)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise UnavailableError(f"the cache cannot be written: {error.strerror}; set CODEMILL_CACHE") from None
