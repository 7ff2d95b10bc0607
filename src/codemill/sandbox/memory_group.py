"""A control group that bounds the memory of a whole tree, where this user may make one; versions 1 and 2.

It counts what no sum over processes can count rightly, shared pages and files in memory, and it counts at the moment of the
allocation, while a watcher looks now and then.
"""

from __future__ import annotations

import contextlib
import os
import time
from functools import lru_cache
from itertools import count
from pathlib import Path

_PREFIX = "codemill-"
_numbers = count()


class MemoryGroup:
    """One group. A process joins it by writing `0` to the file that `join` opens; what it starts is in it, too."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder, self._version = folder, version
        self._limit = 0

    @classmethod
    def make(cls) -> MemoryGroup | None:
        """A new, empty group below this process's own; None where that is not allowed."""
        place = _place()
        if place is None:
            return None
        parent, version = place
        folder = parent / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        try:
            folder.mkdir()
        except OSError:
            return None
        return cls(folder, version)

    def limit(self, limit_bytes: int) -> None:
        """Raises `OSError` where the kernel refuses."""
        if limit_bytes == self._limit:
            return
        if self._version == 2:
            (self.folder / "memory.max").write_text(str(limit_bytes))
            with contextlib.suppress(OSError):  # not there without swap
                (self.folder / "memory.swap.max").write_text("0")
        else:
            names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
            # Memory alone may never be above memory with swap.
            for name in names if limit_bytes < self._limit or not self._limit else reversed(names):
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / name).write_text(str(limit_bytes))
        self._limit = limit_bytes

    def join(self) -> int:
        """The file to write to, as a descriptor."""
        return os.open(self.folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def killed(self) -> int:
        """How many processes the kernel has killed for lack of memory in this group."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError):
            for line in (self.folder / name).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return 0

    def close(self) -> None:
        """Remove the group; its processes are gone, the kernel may need a moment to notice."""
        for _ in range(50):
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.002)
            else:
                return


@lru_cache(maxsize=1)
def _place() -> tuple[Path, int] | None:
    """Where groups can be made, and the version there. Groups that a dead process has left are removed."""
    for parent, version in _candidates():
        trial = parent / f"{_PREFIX}{os.getpid()}-trial"
        try:
            trial.mkdir()
            file = "memory.max" if version == 2 else "memory.limit_in_bytes"
            usable = os.access(trial / file, os.W_OK) and os.access(trial / "cgroup.procs", os.W_OK)
            trial.rmdir()
        except OSError:
            continue
        if usable:
            _remove_left(parent)
            return parent, version
    return None


def _candidates() -> list[tuple[Path, int]]:
    try:
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except (OSError, ValueError):
        return []
    found = []
    for _, controllers, path in own:
        for mount in mounts:
            at, kind, options = Path(mount[1]), mount[2], mount[3].split(",")
            if kind == "cgroup2" and controllers == "":
                found += [(at / path.lstrip("/"), 2), ((at / path.lstrip("/")).parent, 2)]
            elif kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options:
                found += [(at / path.lstrip("/"), 1), (at, 1)]
    return found


def _remove_left(parent: Path) -> None:
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{_PREFIX}*-*"):
            owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
            if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
                with contextlib.suppress(OSError):
                    folder.rmdir()
