"""What a job may use, and which kinds of isolation it insists on."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from codemill.core.errors import ConfigError

MIB = 1024 * 1024


class Axis(StrEnum):
    """One kind of isolation. Each is shown to hold by a live attempt to break it, see `witness`."""

    FILES = "files"  # nothing is read or changed outside the job's folder and its readable trees
    NETWORK = "network"  # no socket of any family, the machine's own loopback included
    SYSCALLS = "syscalls"  # kernel interfaces that programs under test never need are refused
    PRIVILEGES = "privileges"  # no capability, and no way to gain one
    PROCESSES = "processes"  # the whole tree dies with the job, and reaches no process outside of it
    MEMORY = "memory"  # the tree's memory is bounded
    TIME = "time"  # wall clock and processor time are bounded from outside
    OUTPUT = "output"  # what is printed or written to disk is bounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Limits of one job. Raises `ConfigError` for a limit that is not positive."""

    wall_seconds: float = 10.0  # from the start of the program until its whole tree is killed
    cpu_seconds: float = 10.0  # processor time, summed over the tree
    memory_bytes: int = 512 * MIB  # resident memory of the tree, and address space of each process
    # V8, the JVM and Go reserve gigabytes that they never touch. False bounds what each process can write to instead,
    # a gigabyte above `memory_bytes`; the limit itself is then held by the watcher of resident memory.
    address_space: bool = True
    processes: int = 32  # processes and threads alive at once, the program itself included
    file_bytes: int = 16 * MIB  # size of any single file that the job writes
    disk_bytes: int = 64 * MIB  # what the job may add to its private folder; takes memory where mounts can be made
    descriptors: int = 64  # open descriptors of each process
    output_bytes: int = MIB  # what is kept of standard output and of standard error, each
    require: frozenset[Axis] = frozenset(Axis)  # without these, proven on this machine, nothing is run

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("require", "address_space") and not value > 0:
                raise ConfigError(f"sandbox policy: {field.name} is {value!r}: it must be above 0")
        try:
            required = frozenset(Axis(axis) for axis in self.require)
        except ValueError as error:
            raise ConfigError(f"sandbox policy: require: {error}; axes: {', '.join(Axis)}") from None
        object.__setattr__(self, "require", required)
