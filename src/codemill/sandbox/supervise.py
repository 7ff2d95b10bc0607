"""Runs one job: starts the launcher, drains its pipes, watches the clock and the tree, kills, and reports."""

from __future__ import annotations

import contextlib
import dataclasses
import marshal
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from codemill.core.errors import InputError, IsolationError, UnavailableError
from codemill.core.text import visible
from codemill.sandbox import launcher, tree
from codemill.sandbox.job import End, Job, NotExecutableError, Outcome
from codemill.sandbox.memory_group import MemoryGroup
from codemill.sandbox.plan import Layers, base_python, build_plan, isolation
from codemill.sandbox.policy import MIB, Axis, Policy

_TICK = 0.02  # seconds between two looks at the tree
_START_SECONDS = 60.0  # a launcher that takes longer is stuck: a machine in trouble, not the job's fault
_KILL_SECONDS = 10.0
_DISK_SECONDS = 0.1  # between two looks at the folder, which are dearer than those at the tree
_DISK_PAUSES = 10  # they must leave so many times what they take
_INODE_BYTES = 4096
_CHUNK = 65536
OWN_BYTES = 64 * MIB  # what launcher and first process may take
_BOOT = (
    "import marshal,sys\n"
    "with open(int(sys.argv[1]),'rb') as f:c,p=marshal.load(f),marshal.load(f)\n"
    "g={'__name__':'launcher'}\n"
    "exec(c,g)\n"
    "g['main'](p)"
)
_OUT_OF_MEMORY = re.compile(rb"^(MemoryError\b|.*std::bad_alloc|.*[Cc]annot allocate memory|.*can't start new thread)")


class LayerError(IsolationError):
    """A step of the isolation could not be done; `step` is the launcher's name for it."""

    def __init__(self, step: str, text: str) -> None:
        super().__init__(f"sandbox: {step}: {text}; `codemill sandbox check` shows what this machine can give")
        self.step = step
        self.text = text


class CancelledRun(Exception):
    """The run was given up by whoever asked for it; its tree is dead."""


class HeadAndTail:
    """Keeps the first and the last bytes of a stream, `limit` together, and counts what is lost in between."""

    def __init__(self, limit: int) -> None:
        self._head, self._tail = bytearray(), bytearray()
        self._head_limit = (limit + 1) // 2
        self._tail_limit = limit - self._head_limit
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self._head_limit - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        # Cut only now and then: moving the tail for every chunk would cost more than reading it.
        if len(self._tail) > self._tail_limit + 16 * _CHUNK:
            self._cut()

    def _cut(self) -> None:
        excess = len(self._tail) - self._tail_limit
        if excess > 0:
            del self._tail[:excess]

    def value(self) -> bytes:
        self._cut()
        return bytes(self._head + self._tail)

    @property
    def dropped(self) -> int:
        return self.total - len(self.value())


def run_job(job: Job, policy: Policy, layers: Layers, breaches: Collection[Axis], cancel: threading.Event) -> Outcome:
    """Blocks until the job's whole tree is gone. `breaches` are the axes that `layers` were not seen to hold.

    The calling thread must live as long as the call: the kernel ties the launcher's life to it. Raises `InputError`
    for a job that cannot be set up as asked, `IsolationError` where the machine refuses a layer, `UnavailableError`
    where it is in trouble, and `CancelledRun` once `cancel` is set.
    """
    if cancel.is_set():
        raise CancelledRun
    run = _Run(job, policy, layers, cancel)
    try:
        run.start()
        run.watch()
        in_force = isolation(layers, breaches, own_user=run.own_user, address_space=policy.address_space)
        return dataclasses.replace(run.outcome(), isolation=in_force)
    finally:
        run.close()


@lru_cache(maxsize=1)
def launcher_code() -> bytes:
    path = Path(launcher.__file__)
    return marshal.dumps(compile(path.read_bytes(), "launcher", "exec"))


def why_ended(code: int, cpu: float, peak: int, stderr: bytes, policy: Policy) -> End:
    """Why a program that was not killed from here ended. A refused allocation leaves no trace but its message,
    which is the program's own word: it tells one way of failing from another and never a success."""
    if code == 0:
        return "exited"
    # By the processor limit: the kernel kills a moment before or after the count that we see reaches it.
    if code == -signal.SIGXCPU or (code < 0 and cpu >= policy.cpu_seconds):
        return "timeout"
    last = stderr.rstrip().rpartition(b"\n")[2]
    near = peak >= 0.9 * policy.memory_bytes
    if _OUT_OF_MEMORY.match(last) or (code < 0 and near):
        return "memory"
    return "exited" if code > 0 else "signal"


def memory_group(layers: Layers, limit_bytes: int) -> MemoryGroup | None:
    """A group for a tree of that much memory, beside which our own processes need some; None where there is none."""
    if not layers.memory_group:
        return None
    group = MemoryGroup.make()
    if group is None:
        raise LayerError("memory group", "no control group can be made any more")
    try:
        group.limit(limit_bytes + OWN_BYTES)
    except OSError as error:
        group.close()
        raise LayerError("memory group", str(error)) from None
    return group


def memory_file(data: bytes) -> int:
    """Bytes as a read-only descriptor, without a name on disk and without a writer that could block."""
    with _nameless_file() as out:
        out.write(data)
        out.flush()
        return os.open(f"/proc/self/fd/{out.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


def _nameless_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # not in interpreters built for old C libraries
        return open(os.memfd_create("codemill"), "wb")
    return tempfile.TemporaryFile()


class _Run:
    def __init__(self, job: Job, policy: Policy, layers: Layers, cancel: threading.Event) -> None:
        self._job, self._policy, self._layers, self._cancel = job, policy, layers, cancel
        self.own_user = False
        self._process: subprocess.Popen[bytes] | None = None
        self._group: MemoryGroup | None = None
        self._selector = selectors.DefaultSelector()
        self._owned: list[int] = []  # our ends of the pipes
        self._lent: list[int] = []  # the launcher's ends, closed as soon as it has them
        self._box: str | None = None
        self._out, self._err = HeadAndTail(policy.output_bytes), HeadAndTail(policy.output_bytes)
        self._result, self._status = bytearray(), bytearray()
        self._init: int | None = None  # process id of the tree's first process
        self._init_handle: int | None = None
        self._staged = (0, 0)
        self._created = time.monotonic()
        self._started: float | None = None
        self._stopped: float | None = None
        self._killed_at: float | None = None
        self._killed_for: End | None = None
        self._cancelled = False
        self._ended: tuple[int, float, int] | None = None
        self._failure: tuple[str, str] | None = None
        self._cpu, self._peak = 0.0, 0
        self._disk_look, self._disk_look_seconds, self._free = 0.0, 0.0, 0  # when, how long it took, and the room then

    # Starting ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        plan = build_plan(self._job, self._policy, self._layers, supervisor=os.getpid())
        self.own_user = plan["owner"] is not None
        try:
            self._spawn(plan)
        except (OSError, RuntimeError) as error:
            raise UnavailableError(
                f"sandbox: the launcher cannot be started: {error}; free memory, processes or descriptors"
            ) from None

    def _spawn(self, plan: dict[str, Any]) -> None:
        plan["workspace_fd"] = self._open_workspace()
        plan["box"] = ""
        if self._job.kept is not None:
            self._box = plan["box"] = str(self._job.kept.path)
        elif not self._layers.own_mounts:
            self._box = plan["box"] = tempfile.mkdtemp(prefix="codemill-sandbox-")
        out, err = self._pipe(self._out.add), self._pipe(self._err.add)
        plan["status"] = self._pipe(self._add_status)
        plan["result"] = self._pipe(self._add_result) if self._job.result else None
        spec = self._lend(launcher_code() + marshal.dumps(plan))
        stdin = self._lend(self._job.stdin) if self._job.stdin else subprocess.DEVNULL
        self._group = memory_group(self._layers, self._policy.memory_bytes + self._policy.disk_bytes)
        plan["group"] = self._group.join() if self._group else None
        if plan["group"] is not None:
            self._lent.append(plan["group"])
        passed = [spec, plan["status"], plan["workspace_fd"], plan["result"], plan["group"]]
        self._process = subprocess.Popen(
            [base_python(), "-I", "-S", "-B", "-c", _BOOT, str(spec)],
            stdin=stdin,
            stdout=out,
            stderr=err,
            pass_fds=[descriptor for descriptor in passed if descriptor is not None],
            env={},
            cwd="/",
            start_new_session=True,
        )
        self._close(self._lent)

    def _open_workspace(self) -> int | None:
        if self._job.workspace is None:
            return None
        try:
            descriptor = os.open(self._job.workspace, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                f"{self._job.workspace}: workspace of a sandbox job cannot be read: {error.strerror}"
            ) from None
        self._lent.append(descriptor)
        return descriptor

    def _pipe(self, take: Any) -> int:
        ours, theirs = os.pipe()
        self._owned.append(ours)
        self._lent.append(theirs)
        os.set_blocking(ours, False)
        self._selector.register(ours, selectors.EVENT_READ, take)
        return theirs

    def _lend(self, data: bytes) -> int:
        descriptor = memory_file(data)
        self._lent.append(descriptor)
        return descriptor

    # Watching ------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Until every pipe has ended and the launcher is gone."""
        assert self._process is not None
        look = time.monotonic() + _TICK
        while self._process.poll() is None:
            self._drain(max(0.0, look - time.monotonic()))
            if time.monotonic() >= look:
                self._look()
                look = time.monotonic() + _TICK
            if not self._selector.get_map():  # nothing left to hear: the launcher is about to end
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_TICK)
        # The launcher outlives the tree, so what is in the pipes now is all there will ever be.
        while self._drain(0):
            pass

    def _drain(self, seconds: float) -> bool:
        """Read what is there, for at most `seconds`; whether there was something."""
        ready = self._selector.select(seconds)
        for key, _ in ready:
            try:
                data = os.read(key.fd, _CHUNK)
            except BlockingIOError:
                continue
            if data:
                key.data(data)
            else:
                self._selector.unregister(key.fd)
        return bool(ready)

    def _add_result(self, data: bytes) -> None:
        room = self._job.result_bytes - len(self._result)
        self._result += data[:room]
        if len(data) > room:
            self._kill("output")

    def _add_status(self, data: bytes) -> None:
        self._status += data
        while b"\n" in self._status:
            line, _, rest = self._status.partition(b"\n")
            self._status = bytearray(rest)
            self._take_status(line.decode("utf-8", "replace").split(" "))

    def _take_status(self, words: list[str]) -> None:
        now = time.monotonic()
        if words[0] == "init":
            self._init = int(words[1])
            with contextlib.suppress(OSError, AttributeError):
                self._init_handle = os.pidfd_open(self._init)
        elif words[0] == "staged":
            self._staged = (int(words[1]), int(words[2]))
        elif words[0] == "exec":
            self._started = now
        elif words[0] == "ended":
            self._stopped = now
            self._ended = (int(words[1]), float(words[2]), int(words[3]))
        elif words[0] == "error" and self._failure is None:
            self._failure = (words[1], " ".join(words[2:]))

    def _look(self) -> None:
        """One look at the clock and the tree."""
        now = time.monotonic()
        if self._cancel.is_set() and not self._cancelled:
            self._cancelled = True
            self._kill(None)
        if self._killed_at is not None:
            if now - self._killed_at > _KILL_SECONDS:
                self._kill_by_hand()
            return
        if self._started is None:
            if now - self._created > _START_SECONDS and self._failure is None:
                self._failure = ("start", f"the launcher was not ready after {_START_SECONDS:.0f} s")
                self._kill(None)
            return
        if now - self._started > self._policy.wall_seconds:
            return self._kill("timeout")
        if self._ended is None:
            self._look_at_tree()

    def _look_at_tree(self) -> None:
        assert self._process is not None
        policy, root = self._policy, self._init or self._process.pid
        used = tree.usage(root, with_root=False, enough=policy.processes)
        if used.tasks > policy.processes:  # before anything that takes longer: a fork bomb must be caught early
            return self._kill("processes")
        self._cpu = max(self._cpu, used.cpu_seconds)
        resident = used.resident_bytes
        if resident > policy.memory_bytes:
            resident = tree.proportional_bytes(used.members)
        self._peak = max(self._peak, resident)
        if resident > policy.memory_bytes:
            self._kill("memory")
        elif used.cpu_seconds > policy.cpu_seconds:
            self._kill("timeout")
        if self._box is not None and self._disk_look_is_due():
            start = time.monotonic()
            self._look_at_disk(used.members)
            self._disk_look = time.monotonic()
            self._disk_look_seconds = self._disk_look - start

    def _disk_look_is_due(self) -> bool:
        """Now and then, and sooner if the disk has become fuller, by whomever. A folder of many entries makes looks long, and
        so the pauses in which a program could write as it likes: one that may have used up its room is looked at anyway."""
        assert self._box is not None
        try:
            disk = os.statvfs(self._box)
        except OSError:  # the launcher has removed it: the job has just ended
            return False
        free = disk.f_bavail * disk.f_frsize + disk.f_favail * _INODE_BYTES
        pause, less = time.monotonic() - self._disk_look, self._free - free
        if pause < _DISK_PAUSES * self._disk_look_seconds and less <= self._policy.disk_bytes:
            self._free = max(free, self._free)
            return False
        due = pause >= _DISK_SECONDS or less > self._policy.disk_bytes // 8
        self._free = free if due else max(free, self._free)
        return due

    def _look_at_disk(self, members: tuple[int, ...]) -> None:
        """Where the folder is the host's. Files of the workspace take whole blocks, like those of the job."""
        assert self._box is not None
        if self._job.kept is not None:
            limit, limit_entries = self._job.kept.limit_bytes, self._job.kept.limit_entries
        else:
            staged, entries = self._staged
            limit = self._policy.disk_bytes + staged + _INODE_BYTES * (entries + 8)
            limit_entries = self._policy.disk_bytes // _INODE_BYTES + entries + 1024
        size, count = tree.folder_use(self._box, limit, limit_entries)
        size += tree.unlinked_bytes(members)
        if size > limit or count > limit_entries:
            self._kill("disk")

    # Ending --------------------------------------------------------------------------------------------------

    def _kill(self, reason: End | None) -> None:
        """Kill the tree at once. Its first process takes everyone along; the launcher ends when all are gone."""
        if self._killed_at is not None or self._process is None:
            return
        self._killed_at = time.monotonic()
        if self._ended is None:
            self._killed_for = reason
        if self._init_handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_handle, signal.SIGKILL)
        elif self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
        elif self._layers.own_mounts:
            self._process.kill()  # its death kills the first process
        else:
            self._process.terminate()  # it kills the tree and removes the folder, and only then ends

    def _kill_by_hand(self) -> None:
        """The launcher did not do it in time."""
        assert self._process is not None
        for pid in tree.usage(self._process.pid, with_root=True).members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def outcome(self) -> Outcome:
        if self._cancelled:
            raise CancelledRun
        if self._failure is not None:
            raise self._as_error(*self._failure)
        if self._started is None or (self._ended is None and self._killed_for is None):
            text = visible(self._err.value()[-300:].decode("utf-8", "replace").strip())
            raise UnavailableError(
                f"sandbox: the launcher died without a report ({text or 'killed'}); is the machine out of memory?"
            )
        stopped = self._stopped or self._killed_at or self._started
        status, cpu, peak = self._ended or (signal.SIGKILL, 0.0, 0)
        self._cpu, self._peak = max(self._cpu, cpu), max(self._peak, peak)
        code = os.waitstatus_to_exitcode(status)
        return Outcome(
            end=self._killed_for or self._end(code),
            exit_code=code if code >= 0 and self._killed_for is None else None,
            signal=-code if code < 0 else None,
            stdout=self._out.value(),
            stderr=self._err.value(),
            stdout_dropped=self._out.dropped,
            stderr_dropped=self._err.dropped,
            result=bytes(self._result),
            seconds=stopped - self._started,
            cpu_seconds=self._cpu,
            peak_bytes=self._peak,
        )

    def _end(self, code: int) -> End:
        if code < 0 and self._group is not None and self._group.killed():
            return "memory"
        return why_ended(code, self._cpu, self._peak, self._err.value(), self._policy)

    def _as_error(self, step: str, text: str) -> Exception:
        if step == "exec":
            return NotExecutableError(f"{visible(self._job.argv[0])}: cannot be executed in the sandbox: {text}")
        if step == "files":
            return InputError(f"{self._job.workspace or 'files'}: a sandbox job's folder cannot be filled: {text}")
        if step in ("start", "limits"):
            return UnavailableError(f"sandbox: {step}: {text}; is the machine short of memory or processes?")
        return LayerError(step, text)

    def close(self) -> None:
        """Nothing survives this: no process, no descriptor, no folder."""
        if self._process is not None and self._process.poll() is None:
            self._kill(None)
            try:
                self._process.wait(_KILL_SECONDS)
            except subprocess.TimeoutExpired:
                self._kill_by_hand()
                self._process.wait()
        self._selector.close()
        if self._group is not None:
            self._group.close()
        self._close(self._owned)
        self._close(self._lent)
        if self._init_handle is not None:
            os.close(self._init_handle)
        if self._box is not None and self._job.kept is None and os.path.exists(self._box):
            with contextlib.suppress(OSError):
                launcher.remove_tree(self._box)
            shutil.rmtree(self._box, ignore_errors=True)

    @staticmethod
    def _close(descriptors: list[int]) -> None:
        while descriptors:
            os.close(descriptors.pop())
