"""Copying a repository into a workspace: its files, folders and the links that stay inside, and nothing else of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from codemill.sandbox.folder import Entry, Folder, link_stays_inside, write_all

_FICLONE = 0x40049409
_CHUNK = 1 << 20


def copy_in(source: Path, target: Folder, *, history: bool) -> tuple[str, ...]:
    """Copy a tree into an empty folder; returns the paths that were left out: pipes, devices, and links that lead out.

    `history` takes along what is named `.git`. Contents are shared with the source until one of both is written to, where
    the file system can do that. Raises `InputError` for what cannot be read.
    """
    left_out = []
    origin = Folder(source, ours=False)
    copier = _Copier(origin, target)
    skipped: set[str] = set()
    folders: list[Entry] = []
    try:
        for entry in origin.walk():
            parent, _, name = entry.path.rpartition("/")
            if parent in skipped or (name == ".git" and not history):
                skipped.add(entry.path)
            elif not copier.copy(entry):
                left_out.append(entry.path)
            elif entry.kind == "folder":
                folders.append(entry)
        for folder in reversed(folders):  # when nothing is written into them any more
            target.set_time(folder.path, folder.status.st_mtime_ns)
    finally:
        origin.close()
    return tuple(left_out)


class _Copier:
    def __init__(self, origin: Folder, target: Folder) -> None:
        self._origin, self._target = origin, target
        self._shares = True  # until the file system refuses

    def copy(self, entry: Entry) -> bool:
        """One entry; whether it can be taken along."""
        mode = entry.status.st_mode & 0o777
        if entry.kind == "folder":
            self._target.make_folder(entry.path, mode | 0o700)
        elif entry.kind == "file":
            with (
                self._origin.reading(entry.path) as original,
                self._target.writing(entry.path, mode | 0o600, entry.status.st_mtime_ns) as copy,
            ):
                self._copy_contents(original, copy)
        elif entry.kind == "link":
            link = self._origin.read_link(entry.path)
            if not link_stays_inside(entry.path, link):
                return False
            self._target.link(entry.path, link)
        else:
            return False
        return True

    def _copy_contents(self, original: int, copy: int) -> None:
        if self._shares:
            with contextlib.suppress(OSError):
                fcntl.ioctl(copy, _FICLONE, original)
                return
            self._shares = False
        while block := os.read(original, _CHUNK):
            write_all(copy, block)
