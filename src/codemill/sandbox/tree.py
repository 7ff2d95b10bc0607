"""Looking at a running tree of processes through /proc: who is in it, and what it uses."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from codemill.core.errors import InputError
from codemill.sandbox.folder import Folder

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over a tree: processes and threads, processor seconds, and resident bytes (shared pages count often)."""

    tasks: int
    cpu_seconds: float
    resident_bytes: int
    members: tuple[int, ...]


def usage(root: int, *others: int, with_root: bool, enough: int | None = None) -> Usage:
    """What `root` and `others` and everything below them use; `with_root` false leaves out `root` itself, which is ours.

    Stops early, with what it has, above `enough` tasks.
    """
    tasks, ticks, pages = 0, 0, 0
    members: list[int] = []
    queue = [root, *others]
    while queue and (enough is None or tasks <= enough):
        pid = queue.pop()
        queue += children(pid)
        fields = _stat(pid)
        if fields is None or (pid == root and not with_root):
            # What the children of ours have used is counted when it has collected them.
            ticks += int(fields[13]) + int(fields[14]) if fields else 0
            continue
        ticks += sum(int(value) for value in fields[11:15])
        tasks += max(1, int(fields[17]))  # a dead process that nobody has collected has no thread but takes a place
        pages += int(fields[21])
        members.append(pid)
    return Usage(tasks, ticks / _TICKS, pages * _PAGE, tuple(members))


def proportional_bytes(members: tuple[int, ...]) -> int:
    """Resident memory with each shared page counted once; a process that hides it counts as a whole."""
    total = 0
    for pid in members:
        try:
            with open(f"/proc/{pid}/smaps_rollup", "rb") as handle:
                total += next(int(line.split()[1]) * 1024 for line in handle if line.startswith(b"Pss:"))
        except (OSError, StopIteration, ValueError):
            fields = _stat(pid)
            total += int(fields[21]) * _PAGE if fields else 0
    return total


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the state on: [0] state, [1] parent, [11:15] times, [17] threads, [21] pages."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as handle:
            fields = handle.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > 21 else None


def children(pid: int) -> list[int]:
    if not _kernel_lists_children():
        return _children_by_scan(pid)
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as handle:
                found += map(int, handle.read().split())
    return found


@lru_cache(maxsize=1)
def _kernel_lists_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _children_by_scan(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = _stat(int(name))
            if fields is not None and int(fields[1]) == pid:
                found.append(int(name))
    return found


def folder_use(path: str, limit_bytes: int, limit_entries: int) -> tuple[int, int]:
    """Bytes on disk and count of entries below a folder. Stops early, with what it has, above a limit."""
    try:
        folder = Folder(Path(path))
    except InputError:
        return 0, 0
    try:
        return folder.use(limit_bytes, limit_entries)
    except (InputError, OSError):
        return 0, 0
    finally:
        folder.close()


def unlinked_bytes(members: tuple[int, ...]) -> int:
    """Bytes in files that have no name any more but are held open."""
    seen: dict[tuple[int, int], int] = {}
    for pid in members:
        with contextlib.suppress(OSError):
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{descriptor}")
                    if status.st_nlink == 0 and status.st_blocks:
                        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())
