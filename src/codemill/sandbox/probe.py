"""Runs inside the sandbox and tries to break out; writes what it managed, by axis, to descriptor 3.

Standard input, or the payload of a call, names the targets. An attempt that succeeds is a breach; where the attempt
would change something, the witness outside looks at the thing itself and takes no word from here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SILENT = (OSError, MemoryError, OverflowError)


def main(payload: bytes) -> None:
    target = json.loads(payload)
    attacks: dict[str, Callable[[dict[str, Any]], list[str]]] = {
        "files": _files,
        "network": _network,
        "syscalls": _syscalls,
        "privileges": _privileges,
        "memory": _memory,
        "processes": _processes,
    }
    breaches = {axis: attack(target) for axis, attack in attacks.items()}
    os.write(3, json.dumps(breaches).encode())


def _files(target: dict[str, Any]) -> list[str]:
    secret, folder, found = target["secret"], target["folder"], []
    names = {"": secret, "through /proc/self/root": "/proc/self/root" + secret, "by a symbolic link": "link"}
    names["by .."] = "../" * 12 + secret.lstrip("/")
    names["by a hard link"] = "hard"
    with contextlib.suppress(OSError):
        os.symlink(secret, "link")
    with contextlib.suppress(OSError):
        os.link(secret, "hard")
    for how, name in names.items():
        with contextlib.suppress(OSError), open(name, "rb") as handle:
            handle.read(1)
            found.append(f"read a planted file {how}".strip())
    with contextlib.suppress(OSError):
        os.listdir(folder)
        found.append("listed a folder outside")
    for name in ("environ", "mem", "maps"):
        with contextlib.suppress(OSError), open(f"/proc/{target['supervisor']}/{name}", "rb") as handle:
            if os.path.exists(f"/proc/{os.getpid()}/stat"):
                handle.read(1)
                found.append(f"opened the supervisor's /proc/.../{name}")
    changes: list[Callable[[], object]] = [
        lambda: open(secret, "ab").close(),
        lambda: os.close(os.open(secret, os.O_RDONLY | os.O_TRUNC)),
        lambda: os.truncate(secret, 0),
        lambda: os.chmod(secret, 0o777),
        lambda: os.utime(secret, (0, 0)),
        lambda: os.setxattr(secret, "user.codemill", b"x"),
        lambda: os.mkdir(folder + "/made"),
        lambda: os.symlink("x", folder + "/link"),
        lambda: os.rename(secret, "moved"),
        lambda: os.unlink(secret),
    ]
    for change in changes:  # the witness looks at the file
        with contextlib.suppress(OSError):
            change()
    return found


def _network(target: dict[str, Any]) -> list[str]:
    places: list[tuple[str, int, int, Any]] = [
        ("TCP", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", target["tcp"])),
        ("UDP", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", target["udp"])),
        ("a Unix socket", socket.AF_UNIX, socket.SOCK_STREAM, target["unix"]),
        ("an abstract Unix socket", socket.AF_UNIX, socket.SOCK_STREAM, "\0" + target["abstract"]),
    ]
    found = []
    for name, family, kind, address in places:
        with contextlib.suppress(OSError), socket.socket(family, kind) as attempt:
            attempt.settimeout(1)
            attempt.connect(address)
            attempt.send(b"x")
            found.append(f"reached the machine by {name}")
    return found


def _syscalls(target: dict[str, Any]) -> list[str]:
    """Each is refused outright, with an error that says so, and not for a wrong argument."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = [] if libc.prctl(21, 0, 0, 0, 0) == 2 else ["no system call filter is loaded"]  # PR_GET_SECCOMP
    for name, number in target["syscalls"].items():
        ctypes.set_errno(0)
        arguments = [ctypes.c_ulong(word) for word in target["arguments"].get(name, [0] * 6)]
        result = libc.syscall(ctypes.c_long(number), *arguments)
        if result >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
            found.append(f"{name} was not refused")
    return found


def _privileges(target: dict[str, Any]) -> list[str]:
    libc, found = ctypes.CDLL(None, use_errno=True), []
    if libc.prctl(39, 0, 0, 0, 0) != 1:  # PR_GET_NO_NEW_PRIVS
        found.append("new privileges can be gained by executing a program")
    # An ordinary user cannot empty the bounding set, and needs not: without new privileges nothing is gained from it.
    bounding = any(libc.prctl(23, capability, 0, 0, 0) == 1 for capability in range(64))  # PR_CAPBSET_READ
    if bounding and os.getuid() == 0:
        found.append("the capability bounding set is not empty")
    header, sets = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if libc.capget(header, sets) != 0 or any(sets.raw):
        found.append("capabilities are held")
    if os.getuid() != 0:
        with contextlib.suppress(OSError):
            os.setuid(0)
            found.append("became root")
    return found


def _memory(target: dict[str, Any]) -> list[str]:
    with contextlib.suppress(*_SILENT):
        bytearray(2 * target["memory"])
        return ["one allocation of twice the limit"]
    return []


def _processes(target: dict[str, Any]) -> list[str]:
    """Kill a decoy and leave a daemon behind: the witness looks for both."""
    if target["decoy"] != os.getpid():
        with contextlib.suppress(OSError):
            os.kill(target["decoy"], signal.SIGKILL)
    if os.fork() == 0:
        with contextlib.suppress(OSError):
            os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        os._exit(0)
    return []


def execute(payload: bytes) -> None:
    """A small attack that the witness sends as text."""
    exec(compile(payload, "probe.py", "exec"), {"__name__": "probe"})  # noqa: S102


if __name__ == "__main__":
    main(sys.stdin.buffer.read())
