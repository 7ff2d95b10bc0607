"""States of a folder to go back to: contents are kept once in pack files, and what did not change is not read again.

Which files may have changed is told by inode, size and both times, as git does it. The kernel's clock for them ticks
only every few milliseconds, so a file touched within the last tick before it was read is compared again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from codemill.core.errors import InputError
from codemill.sandbox.folder import Entry, Folder, Kind, OverLimitError, write_all

_TICK_NS = 20_000_000  # the coarsest clock that file times are taken from ticks every 10 ms
_CHUNK = 1 << 20

Signature = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Blob:
    """Contents of a file: so many bytes of a pack."""

    pack: Path
    offset: int
    size: int

    def data(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        if not self.size:  # in a pack that may not be there
            return
        with self.pack.open("rb", buffering=0) as handle:
            done = 0
            while done < self.size:
                block = os.pread(handle.fileno(), min(_CHUNK, self.size - done), self.offset + done)
                if not block:
                    raise InputError(f"{self.pack}: a workspace's snapshot was cut short by something else")
                yield block
                done += len(block)


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a snapshot. `mode`: permissions. `target`: of a link. What is neither file, folder nor link has no more
    than its name."""

    kind: Kind
    mode: int
    mtime_ns: int
    blob: Blob | None = None
    target: str = ""


State = Mapping[str, Record]


class Snapshots:
    """Snapshots of one folder. Not safe for several threads, and no program may be at work in the folder.

    `store`: where packs lie. `limit_bytes`, `limit_entries`: what the folder may hold to be looked at; the store takes
    `store_bytes`. Kept are contents, permissions, times of files, and links; neither extended attributes nor that two names
    are one file.
    """

    def __init__(self, folder: Folder, store: Path, *, limit_bytes: int, limit_entries: int, store_bytes: int) -> None:
        self._folder, self._store = folder, store
        self._limit_bytes, self._limit_entries, self._store_bytes = limit_bytes, limit_entries, store_bytes
        self._states: dict[str, State] = {}
        self._known: dict[str, tuple[Signature, int, Blob]] = {}  # last seen, when, and what it held
        self._taken = 0

    def state(self, name: str) -> State:
        try:
            return self._states[name]
        except KeyError:
            there = ", ".join(self._states) or "none"
            raise InputError(f"snapshot {name!r} of a workspace is not there; those that are: {there}") from None

    def take(self) -> str:
        """Remember how the folder is now; returns the name to go back by."""
        entries = self.scan()
        name = str(self._taken)
        pack = self._store / name
        room = self._store_bytes - sum(path.stat().st_size for path in self._store.iterdir())
        state: dict[str, Record] = {}
        with pack.open("xb", buffering=0) as out:
            try:
                for path, entry in entries.items():
                    if entry.kind == "file":
                        blob = self._unchanged(entry) or self._append(entry, pack, out.fileno(), room)
                        state[path] = _record(entry, blob)
                    else:
                        target = self._folder.read_link(path) if entry.kind == "link" else ""
                        state[path] = _record(entry, None, target)
                empty = out.tell() == 0
            except BaseException:
                self._known = {path: known for path, known in self._known.items() if known[2].pack != pack}
                pack.unlink()
                raise
        if empty:
            pack.unlink()
        self._taken += 1
        self._states[name] = state
        self._known = {path: known for path, known in self._known.items() if path in state}
        return name

    def forget(self, name: str) -> None:
        """Give up a snapshot and the room that only it takes."""
        self.state(name)
        del self._states[name]
        needed = {record.blob.pack for state in self._states.values() for record in state.values() if record.blob}
        self._known = {path: known for path, known in self._known.items() if known[2].pack in needed}
        for pack in self._store.iterdir():
            if pack not in needed:
                pack.unlink()

    def scan(self) -> dict[str, Entry]:
        """Everything in the folder by its path. Raises `OverLimitError` if that is more than may be looked at."""
        found: dict[str, Entry] = {}
        size = 0
        for entry in self._folder.walk():
            found[entry.path] = entry
            size += entry.size if entry.kind == "file" else 0
            if size > self._limit_bytes or len(found) > self._limit_entries:
                raise OverLimitError(
                    f"the workspace holds more than {self._limit_bytes} bytes or {self._limit_entries} entries "
                    f"({entry.path[:100]!r} and others); delete files or roll back"
                )
        return found

    def same(self, entry: Entry, record: Record) -> bool:
        """Whether a file holds what the record says; its permissions do not matter."""
        if entry.kind != "file" or record.blob is None or entry.size != record.blob.size:
            return False
        known = self._trusted(entry)
        if known is not None and known == record.blob:
            return True
        return self._holds(entry, record.blob)

    def rollback(self, name: str, trash: Folder) -> None:
        """Make the folder what it was. What is in the way goes to `trash`. Raises `OSError` on a full disk, when some of it
        is done; it can be tried again."""
        state = self.state(name)
        kept = self._remove_others(state, trash)
        for path, record in state.items():
            if record.kind == "folder" and path not in kept:
                self._folder.make_folder(path, record.mode | 0o700)
        for path, record in state.items():
            if path not in kept:
                self._restore(path, record)
        for path, record in reversed(list(state.items())):
            if record.kind == "folder":
                self._folder.set_time(path, record.mtime_ns)
                if path not in kept or _mode(kept[path]) != record.mode:
                    self._folder.set_mode(path, record.mode)

    def _remove_others(self, state: State, trash: Folder) -> dict[str, Entry]:
        """Take away what is not as in the state; returns what stays."""
        kept: dict[str, Entry] = {}
        pending = [""]
        while pending:
            for entry in self._folder.entries(pending.pop()):
                record = state.get(entry.path)
                if record is None or not self._stays(entry, record):
                    self._folder.move_out(entry.path, trash)
                    continue
                kept[entry.path] = entry
                if entry.kind == "folder":
                    pending.append(entry.path)
        return kept

    def _stays(self, entry: Entry, record: Record) -> bool:
        if entry.kind != record.kind:
            return False
        if entry.kind == "file":
            as_it_was = _mode(entry) == record.mode and entry.status.st_mtime_ns == record.mtime_ns
            return as_it_was and entry.status.st_nlink == 1 and self.same(entry, record)
        return entry.kind != "link" or self._folder.read_link(entry.path) == record.target

    def _restore(self, path: str, record: Record) -> None:
        if record.kind == "link":
            self._folder.link(path, record.target)
        elif record.blob is not None:
            with self._folder.writing(path, record.mode, record.mtime_ns) as descriptor:
                for block in record.blob.chunks():
                    write_all(descriptor, block)

    # What is known about files -----------------------------------------------------------------------------------

    def _trusted(self, entry: Entry) -> Blob | None:
        """What the file held when it was last read, if it cannot have changed since."""
        known = self._known.get(entry.path)
        if known is None or known[0] != _signature(entry) or entry.status.st_ctime_ns >= known[1]:
            return None
        return known[2]

    def _unchanged(self, entry: Entry) -> Blob | None:
        """The same after a comparison where times do not decide."""
        blob = self._trusted(entry)
        if blob is None and entry.path in self._known:
            last = self._known[entry.path][2]
            if last.size == entry.size and self._holds(entry, last):
                return last
        return blob

    def _holds(self, entry: Entry, blob: Blob) -> bool:
        now = time.time_ns() - _TICK_NS
        with self._folder.reading(entry.path) as descriptor:
            for block in blob.chunks():
                if os.read(descriptor, len(block)) != block:
                    return False
            if os.read(descriptor, 1):
                return False
        self._known[entry.path] = (_signature(entry), now, blob)
        return True

    def _append(self, entry: Entry, pack: Path, out: int, room: int) -> Blob:
        offset, size, now = os.lseek(out, 0, os.SEEK_CUR), 0, time.time_ns() - _TICK_NS
        with self._folder.reading(entry.path) as descriptor:
            while block := os.read(descriptor, _CHUNK):
                size += len(block)
                if offset + size > room:
                    raise OverLimitError(
                        f"snapshots of this workspace take more than {self._store_bytes} bytes; forget some of them"
                    )
                write_all(out, block)
        blob = Blob(pack, offset, size)
        self._known[entry.path] = (_signature(entry), now, blob)
        return blob


def _record(entry: Entry, blob: Blob | None, target: str = "") -> Record:
    return Record(entry.kind, _mode(entry), entry.status.st_mtime_ns, blob, target)


def _mode(entry: Entry) -> int:
    return entry.status.st_mode & 0o777


def _signature(entry: Entry) -> Signature:
    status = entry.status
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
