"""Shows, by trying, that each axis of isolation holds on this machine, with the layers that can be had here."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from codemill.core.errors import IsolationError, UnavailableError
from codemill.sandbox import seccomp
from codemill.sandbox.job import Job, Outcome
from codemill.sandbox.memory_group import MemoryGroup
from codemill.sandbox.plan import Layers, base_python, isolation, own_user, python_argv
from codemill.sandbox.policy import MIB, Axis, Policy
from codemill.sandbox.supervise import LayerError, run_job
from codemill.sandbox.warm import Call, Warm, Worker, WorkerDied

_TRIED = {
    Axis.FILES: "reading, changing, renaming and removing a planted file, and a look at the supervisor's /proc",
    Axis.NETWORK: "connecting to a TCP, a UDP and two Unix sockets of this machine",
    Axis.SYSCALLS: "calls that the filter must refuse",
    Axis.PRIVILEGES: "looking for a capability and for a way to gain one",
    Axis.PROCESSES: "killing a process outside, and leaving a daemon behind",
    Axis.MEMORY: "one allocation above the limit, and several processes that exceed it together",
    Axis.TIME: "sleeping through SIGTERM past the limit",
    Axis.OUTPUT: "printing too much, writing a file too large and a folder too full",
}
_REFUSED = ("unshare", "ptrace", "personality", "keyctl", "bpf", "userfaultfd", "perf_event_open", "io_uring_setup")
_ARGUMENTS = {  # harmless where they get through: watch without stopping, ask without changing
    "unshare": [0x10000000],  # a user namespace
    "ptrace": [0x4206, 1],  # PTRACE_SEIZE
    "personality": [0xFFFFFFFF],
    "keyctl": [0, 2**64 - 3],
}
_SOCKETS = (
    (socket.AF_INET, socket.SOCK_STREAM),
    (socket.AF_INET, socket.SOCK_DGRAM),
    (socket.AF_UNIX, socket.SOCK_STREAM),
    (socket.AF_UNIX, socket.SOCK_STREAM),
)
_PROBE = Path(__file__).with_name("probe.py")
_WALL_SECONDS = 30.0  # for a probe that should take a tenth of a second; the machine may be very busy


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """`breaches` says, for each axis that does not hold, what got through; `missing` why a layer is not there."""

    layers: Layers
    breaches: dict[Axis, str]
    missing: dict[str, str]

    def isolation(self) -> dict[str, str]:
        """Axis to what enforces it. An axis with a breach is enforced by "nothing", whatever was loaded."""
        return isolation(self.layers, self.breaches, own_user=own_user(self.layers))

    def report(self) -> list[dict[str, Any]]:
        rows = []
        for axis, enforced_by in self.isolation().items():
            held = Axis(axis) not in self.breaches
            detail = f"withstood {_TRIED[Axis(axis)]}" if held else self.breaches[Axis(axis)]
            rows.append({"axis": axis, "enforced_by": enforced_by, "witnessed": held, "detail": detail})
        return rows

    def demand(self, axes: frozenset[Axis]) -> None:
        """Raise `IsolationError` unless all of `axes` hold."""
        for axis in sorted(axes & set(self.breaches)):
            missing = "; ".join(f"no {layer}: {why}" for layer, why in self.missing.items()) or "all layers loaded"
            raise IsolationError(
                f"sandbox: isolation of {axis.value} is required but does not hold here: {self.breaches[axis]} "
                f"({missing}); {_way_out(axis)}, or leave {axis.value!r} out of the policy's require and say so"
            )


def _way_out(axis: Axis) -> str:
    if axis in (Axis.MEMORY, Axis.TIME, Axis.OUTPUT):
        return "run where /proc is readable and processes can be signalled"
    return "allow unprivileged user namespaces, or use Linux 6.2 or later with Landlock and seccomp enabled"


@cache
def examine(wanted: Layers) -> Witness:
    """Find which of the wanted layers can be had, then attack every axis. Takes a moment; kept for the process."""
    if sys.platform != "linux":
        raise IsolationError(f"sandbox: needs Linux, this is {sys.platform}; run codemill in a Linux machine")
    layers, missing = _offered(wanted)
    while True:
        try:
            breaches = _attack(layers)
            break
        except LayerError as error:
            weaker = _without(layers, error.step)
            if weaker == layers:
                raise
            missing[error.step] = error.text
            layers = weaker
    return Witness(layers=layers, breaches=breaches, missing=missing)


def landlock_abi() -> int:
    """The version of Landlock that the kernel offers, 0 for none."""
    version: int = ctypes.CDLL(None).syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(0, version)


def _offered(wanted: Layers) -> tuple[Layers, dict[str, str]]:
    missing = {}
    if not wanted.namespaces:
        missing["namespaces"] = "not wanted"
    elif not wanted.mounts:
        missing["mounts"] = "not wanted"
    abi = min(wanted.landlock, landlock_abi())
    if abi == 0:
        missing["landlock"] = "the kernel does not offer it" if wanted.landlock else "not wanted"
    group = MemoryGroup.make() if wanted.memory_group else None
    if group is None:
        missing["memory group"] = "no control group can be made here" if wanted.memory_group else "not wanted"
    else:
        group.close()
    machine = os.uname().machine
    filtered = wanted.seccomp and seccomp.supported(machine)
    if not filtered:
        missing["seccomp"] = f"no filter for {machine}" if wanted.seccomp else "not wanted"
    return dataclasses.replace(wanted, landlock=abi, seccomp=filtered, memory_group=group is not None), missing


def _without(layers: Layers, step: str) -> Layers:
    weaker = {
        "namespaces": dataclasses.replace(layers, namespaces=False, mounts=False),
        "mounts": dataclasses.replace(layers, mounts=False),
        "landlock": dataclasses.replace(layers, landlock=0),
        "seccomp": dataclasses.replace(layers, seccomp=False),
        "memory group": dataclasses.replace(layers, memory_group=False),
        "users": dataclasses.replace(layers, users=False),
    }
    return weaker.get(step, layers)


def _attack(layers: Layers) -> dict[Axis, str]:
    """All attacks, each from a job and from a call of a warm interpreter, on threads that outlive them."""
    attacks = (_break_out, _exceed_memory, _exceed_time, _exceed_output)
    breaches: dict[Axis, str] = {}
    with ThreadPoolExecutor(len(attacks)) as pool:
        futures = [pool.submit(attack, layers, warm) for attack in attacks for warm in (False, True)]
        problems = [error for future in futures if (error := future.exception()) is not None]
        for error in sorted(problems, key=lambda problem: not isinstance(problem, LayerError)):
            raise error
        for future in futures:
            breaches.update(future.result())
    return breaches


def _run(function: str, payload: bytes, token: str, policy: Policy, layers: Layers, warm: bool) -> tuple[Outcome, bool]:
    """A function of the probe as a job or as a call; its outcome, and whether something of it still runs afterwards."""
    if warm:
        worker = Worker(Warm(modules=(_PROBE,)), policy, layers, ())
        try:
            call = Call(entry=f"probe:{function}", payload=payload, result=True)
            (outcome,) = worker.run((call,), (policy,), threading.Event())
            return outcome, worker.busy
        except WorkerDied as error:
            raise UnavailableError(f"sandbox: a warm interpreter died under the probe: {error}") from None
        finally:
            worker.close()
    script = f"import probe, sys\nprobe.{function}(sys.stdin.buffer.read())\n"
    job = Job(
        argv=python_argv("start.py", token),
        files={"probe.py": _PROBE.read_bytes(), "start.py": f"import sys\nsys.path.append('.')\n{script}".encode()},
        stdin=payload,
        result=True,
    )
    outcome = run_job(job, policy, layers, (), threading.Event())
    return outcome, _still_runs(token)


def _break_out(layers: Layers, warm: bool) -> dict[Axis, str]:
    policy = Policy(wall_seconds=_WALL_SECONDS, memory_bytes=256 * MIB)
    token = secrets.token_hex(8)
    with _targets(token) as targets:
        before = targets.state()
        payload = json.dumps({**targets.names, "memory": policy.memory_bytes}).encode()
        outcome, left = _run("main", payload, token, policy, layers, warm)
        try:
            found: dict[str, list[str]] = json.loads(outcome.result)
        except ValueError:
            text = outcome.stderr[-300:].decode("utf-8", "replace").strip()
            raise UnavailableError(f"sandbox: the probe ended ({outcome.end}) without a report: {text}") from None
        if targets.state() != before:
            found["files"].append("changed or removed a planted file")
        if targets.decoy.poll() is not None:
            found["processes"].append("killed a process outside")
        if left:
            found["processes"].append("left a daemon running")
    return {Axis(axis): ", ".join(dict.fromkeys(what)) for axis, what in found.items() if what}


@dataclass(frozen=True, slots=True)
class _Targets:
    """Things planted outside the sandbox for the probe to reach for."""

    names: dict[str, Any]
    secret: Path
    decoy: subprocess.Popen[bytes]

    def state(self) -> object:
        """Everything an attack could change; the change time gives away even what was put back."""
        try:
            status, folder = self.secret.stat(), self.secret.parent.stat()
        except OSError as error:
            return error.errno
        return status.st_mode, status.st_size, status.st_ctime_ns, folder.st_ctime_ns, self.secret.read_bytes()


@contextmanager
def _targets(token: str) -> Iterator[_Targets]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codemill-witness-")))
        secret = folder / "secret"
        secret.write_text(token)
        tcp, udp, unix, abstract = (stack.enter_context(socket.socket(*kind)) for kind in _SOCKETS)
        for plain in (tcp, udp):
            plain.bind(("127.0.0.1", 0))
        unix.bind(str(folder / "socket"))
        abstract.bind(f"\0codemill-{token}")
        for listener in (tcp, unix, abstract):
            listener.listen()
        decoy = subprocess.Popen(
            [base_python(), "-I", "-S", "-c", "import time; time.sleep(120)"],
            stdin=subprocess.DEVNULL,
            env={},
        )
        stack.callback(decoy.wait)
        stack.callback(decoy.kill)
        names = {
            "secret": str(secret),
            "folder": str(folder),
            "supervisor": os.getpid(),
            "decoy": decoy.pid,
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "unix": str(folder / "socket"),
            "abstract": f"codemill-{token}",
            "syscalls": seccomp.numbers(os.uname().machine, _REFUSED),
            "arguments": {name: (words + [0] * 6)[:6] for name, words in _ARGUMENTS.items()},
        }
        yield _Targets(names, secret, decoy)


def _still_runs(token: str) -> bool:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if token.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    return True
    return False


_SHARE_MEMORY = """
import os, time
for _ in range(4):
    if os.fork() == 0:
        break
block = bytearray(64 << 20)
for place in range(0, len(block), 4096):
    block[place] = 1
time.sleep(20)
"""

_SLEEP = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(20)
"""

_FILL = """
import os, sys, time
os.write(1, b"x" * 65536)
try:
    with open("large", "wb", buffering=0) as out:
        for _ in range(64):
            out.write(bytes(4096))
    print("one file of any size", file=sys.stderr)
except OSError:
    pass
try:
    for number in range(64):
        with open(f"{number}", "wb", buffering=0) as out:
            out.write(bytes(65536))
except OSError:
    sys.exit(0)
time.sleep(20)
"""


def _exceed(text: str, policy: Policy, layers: Layers, warm: bool) -> Outcome:
    return _run("execute", text.encode(), secrets.token_hex(8), policy, layers, warm)[0]


def _exceed_memory(layers: Layers, warm: bool) -> dict[Axis, str]:
    outcome = _exceed(_SHARE_MEMORY, Policy(memory_bytes=128 * MIB, wall_seconds=_WALL_SECONDS), layers, warm)
    return {} if outcome.end == "memory" else {Axis.MEMORY: f"several processes used too much ({outcome.end})"}


def _exceed_time(layers: Layers, warm: bool) -> dict[Axis, str]:
    outcome = _exceed(_SLEEP, Policy(wall_seconds=0.2), layers, warm)
    held = outcome.end == "timeout" and outcome.seconds < 15
    return {} if held else {Axis.TIME: f"a program outstayed its time ({outcome.end}, {outcome.seconds:.1f} s)"}


def _exceed_output(layers: Layers, warm: bool) -> dict[Axis, str]:
    policy = Policy(output_bytes=4096, file_bytes=65536, disk_bytes=MIB, wall_seconds=_WALL_SECONDS)
    outcome = _exceed(_FILL, policy, layers, warm)
    problems = [line.decode("utf-8", "replace") for line in outcome.stderr.splitlines()]
    if len(outcome.stdout) > 4096 or outcome.stdout_dropped != 65536 - 4096:
        problems.append("what was printed was not cut")
    if outcome.end != "disk" and not (outcome.end == "exited" and outcome.exit_code == 0):
        problems.append(f"a folder too full ({outcome.end})")
    return {Axis.OUTPUT: ", ".join(problems)} if problems else {}
