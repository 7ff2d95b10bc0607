"""Runs inside the jail as its first process: a warm interpreter that forks one fresh process for every call.

What is dear happens once: the launcher has made the namespaces and the private root, the modules are loaded, the file
rules are built, the privileges that no call needs are gone. A call then costs a fork into a pid namespace of its own, its
limits, the file rules and the system-call filter, and nothing that it did outlasts it. This process reads no output
of a call for its meaning, and a call finds nothing of another's in the memory it inherits: payloads are received
into mappings that are gone before the next fork.

Frames on the control socket, from the supervisor: `R`, a length, a JSON description of the calls, then their payloads.
Back: a length, a JSON list of how the calls ended, then what they wrote. `K` in between kills what runs.
"""

# ruff: noqa: SIM105 - contextlib would be the most expensive import of all

from __future__ import annotations

import _signal
import _socket
import fcntl
import gc
import json
import mmap
import os
import resource
import select
import sys
import time

from codemill.sandbox import launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_NEW_PID, _NEW_MOUNTS = 0x20000000, 0x00020000
_CHUNK = 65536
_TOGETHER_MILLISECONDS = 50
_MADV_DOFORK = 11
PROBE = "zygote:nothing"  # a call that cannot fail, to tell a sick machine from a sick answer
_ABOVE = 16
_FIRST_FREE = 5  # descriptors of a call: standard ones, 3 its results, 4 its peer


class _Zygote:
    """What the calls share: their folder, the file rules, the modules."""

    def __init__(self, plan: launcher.Plan, folder: str) -> None:
        self.plan, self.folder = plan, folder
        self.work = folder + launcher.WORK
        self.control = _socket.socket(fileno=_out_of_the_way(plan["control"]))
        plan["status"] = _out_of_the_way(plan["status"])
        self.own_pids = _out_of_the_way(plan["own_pids"]) if plan["namespaces"] else -1
        null = fcntl.fcntl(os.open("/dev/null", os.O_RDWR), fcntl.F_DUPFD_CLOEXEC, _ABOVE)
        for place in (0, 1, 3, 4):  # so that whatever is opened from now on lies above the places of a call
            os.dup2(null, place, inheritable=False)
        os.closerange(_FIRST_FREE, _ABOVE)
        self.entries: dict[str, Callable[..., object]] = {PROBE: len}
        self.rules: list[int] = []
        self.clean: tuple[Any, ...] = ()
        self.limits: dict[str, list[tuple[int, tuple[int, int]]]] = {}
        self.filter: Any = None
        self.scratch = unshared_memory(_CHUNK)
        self.processors = os.sched_getaffinity(0)

    def load(self) -> None:
        """Import and run the trusted modules; the functions that calls name are found in them."""
        for name in self.plan["imports"]:
            __import__(name)
        for name, code in self.plan["modules"]:
            module = sys.modules[name] = type(sys)(name)
            exec(code, module.__dict__)  # noqa: S102 - our own code, sent by the supervisor
            for key, value in list(module.__dict__.items()):
                if callable(value):
                    self.entries[f"{name}:{key}"] = value
        for name, _ in self.plan["modules"]:
            prime = self.entries.get(f"{name}:prime")
            if prime is not None:  # done once here is half done in every fork
                prime()

    def drop_rights(self) -> None:
        """Once for all calls: no way to gain a privilege, nothing in the bounding set."""
        launcher.drop_bounding_set()
        launcher.forbid_new_privileges()
        launcher.resolve_symbols()
        if self.plan["own_seccomp"] is not None:
            launcher.filter_calls(self.plan["own_seccomp"], self.plan["own_pid"])
        if self.plan["seccomp"] is not None and self.plan["own_pid"] not in self.plan["seccomp"]:
            self.filter = launcher.filter_header(self.plan["seccomp"])

    def prepare_folder(self) -> None:
        """The file rules name the folder itself, so a new folder needs new rules."""
        for descriptor in self.rules:
            os.close(descriptor)
        landlock = self.plan["landlock"]
        folders = [] if landlock is None else [self.folder, None]
        self.rules = [launcher.landlock_rules(landlock, folder) for folder in folders]
        self.clean = self._look()

    def _look(self) -> tuple[Any, ...]:
        """All that a call could leave behind in its folder, contents of files apart: those are names here."""
        seen: list[Any] = []
        for path in (self.folder, self.work):
            status = os.lstat(path)
            seen += [sorted(os.listdir(path)), os.listxattr(path), status.st_mode, status.st_uid]
            seen += [status.st_mtime_ns, status.st_ctime_ns]
        return tuple(seen)

    def renew_folder(self) -> None:
        """An empty folder for the next call."""
        try:
            if self._look() == self.clean:
                return
        except OSError:
            pass
        if self.plan["mounts"]:
            launcher.mount_private(self.folder, self.plan["disk_bytes"])
        else:
            launcher.empty_tree(self.folder)
        os.mkdir(self.work, 0o700)
        if self.plan["owner"] is not None:
            launcher.give(self.folder, self.plan["owner"])
        self.prepare_folder()

    def make_folder_beside(self, payload: int) -> tuple[str, int | None]:
        """In the fork of a first call: a working folder that the second call cannot reach, and the file rules for it.

        With mounts it is in a mount table of its own and goes with the call; without, it has a name that the other's file
        rules do not hold.
        """
        folder, size = self.folder, self.plan["disk_bytes"] + 2 * payload
        if self.plan["mounts"]:
            launcher.unshare("mounts", _NEW_MOUNTS)
            launcher.mount_private(folder, size)
        else:
            folder = beside(folder)
            os.mkdir(folder, 0o700)
        os.mkdir(folder + launcher.WORK, 0o700)
        if self.plan["owner"] is not None:
            launcher.give(folder, self.plan["owner"])
        landlock = self.plan["landlock"]
        return folder + launcher.WORK, None if landlock is None else launcher.landlock_rules(landlock, folder)

    def remove_folder_beside(self) -> None:
        if not self.plan["mounts"]:
            launcher.remove_tree(beside(self.folder))

    def limits_of(self, call: dict[str, Any]) -> list[Any]:
        """The limits of a call as the system wants them, no higher than this process's own."""
        if not self.plan["namespaces"]:
            return []
        key = repr(call["limits"])
        if key not in self.limits:
            found = []
            for name, *pair in call["limits"]:
                number = getattr(resource, name)
                ceiling = resource.getrlimit(number)[1]
                soft, hard = (v if ceiling == resource.RLIM_INFINITY else min(v, ceiling) for v in pair)
                if (soft, hard) != resource.getrlimit(number):
                    found.append((number, (soft, hard)))
            self.limits = {key: found, **dict(list(self.limits.items())[:16])}
        return self.limits[key]

    def fork(self) -> int:
        """As `os.fork`, into a new pid namespace where there are namespaces."""
        if not self.plan["namespaces"]:
            return os.fork()
        launcher.unshare("namespaces", _NEW_PID)
        try:
            child = os.fork()
        except OSError:
            launcher.enter_namespace(self.own_pids, _NEW_PID)
            raise
        if child:
            launcher.enter_namespace(self.own_pids, _NEW_PID)
        return child


def beside(folder: str) -> str:
    """The first call's private folder where there are no mounts and `folder` is the last call's."""
    return folder + "-beside"


def _out_of_the_way(descriptor: int) -> int:
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    os.close(descriptor)
    return copy


class _Ends:
    """The supervisor-side ends of one call, and what came out of them."""

    def __init__(self, call: dict[str, Any], zygote: _Zygote) -> None:
        self.call, self.scratch = call, zygote.scratch
        self.beside = False  # whether it has a private folder beside that of the last call
        self.limits = zygote.limits_of(call)
        self.payload = unshared_memory(call["bytes"])  # inherited by this call's fork only
        self.pid = self.handle = -1
        self.status: int | None = None
        self.usage: tuple[float, int] = (0.0, 0)
        self.flooded = False
        self.streams: dict[int, _Stream] = {}
        limit = call["output_bytes"]
        self.out, self.err = _Stream(limit), _Stream(limit)
        self.result = _Stream(call["result_bytes"])

        self.theirs = self._open()  # the call's ends: output, errors, results or -1; a peer is added

    def receive(self, control: _socket.socket) -> None:
        with memoryview(self.payload) as buffer:
            _receive(control, buffer[: self.call["bytes"]])

    def _open(self) -> list[int]:
        theirs = []
        for stream in (self.out, self.err, self.result):
            if stream is self.result and not self.call["result"]:
                theirs.append(-1)
                continue
            ours, other = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(ours, False)
            self.streams[ours] = stream
            theirs.append(other)
        return theirs

    def read(self, descriptor: int) -> bool:
        """Take what is there; False at the end."""
        with memoryview(self.scratch) as scratch:
            try:
                count = os.readv(descriptor, [scratch])
            except BlockingIOError:
                return True
            if not count:
                os.close(descriptor)
                del self.streams[descriptor]
                return False
            stream = self.streams[descriptor]
            with scratch[:count] as data:
                stream.add(data)
        if stream is self.result and stream.dropped:
            self.flooded = True
        return True

    def close(self) -> None:
        for descriptor in list(self.streams):
            while self.read(descriptor) and descriptor in self.streams:
                if not select.select([descriptor], [], [], 0)[0]:
                    os.close(descriptor)
                    del self.streams[descriptor]
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


class _Stream:
    """The first and the last bytes of what was written, `limit` together, in memory that no fork inherits: what one call
    writes, a report of a judge above all, must not lie in the memory of the next."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total = limit, 0
        self.half = (limit + 1) // 2
        self.buffer: mmap.mmap | None = None

    def add(self, data: memoryview) -> None:
        if self.buffer is None:
            self.buffer = unshared_memory(self.limit)
        with memoryview(self.buffer) as buffer:
            while data:
                if self.total < self.half:
                    at, room = self.total, self.half - self.total
                else:  # a ring behind the first half
                    size = self.limit - self.half
                    if not size:
                        self.total += len(data)
                        return
                    at = self.half + (self.total - self.half) % size
                    room = self.limit - at
                count = min(room, len(data))
                buffer[at : at + count] = data[:count]
                self.total += count
                data = data[count:]

    @property
    def dropped(self) -> int:
        return max(0, self.total - self.limit)

    def ranges(self) -> list[tuple[int, int]]:
        """What is kept, in order, as parts of the buffer."""
        if self.total <= self.limit:
            return [(0, self.total)] if self.total else []
        size = self.limit - self.half
        cut = self.half + ((self.total - self.half) % size if size else 0)
        return [(0, self.half), (cut, self.limit), (self.half, cut)]


def unshared_memory(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, max(1, size))
    memory.madvise(mmap.MADV_DONTFORK)
    return memory


def serve(plan: launcher.Plan, folder: str) -> NoReturn:
    """Answer the supervisor's frames until it hangs up."""
    zygote = _Zygote(plan, folder)
    zygote.load()
    zygote.drop_rights()
    zygote.prepare_folder()
    gc.collect()
    gc.freeze()  # what is here is shared with every call; the collector must not touch, and so copy, it
    launcher.tell(plan, "warm")
    try:
        while True:
            kind = zygote.control.recv(1)
            if not kind:
                break
            if kind == b"R":
                _run(zygote)
    except ConnectionError:
        pass
    if not plan["namespaces"]:  # the supervisor may be gone in the middle of a run
        launcher.kill_descendants(plan)
        launcher.remove_tree(plan["box"])
        launcher.remove_tree(beside(plan["box"]))
    os._exit(0)  # as the first process of its namespace it takes every other along


def _receive(control: _socket.socket, buffer: Any) -> None:
    view = memoryview(buffer)
    while view:
        count = control.recv_into(view)
        if not count:
            raise ConnectionError
        view = view[count:]


def _run(zygote: _Zygote) -> None:
    control = zygote.control
    length = bytearray(4)
    _receive(control, length)
    description = bytearray(int.from_bytes(length, "little"))
    _receive(control, description)
    calls = json.loads(description)
    runs = [_Ends(call, zygote) for call in calls]
    for run in runs:
        run.receive(control)
    runs[0].beside = len(runs) == 2 and runs[0].call["folder"]
    peers = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM) if len(calls) == 2 else ()
    for run, peer in zip(runs, peers, strict=False):
        run.theirs.append(peer.fileno())
    if peers:
        # The two take turns: a wake-up on the same processor costs a fraction of one across.
        os.sched_setaffinity(0, {launcher.current_processor()})
    watch = _Watch(zygote, runs)
    started = time.monotonic()
    fault = _start(zygote, runs)
    for peer in peers:
        peer.close()
    if peers:
        os.sched_setaffinity(0, zygote.processors)
    watch.until_all_are_gone(kill=bool(fault))
    seconds = time.monotonic() - started
    zygote.renew_folder()
    if runs[0].beside:
        zygote.remove_folder_beside()
    _reply(control, runs, seconds, fault)


def _start(zygote: _Zygote, runs: list[_Ends]) -> str:
    """Fork the calls, the last one first. Returns what went wrong, if something did.

    As little as possible happens from the first fork on: whatever this process writes to then has to be copied by page.
    """
    fault = ""
    try:
        for run in reversed(runs):
            run.payload.madvise(_MADV_DOFORK)
            run.pid = zygote.fork()
            if run.pid == 0:
                _become_call(zygote, run, private=run is runs[-1])
            run.payload.close()  # before the next fork
    except (OSError, launcher.Failed) as error:
        fault = str(error) or type(error).__name__
    for run in runs:
        run.payload.close()
        for descriptor in run.theirs[:3]:
            if descriptor >= 0:
                os.close(descriptor)
        if run.pid > 0:
            run.handle = os.pidfd_open(run.pid)
    return fault


class _Watch:
    """Waits for what the calls write and for their ends."""

    def __init__(self, zygote: _Zygote, runs: list[_Ends]) -> None:
        self.zygote, self.runs = zygote, runs
        self.poll = select.poll()
        self.control = zygote.control.fileno()
        self.poll.register(self.control, select.POLLIN)
        self.owners: dict[int, _Ends] = {}
        for run in runs:
            for descriptor in run.streams:
                self.owners[descriptor] = run
                self.poll.register(descriptor, select.POLLIN)

    def until_all_are_gone(self, *, kill: bool) -> None:
        """The first one's end, or the supervisor's order, ends the others."""
        for run in self.runs:
            if run.handle >= 0:
                self.owners[run.handle] = run
                self.poll.register(run.handle, select.POLLIN)
        if kill:
            _kill(self.runs)
        left = sum(run.handle >= 0 for run in self.runs)
        patience = _TOGETHER_MILLISECONDS if len(self.runs) == 2 else None
        while left:
            ready = self.poll.poll(patience)
            if not ready:
                patience = None
                _let_go(self.zygote, self.runs)
            for descriptor, _ in ready:
                left -= self._take(descriptor)
        if not self.zygote.plan["namespaces"]:
            launcher.kill_descendants(self.zygote.plan)
        for run in self.runs:
            run.close()

    def _take(self, descriptor: int) -> bool:
        """Handle one event; whether a call has ended with it."""
        if descriptor == self.control:
            if self.zygote.control.recv(1) != b"K":
                raise ConnectionError
            _kill(self.runs)
            return False
        run = self.owners[descriptor]
        if descriptor == run.handle:
            self.poll.unregister(descriptor)
            _, run.status, usage = os.wait4(run.pid, 0)
            run.usage = (usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
            if run is self.runs[0]:
                _kill(self.runs)
            return True
        if not run.read(descriptor):
            self.poll.unregister(descriptor)
        elif run.flooded and run.status is None:
            _kill([run])
        return False


def _let_go(zygote: _Zygote, runs: list[_Ends]) -> None:
    """What takes longer may run wherever there is room."""
    for run in runs:
        if run.status is None:
            try:
                os.sched_setaffinity(run.pid, zygote.processors)
            except OSError:
                pass


def _kill(runs: list[_Ends]) -> None:
    for run in runs:
        if run.handle >= 0 and run.status is None:
            try:
                _signal.pidfd_send_signal(run.handle, _signal.SIGKILL)
            except ProcessLookupError:
                pass


def _reply(control: _socket.socket, runs: list[_Ends], seconds: float, fault: str) -> None:
    streams = [(run.out, run.err, run.result) for run in runs]
    ends = [
        {
            "status": run.status,
            "cpu": run.usage[0],
            "peak": run.usage[1],
            "flooded": run.flooded,
            "sizes": [min(stream.total, stream.limit) for stream in three],
            "dropped": [stream.dropped for stream in three],
        }
        for run, three in zip(runs, streams, strict=True)
    ]
    head = json.dumps({"ends": ends, "seconds": seconds, "fault": fault}).encode()
    control.sendall(len(head).to_bytes(4, "little") + head)
    for stream in (stream for three in streams for stream in three):
        if stream.buffer is not None:
            with memoryview(stream.buffer) as buffer:
                for start, end in stream.ranges():
                    control.sendall(buffer[start:end])
            stream.buffer.close()


# The call --------------------------------------------------------------------------------------------------------


def _become_call(zygote: _Zygote, run: _Ends, *, private: bool) -> NoReturn:
    """In the fork: take the locks on, then run the function. Never returns."""
    code, leave, write = 125, os._exit, os.write  # what is called may change the modules
    try:
        data = run.payload[: run.call["bytes"]]
        run.payload.close()
        _enter(zygote, run, private)
        code = 1
        code = _run_entry(zygote.entries[run.call["entry"]], data)
    except BaseException as error:
        try:
            write(2, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
        except OSError:
            pass
    finally:
        leave(code)


def _enter(zygote: _Zygote, run: _Ends, private: bool) -> None:
    plan = zygote.plan
    os.setsid()
    work, rules = zygote.work if private else "/", zygote.rules[not private] if zygote.rules else None
    if run.beside:
        work, rules = zygote.make_folder_beside(run.call["bytes"])
    os.chdir(work)
    for place, end in enumerate(run.theirs, 1):
        if end >= 0:
            os.dup2(end, place)
        else:
            os.close(place)
    if len(run.theirs) < 4:
        os.close(4)
    if not plan["mounts"]:
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    if plan["namespaces"]:
        for number, pair in run.limits:
            resource.setrlimit(number, pair)
    else:
        launcher.set_limits(run.call["limits"], counted_alone=False)
    if plan["owner"] is not None:
        launcher.become_user(plan["owner"])
    launcher.drop_capabilities()
    if rules is not None:
        launcher.landlock_restrict(rules)
    if zygote.filter is not None:
        launcher.load_filter(zygote.filter)
    elif plan["seccomp"] is not None:
        launcher.filter_calls(plan["seccomp"], plan["own_pid"])
    launcher.close_from(_FIRST_FREE)


def _run_entry(entry: Callable[[bytes], object], data: bytes) -> int:
    try:
        entry(data)
        return 0
    except SystemExit as leaving:
        return leaving.code & 255 if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:  # closed, or replaced by what was called
                pass
