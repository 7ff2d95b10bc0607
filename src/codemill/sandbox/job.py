"""What goes into the sandbox and what comes out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from codemill.core.errors import InputError
from codemill.core.paths import safe_relative
from codemill.sandbox.policy import Policy

RESULT_DESCRIPTOR = 3
RESULT_BYTES = 4 * 1024 * 1024

End = Literal["exited", "signal", "timeout", "memory", "disk", "processes", "output"]


class NotExecutableError(InputError):
    """The job's program is not there inside the sandbox, or is no program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFolder:
    """A private folder that outlives its jobs: each finds what the one before it left. One job at a time.

    `path`: a folder of the host that only we can reach; the sub-folder `codemill` in it is what jobs work in.
    `owner`: the user all of it belongs to where jobs have a user of their own (see `plan.gives_own_user`), else None.
    `limit_bytes`, `limit_entries`: what may be in it, held by the watcher in place of the policy's `disk_bytes`.
    """

    path: Path
    owner: int | None
    limit_bytes: int
    limit_entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One program to run.

    `argv`: the program, found on the sandbox's own PATH when it has no slash, and its arguments.
    `workspace`: a folder whose regular files are copied into the job's private working folder; symbolic links, devices
        and pipes in it are left out.
    `files`: relative names and contents, written over the copy.
    `kept`: a private folder that stays, in place of a new one with `workspace` and `files` in it.
    `readable`: further files or trees that the job may read and execute, never write, under their own names.
    `env`: variables added to the fixed environment; nothing is inherited.
    `stdin`: what the program finds on standard input.
    `self_exe`: where /proc/self/exe points in a jail that has no /proc; some programs do not start if it is not there.
    `policy`: limits of this job, instead of the sandbox's own.
    `result`: give the program descriptor 3 to write results to, up to `result_bytes`.
    """

    argv: tuple[str, ...]
    workspace: Path | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    kept: KeptFolder | None = None
    readable: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    self_exe: Path | None = None
    policy: Policy | None = None
    result: bool = False
    result_bytes: int = RESULT_BYTES

    def __post_init__(self) -> None:
        if not self.argv or not all(_can_be_passed(argument) for argument in self.argv):
            raise InputError(f"sandbox job: argv {self.argv!r} must name a program and hold no NUL and no half pairs")
        if self.kept is not None and (self.files or self.workspace is not None):
            raise InputError("sandbox job: a kept folder takes the place of `workspace` and `files`; give one of them")
        for name in self.files:
            if safe_relative(name, "sandbox job files").as_posix() == ".":
                raise InputError(f"sandbox job files: {name!r} is not the name of a file")
        for key, value in self.env.items():
            if not key or "=" in key or not _can_be_passed(key + value):
                raise InputError(f"sandbox job env: {key!r} cannot be an environment variable")


def _can_be_passed(text: str) -> bool:
    """Whether a program can be handed the text: no NUL, and no surrogates but those that stand for bytes."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended. What a program prints or writes to its result channel is a claim, never a verdict.

    `end` is one of
        exited     it ended by itself with `exit_code`
        signal     it died of `signal`, its own doing (a crash, an abort)
        timeout    killed: the wall clock or the processor time ran out
        memory     killed, or died, for lack of the memory that the policy allows
        disk       killed: its private folder grew past `disk_bytes` (where the kernel enforces the size the program
                   sees "no space left" instead, and ends as it likes)
        processes  killed: more processes and threads than allowed (where the kernel enforces the count a fork fails
                   inside the program instead)
        output     killed: more than the job's `result_bytes` came through the result channel
    `stdout` and `stderr` keep the first and the last bytes, `output_bytes` together; `*_dropped` counts the bytes lost
    in between. `seconds` is wall time from the start of the program; `cpu_seconds` is the tree's; `peak_bytes` is the
    largest resident memory seen. `isolation` maps each axis to what enforced it, "nothing" when nothing did.
    """

    end: End
    exit_code: int | None = None
    signal: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_dropped: int = 0
    stderr_dropped: int = 0
    result: bytes = b""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    isolation: Mapping[str, str] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """The program ended by itself with status 0. That is no proof that it did anything."""
        return self.end == "exited" and self.exit_code == 0
