"""Warm interpreters: what they hold, what is called in them, and the supervisor's side of one such worker."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from codemill.core.errors import InputError, UnavailableError
from codemill.sandbox import launcher, tree, zygote
from codemill.sandbox.job import RESULT_BYTES, End, Job, Outcome
from codemill.sandbox.plan import Layers, base_python, build_plan, isolation, job_limits, warm_filters
from codemill.sandbox.policy import Axis, Policy
from codemill.sandbox.supervise import (
    OWN_BYTES,
    CancelledRun,
    LayerError,
    launcher_code,
    memory_file,
    memory_group,
    why_ended,
)

_TICK = 0.02
_START_SECONDS = 60.0
_KILL_SECONDS = 10.0
_DISK_TICKS = 5
_INODE_BYTES = 4096
READABLE = "CODEMILL_READABLE"
_BOOT = (
    "import marshal,sys\n"
    "with open(int(sys.argv[1]),'rb') as f:c,z,p=marshal.load(f),marshal.load(f),marshal.load(f)\n"
    "m,s=type(sys),sys.modules\n"
    "for n in ('','.sandbox','.sandbox.launcher','.sandbox.zygote'):s['codemill'+n]=m('codemill'+n)\n"
    "l,y=s['codemill.sandbox.launcher'],s['codemill.sandbox.zygote']\n"
    "s['codemill.sandbox'].launcher=l\n"
    "exec(c,l.__dict__);exec(z,y.__dict__)\n"
    "for n in [n for n in s if n.startswith('codemill')]:del s[n]\n"
    "p['serve']=y.serve\n"
    "l.main(p)"
)
PROBE = zygote.PROBE


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """What a warm interpreter holds before it is forked for a run.

    `modules`: scripts of ours (trusted), loaded in this order as modules named by their stem. A function `prime` in one of
        them is called then: what it does need not be done for the first time in every run.
    `imports`: modules of the standard library imported beforehand.
    `readable`: further trees that its calls may read and execute, never write, as in `Job`. The environment variable
        `CODEMILL_READABLE` names them as the calls see them, a JSON list in this order.
    """

    modules: tuple[Path, ...]
    imports: tuple[str, ...] = ()
    readable: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One function of a warm interpreter's modules, run in a fresh fork with limits of its own.

    `entry`: "module:function", called with `payload`. It ends with exit code 0 when it returns and 1 when it raises.
    `policy`: its limits, instead of the sandbox's own; `disk_bytes` is the sandbox's for all calls.
    `result`: give it descriptor 3 to write up to 4 MiB of results to.
    `folder`: give it an empty private folder, as the last call always has. The first of two calls has one of its own, which
        the second cannot reach; it may hold as much as the payload and `disk_bytes` together.
    """

    entry: str
    payload: bytes
    policy: Policy | None = None
    result: bool = False
    folder: bool = False


class WorkerDied(Exception):
    """The warm interpreter is gone, without a word on how its calls ended."""


class Worker:
    """A warm interpreter in its jail. One run at a time; the thread that made it must outlive it."""

    def __init__(self, warm: Warm, policy: Policy, layers: Layers, breaches: Collection[Axis]) -> None:
        plan = build_plan(Job(argv=("warm",), readable=warm.readable), policy, layers, supervisor=os.getpid())
        moved = _out_of_the_private_folder(warm.readable, plan) if layers.own_mounts else {}
        places = [moved.get(os.path.realpath(path), str(path)) for path in warm.readable]
        plan["fixed_env"] = {**plan["fixed_env"], READABLE: json.dumps(places)}
        self._layers, self._process_others = layers, 2 if layers.namespaces and plan["owner"] is None else 0
        self._isolation = isolation(layers, breaches, own_user=plan["owner"] is not None)
        self._box = "" if layers.own_mounts else tempfile.mkdtemp(prefix="codemill-sandbox-")
        self._group = memory_group(layers, policy.memory_bytes + policy.disk_bytes)
        self._oom_kills = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._root = 0  # process id of the warm interpreter as seen from here
        self.runs = 0
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(plan, warm, theirs)

    def _spawn(self, plan: dict[str, Any], warm: Warm, theirs: socket.socket) -> subprocess.Popen[bytes]:
        status, told = os.pipe()
        environment = {key: text.replace("{box}", self._box or "/tmp") for key, text in plan["fixed_env"].items()}
        group = self._group.join() if self._group else None
        plan |= {
            "box": self._box,
            "workspace_fd": None,
            "result": None,
            "status": told,
            "control": theirs.fileno(),
            "group": group,
            "modules": [(path.stem, _module_code(path)) for path in warm.modules],
            "imports": list(warm.imports),
            **warm_filters(self._layers, plan),
        }
        spec = memory_file(launcher_code() + _zygote_code() + marshal.dumps(plan))
        try:
            process = subprocess.Popen(
                [base_python(), "-s", "-P", "-S", "-B", "-c", _BOOT, str(spec)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(spec, told, theirs.fileno(), *(() if group is None else (group,))),
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            os.close(status)
            raise UnavailableError(f"sandbox: a warm interpreter cannot be started: {error}") from None
        finally:
            for descriptor in (spec, told, group):
                if descriptor is not None:
                    os.close(descriptor)
        try:
            self._root = process.pid
            self._await_start(process, status)
        except BaseException:
            self._process = process
            self.close()
            raise
        finally:
            os.close(status)
        return process

    def _await_start(self, process: subprocess.Popen[bytes], status: int) -> None:
        deadline, text = time.monotonic() + _START_SECONDS, b""
        os.set_blocking(status, False)
        while time.monotonic() < deadline:
            try:
                data = os.read(status, 4096)
            except BlockingIOError:
                time.sleep(0.001)
                continue
            if not data:
                break
            text += data
            for line in text.split(b"\n")[:-1]:
                words = line.decode("utf-8", "replace").split(" ")
                if words[0] == "init":
                    self._root = int(words[1])
                elif words[0] == "error":
                    raise LayerError(words[1], " ".join(words[2:]))
                elif words[0] == "warm":
                    return
        process.kill()
        raise UnavailableError(f"sandbox: a warm interpreter did not start: {self._last_words()}")

    def _last_words(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 500))
        return self._errors.read().decode("utf-8", "replace").strip() or "no message"

    @property
    def busy(self) -> bool:
        """Whether a process of a call is there."""
        return bool(tree.children(self._root))

    # A run -----------------------------------------------------------------------------------------------------

    def run(self, calls: Sequence[Call], policies: Sequence[Policy], cancel: threading.Event) -> tuple[Outcome, ...]:
        """How the calls ended. Raises `WorkerDied`, `CancelledRun`, or `UnavailableError` for a machine in trouble."""
        self.runs += 1
        if self._group is not None:
            self._group.limit(sum(policy.memory_bytes for policy in policies) + policies[-1].disk_bytes + OWN_BYTES)
        try:
            self._send(calls, policies)
            watch = _Watch(self._root, policies, cancel, self._box, len(calls[0].payload))
            head = self._receive_reply(watch)
        except (OSError, EOFError) as error:
            raise WorkerDied(f"{error} ({self._last_words()})") from None
        if watch.cancelled:
            raise CancelledRun
        watch.starved = self._starved()
        if head["fault"]:
            raise UnavailableError(f"sandbox: {head['fault']}; is the machine short of memory or processes?")
        return tuple(
            self._outcome(end, policy, watch, index, head["seconds"])
            for index, (end, policy) in enumerate(zip(head["ends"], policies, strict=True))
        )

    def _send(self, calls: Sequence[Call], policies: Sequence[Policy]) -> None:
        description = [
            {
                "entry": call.entry,
                "bytes": len(call.payload),
                "limits": _call_limits(policy, self._process_others),
                "result": call.result,
                "folder": call.folder,
                "result_bytes": RESULT_BYTES,
                "output_bytes": policy.output_bytes,
            }
            for call, policy in zip(calls, policies, strict=True)
        ]
        head = json.dumps(description).encode()
        frame = b"".join((b"R", len(head).to_bytes(4, "little"), head, *(call.payload for call in calls)))
        self._control.settimeout(_START_SECONDS)
        self._control.sendall(frame)

    def _receive_reply(self, watch: _Watch) -> dict[str, Any]:
        data = bytearray()
        self._control.settimeout(_TICK)
        head: dict[str, Any] | None = None
        wanted = 4
        while len(data) < wanted:
            try:
                chunk = self._control.recv(max(65536, wanted - len(data)))
            except TimeoutError:
                if watch.look():
                    self._control.send(b"K")
                if watch.given_up():
                    raise EOFError("calls could not be killed") from None
                continue
            if not chunk:
                raise EOFError("the warm interpreter is gone")
            data += chunk
            if head is None and len(data) >= 4:
                wanted = 4 + int.from_bytes(data[:4], "little")
                if len(data) >= wanted:
                    parsed: dict[str, Any] = json.loads(data[4:wanted])
                    head, start = parsed, wanted
                    wanted += sum(sum(end["sizes"]) for end in parsed["ends"])
        assert head is not None
        for end in head["ends"]:
            end["parts"] = []
            for size in end["sizes"]:
                end["parts"].append(bytes(data[start : start + size]))
                start += size
        return head

    def _outcome(self, end: dict[str, Any], policy: Policy, watch: _Watch, index: int, seconds: float) -> Outcome:
        code = os.waitstatus_to_exitcode(end["status"])
        stdout, stderr, result = end["parts"]
        cpu, peak = max(end["cpu"], watch.cpu[index]), max(end["peak"], watch.peak[index])
        reason: End | None = watch.reasons.get(index) or (
            "output" if end["flooded"] else "memory" if code < 0 and watch.starved else None
        )
        return Outcome(
            end=reason or why_ended(code, cpu, peak, stderr, policy),
            exit_code=code if code >= 0 and reason is None else None,
            signal=-code if code < 0 else None,
            stdout=stdout,
            stderr=stderr,
            stdout_dropped=end["dropped"][0],
            stderr_dropped=end["dropped"][1],
            result=result,
            seconds=seconds,
            cpu_seconds=cpu,
            peak_bytes=peak,
            isolation=self._isolation,
        )

    def _starved(self) -> bool:
        """Whether the kernel has killed a process of this tree for lack of memory since this was last asked."""
        before, self._oom_kills = self._oom_kills, self._group.killed() if self._group else 0
        return self._oom_kills > before

    def close(self) -> None:
        """The interpreter and everything below it are gone when this returns."""
        self._control.close()
        try:
            self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._root, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        self._errors.close()
        if self._group is not None:
            self._group.close()
        for folder in (self._box, zygote.beside(self._box)) if self._box else ():
            if os.path.exists(folder):
                with contextlib.suppress(OSError):
                    launcher.remove_tree(folder)


def _out_of_the_private_folder(readable: Sequence[Path], plan: dict[str, Any]) -> dict[str, str]:
    """Other places for readable trees that lie where the calls' private folder, renewed for each of them, will be."""
    real = {os.path.realpath(path) for path in readable}
    hidden = [path for path in plan["trees"] if path in real and path.startswith("/tmp/")]
    moved = {path: f"/readable/{number}" for number, path in enumerate(hidden)}
    plan["moved"] = moved
    if plan["landlock"] is not None:
        rules = [(moved.get(path, path), access) for path, access in plan["landlock"]["rules"]]
        plan["landlock"] = {**plan["landlock"], "rules": rules}
    return moved


class _Watch:
    """Time, memory and process counts of a run, from outside; the first breach decides why its call ended."""

    def __init__(self, root: int, policies: Sequence[Policy], cancel: threading.Event, box: str, payload: int) -> None:
        self._root, self._policies, self._cancel, self._box, self._payload = root, policies, cancel, box, payload
        self._ticks = 0
        self._started = time.monotonic()
        self._killed_at: float | None = None
        self.cancelled = self.starved = False
        self.reasons: dict[int, End] = {}
        self.cpu, self.peak = [0.0] * len(policies), [0] * len(policies)

    def look(self) -> bool:
        """Whether the run has to be killed now."""
        if self._killed_at is not None:
            return False
        now = time.monotonic()
        if self._cancel.is_set():
            self.cancelled = True
        else:
            for index, policy in enumerate(self._policies):
                if now - self._started > policy.wall_seconds:
                    self.reasons[index] = "timeout"
            if not self.reasons:
                self._look_at_trees()
                self._look_at_disk()
        if self.cancelled or self.reasons:
            self._killed_at = now
            return True
        return False

    def given_up(self) -> bool:
        return self._killed_at is not None and time.monotonic() - self._killed_at > _KILL_SECONDS

    def _look_at_disk(self) -> None:
        """Where the private folders are the host's: the last call's, and the first one's if it has one."""
        self._ticks += 1
        if not self._box or self._ticks % _DISK_TICKS:
            return
        for index, folder in ((len(self._policies) - 1, self._box), (0, zygote.beside(self._box))):
            limit = self._policies[-1].disk_bytes + (self._payload if folder != self._box else 0)
            limit_entries = limit // _INODE_BYTES + 1024
            if not os.path.exists(folder):
                continue
            size, count = tree.folder_use(folder, limit, limit_entries)
            if folder == self._box:
                size += tree.unlinked_bytes(tuple(tree.children(self._root)))
            if size > limit or count > limit_entries:
                self.reasons.setdefault(index, "disk")

    def _look_at_trees(self) -> None:
        # The interpreter starts the last call first, and process ids grow. Without a pid namespace orphans of the calls
        # become its children, too: they count as the last call's.
        pids = sorted(tree.children(self._root))
        if len(self._policies) == 1 or len(pids) == 1:  # the second of two has ended
            roots = {0: pids}
        else:
            roots = {1: pids[:1] + pids[2:], 0: pids[1:2]}
        for index, pids in roots.items():
            if not pids:
                continue
            policy = self._policies[index]
            used = tree.usage(*pids, with_root=True, enough=policy.processes)
            if used.tasks > policy.processes:
                self.reasons[index] = "processes"
                return
            resident = used.resident_bytes
            if resident > policy.memory_bytes:
                resident = tree.proportional_bytes(used.members)
            self.cpu[index] = max(self.cpu[index], used.cpu_seconds)
            self.peak[index] = max(self.peak[index], resident)
            if resident > policy.memory_bytes:
                self.reasons[index] = "memory"
            elif used.cpu_seconds > policy.cpu_seconds:
                self.reasons[index] = "timeout"


@lru_cache(maxsize=1)
def _zygote_code() -> bytes:
    path = Path(zygote.__file__)
    return marshal.dumps(compile(path.read_bytes(), "zygote", "exec"))


@lru_cache(maxsize=32)
def _module_code(path: Path) -> Any:
    try:
        return compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be loaded into a warm interpreter: {error}") from None


@lru_cache(maxsize=64)
def _call_limits(policy: Policy, others: int) -> tuple[tuple[str, int, int], ...]:
    """The processor limit has one step: the first process of a namespace does not see the signal of the soft one."""
    return tuple(
        (name, hard if name == "RLIMIT_CPU" else soft, hard) for name, soft, hard in job_limits(policy, others=others)
    )
