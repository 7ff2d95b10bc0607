"""What is different in a workspace since a snapshot, as a list and as a diff, and a diff put into effect."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeVar

from codemill.core.errors import InputError
from codemill.sandbox.diff import EXECUTABLE, FILE, LINK, Effort, Version, file_diff, quoted
from codemill.sandbox.folder import Entry, Folder, OverLimitError, link_stays_inside
from codemill.sandbox.patch import parse_diff, patched
from codemill.sandbox.snapshots import Record, Snapshots

# What tools leave behind is no part of a change, unless it was there from the start.
LEFT_OUT = (
    "__pycache__",
    "*.pyc",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".coverage",
    ".tox",
    "node_modules",
    "*.egg-info",
)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Change:
    """One path that is not as in a snapshot. `note` says why a diff cannot carry it, empty if it can."""

    path: str
    kind: Literal["added", "deleted", "changed"]
    note: str = ""


class Changes:
    """Compares the repository of a workspace, `tree`, with snapshots of the folder around it, where its paths begin with
    `prefix`. What is in `.git` never counts."""

    def __init__(self, tree: Folder, snapshots: Snapshots, prefix: str) -> None:
        self._tree, self._snapshots, self._prefix = tree, snapshots, prefix

    def found(self, since: str, leave_out: Sequence[str]) -> tuple[Change, ...]:
        return tuple(change for change, _, _ in self._found(since, leave_out))

    def diff(self, since: str, leave_out: Sequence[str], limit: int) -> str:
        """A text of at most `limit` characters; what cannot be carried is named before everything else."""
        notes: list[str] = []
        parts: list[str] = []
        size, effort = 0, Effort()
        for change, before, after in self._found(since, leave_out):
            if change.note:
                part = f"# left out: {quoted(change.path)} ({change.note})\n"
                notes.append(part)
            else:
                part = file_diff(change.path, _old_version(before), self._version(change.path, after), effort)
                parts.append(part)
            size += len(part)
            if size > limit:
                raise OverLimitError(f"the diff has more than {limit} characters, at {change.path!r}; leave that out")
        return "".join(notes + parts)

    def apply(self, text: str, *, trash: Folder, file_bytes: int, total_bytes: int) -> tuple[str, ...]:
        """Do what a diff says. Everything is worked out before anything is written."""
        state: dict[str, Version | None] = {}
        total, effort = 0, Effort()
        for patch in parse_diff(text, total_bytes):
            before = self._planned(patch.old, state) if patch.old else None
            if patch.new and patch.new != patch.old and self._taken(patch.new, state):
                raise InputError(f"diff: {patch.new!r} shall be new and is there already")
            after = patched(patch, before, effort)
            size = len(after.data) if after else 0
            total += size
            if size > file_bytes or total > total_bytes:
                raise OverLimitError(
                    f"diff: with {patch.name!r} it makes more than {file_bytes} bytes in a file, or too many"
                )
            if patch.old and not patch.copied and patch.old != patch.new:
                state[patch.old] = None
            if patch.new:
                state[patch.new] = after
        self._check(state)
        self._put(state, trash)
        return tuple(sorted(state))

    # Comparing ---------------------------------------------------------------------------------------------------

    def _found(self, since: str, leave_out: Sequence[str]) -> Iterator[tuple[Change, Record | None, Entry | None]]:
        """In the order of paths; folders count by what is in them."""
        state = {path: record for path, record in self._inside(self._snapshots.state(since)) if record.kind != "folder"}
        now = {path: entry for path, entry in self._inside(self._snapshots.scan()) if entry.kind != "folder"}
        for path in sorted({*state, *now}):
            before, after = state.get(path), now.get(path)
            parts = path.split("/")
            if any(part.lower() == ".git" for part in parts):
                continue
            if before is None and any(fnmatchcase(part, pattern) for part in parts for pattern in leave_out):
                continue
            if before is not None and after is not None and self._equal(path, before, after):
                continue
            kind: Literal["added", "deleted", "changed"] = "changed"
            if before is None or after is None:
                kind = "added" if before is None else "deleted"
            yield Change(path, kind, self._note(path, before, after)), before, after

    def _inside(self, state: Mapping[str, T]) -> Iterator[tuple[str, T]]:
        start = self._prefix + "/"
        return ((path.removeprefix(start), thing) for path, thing in state.items() if path.startswith(start))

    def _equal(self, path: str, before: Record, after: Entry) -> bool:
        if before.kind != after.kind:
            return False
        if before.kind == "file":
            return bool(before.mode & stat.S_IXUSR) == after.executable and self._snapshots.same(after, before)
        return before.kind == "other" or self._tree.read_link(path) == before.target

    def _note(self, path: str, before: Record | None, after: Entry | None) -> str:
        if "other" in (before.kind if before else "", after.kind if after else ""):
            return "a pipe or the like"
        if after is not None and after.kind == "link" and not link_stays_inside(path, self._tree.read_link(path)):
            return "a link that leads out"
        if before is not None and before.kind == "link" and not link_stays_inside(path, before.target):
            return "a link that led out"
        return ""

    def _version(self, path: str, entry: Entry | None) -> Version | None:
        """What a file or a link is now."""
        if entry is None:
            return None
        if entry.kind == "link":
            return Version(LINK, os.fsencode(self._tree.read_link(path)))
        data = bytearray()
        with self._tree.reading(path) as descriptor:
            while len(data) < entry.size and (block := os.read(descriptor, entry.size - len(data))):
                data += block
        return Version(_git_mode(entry.status.st_mode), bytes(data))

    # Applying ----------------------------------------------------------------------------------------------------

    def _planned(self, path: str, state: Mapping[str, Version | None]) -> Version | None:
        """What a file is once the parts of the diff before this one are done."""
        if path in state:
            return state[path]
        entry = self._tree.look(path)
        return self._version(path, entry) if entry is not None and entry.kind in ("file", "link") else None

    def _taken(self, path: str, state: Mapping[str, Version | None]) -> bool:
        if path in state:
            return state[path] is not None
        there = self._tree.look(path)
        return there is not None and there.kind != "folder"  # those are looked at when it is known what goes

    def _is_emptied(self, path: str, state: Mapping[str, Version | None]) -> bool:
        """Whether no file is left in a folder by then; a diff does not know of folders."""
        files = [entry.path for entry in self._tree.walk(path) if entry.kind != "folder"]
        return all(name in state and state[name] is None for name in files)

    def _check(self, state: Mapping[str, Version | None]) -> None:
        for path, version in state.items():
            if version is None:
                continue
            if version.mode == LINK and not link_stays_inside(path, os.fsdecode(version.data)):
                raise InputError(f"diff: {path!r} is a link that leads out")
            parts = path.split("/")
            for depth in range(1, len(parts)):
                above = "/".join(parts[:depth])
                there = self._tree.look(above)
                gone = above in state and state[above] is None
                if state.get(above) is not None or (there is not None and there.kind != "folder" and not gone):
                    raise InputError(f"diff: {path!r} lies below {above!r}, which is no folder")
            there = self._tree.look(path)
            if there is not None and there.kind == "folder" and not self._is_emptied(path, state):
                raise InputError(f"diff: {path!r} is a folder")

    def _put(self, state: Mapping[str, Version | None], trash: Folder) -> None:
        for path, version in state.items():  # what goes first: a file may become a folder
            there = self._tree.look(path)
            if there is not None and (version is None or there.kind != "file" or version.mode == LINK):
                self._tree.move_out(path, trash)
        for path, version in state.items():
            if version is None:
                continue
            self._tree.make_folders(path.rpartition("/")[0])
            if version.mode == LINK:
                self._tree.link(path, os.fsdecode(version.data))
            else:
                self._tree.write(path, version.data, version.mode & 0o777)


def _old_version(record: Record | None) -> Version | None:
    if record is None:
        return None
    if record.blob is None:
        return Version(LINK, os.fsencode(record.target))
    return Version(_git_mode(record.mode), record.blob.data())


def _git_mode(mode: int) -> int:
    return EXECUTABLE if mode & stat.S_IXUSR else FILE
