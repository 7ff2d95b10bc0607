"""The filter, run on a small machine of our own: every rule on both architectures, without loading it."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from codemill.core.errors import IsolationError
from codemill.sandbox import seccomp

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL = "allow", "kill"


def decide(program: bytes, arch: int, number: int, *arguments: int) -> str | int:
    """What the kernel would do: allow, kill, or the error returned."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, arch, 0, *(word & (2**64 - 1) for word in padded))
    code = list(struct.iter_unpack("<HBBI", program))
    position, accumulator = 0, 0
    while True:
        operation, if_true, if_false, value = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            if value == 0x7FFF0000:
                return ALLOW
            return KILL if value == 0x80000000 else value & 0xFFFF
        else:
            true = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[operation]
            position += if_true if true else if_false


class Filter:
    def __init__(self, machine: str, **options: bool) -> None:
        fixed = {"own_mounts": True, "signals_scoped": True, "one_group": False, **options}
        self.arch, self.machine = ARCH[machine], machine
        self.program = seccomp.build(machine, **fixed)

    def __call__(self, name: str, *arguments: int) -> str | int:
        number = seccomp.numbers(self.machine, [name])[name]
        return decide(self.program, self.arch, number, *arguments)


@pytest.fixture(params=ARCH)
def machine(request: pytest.FixtureRequest) -> str:
    return request.param


def test_plain_rules(machine: str) -> None:
    run = Filter(machine)
    for name in ("ptrace", "mount", "bpf", "keyctl", "socket", "unshare", "io_uring_setup", "personality"):
        assert run(name) == errno.EPERM, name
    for name in ("clone3", "memfd_create", "shmget"):
        assert run(name) == errno.ENOSYS, name
    for number in (0, 1, 59, 221, 230, 334, 424, 451):
        if number not in seccomp._numbers_of(machine).values():
            assert decide(run.program, run.arch, number) == ALLOW, number


def test_other_machines_and_newer_calls(machine: str) -> None:
    run = Filter(machine)
    other = next(arch for name, arch in ARCH.items() if name != machine)
    for arch in (0x40000003, other, 0):
        assert decide(run.program, arch, 1) == KILL
    for number in (470, 4000, 0x40000000, 0x40000001, 0xFFFFFFFF):
        assert decide(run.program, run.arch, number) == errno.ENOSYS


def test_rules_by_argument(machine: str) -> None:
    run = Filter(machine)
    assert run("clone", 0x11) == run("clone", 0x3D0F00) == ALLOW
    for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run("clone", flag | 0x11) == errno.EPERM, hex(flag)
    assert run("socketpair", 1) == ALLOW
    assert run("socketpair", 2) == run("socketpair", 16) == errno.EPERM
    assert run("prlimit64", 0, 7) == ALLOW
    assert run("prlimit64", 1234, 7) == errno.EPERM
    assert run("setpriority", 0, 0, 5) == ALLOW
    assert run("setpriority", 0, 1234, 5) == run("setpriority", 2, 0, 5) == errno.EPERM
    assert run("ioctl", 0, 0x5401) == ALLOW
    assert run("ioctl", 0, 0x5412) == run("ioctl", 0, 0xF_0000_5412) == errno.EPERM  # the kernel takes 32 bits
    for name in ("kill", "tgkill", "chmod" if machine == "x86_64" else "fchmodat", "setsid", "fcntl"):
        assert run(name, 77, 10) == ALLOW, name


def test_rules_without_mounts(machine: str) -> None:
    run = Filter(machine, own_mounts=False)
    for name in ("fchmod", "fchmodat", "fchmodat2", "fchownat", "utimensat", "setxattr", "file_setattr"):
        assert run(name) == 0, name  # reported as done, and not done
    assert run("ioctl", 3, 0x40086602) == errno.EPERM
    assert run("inotify_add_watch") == errno.EPERM


def test_rules_without_scoped_signals(machine: str) -> None:
    run = Filter(machine, signals_scoped=False)
    run.program = run.program.replace(seccomp.OWN_PID, struct.pack("<I", 4321))
    for name in ("kill", "tgkill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        assert run(name, 4321, 9) == ALLOW
        for target in (1, 0, -1, -4321, 4322):
            assert run(name, target, 9) == errno.EPERM, (name, target)
    for command in (8, 10, 15):
        assert run("fcntl", 0, command) == errno.EPERM
    assert run("fcntl", 0, 4) == run("ioctl", 0, 0x5401) == ALLOW
    assert run("ioctl", 0, 0x8901) == run("pidfd_send_signal", 5) == errno.EPERM


def test_rules_for_one_group(machine: str) -> None:
    assert Filter(machine, one_group=True)("setsid") == Filter(machine, one_group=True)("setpgid") == errno.EPERM


def test_unknown_machines_are_refused() -> None:
    with pytest.raises(IsolationError, match="riscv64"):
        seccomp.build("riscv64", own_mounts=True, signals_scoped=True, one_group=False)


HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


def test_numbers_agree_with_the_kernel_headers(machine: str) -> None:
    header = next((Path(name) for name in HEADERS[machine] if Path(name).exists()), None)
    if header is None:
        pytest.skip(f"no kernel headers for {machine}: install linux-libc-dev")
    text = header.read_text()
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    ours = {name: number for name, number in seccomp._numbers_of(machine).items() if name in known}
    assert ours == {name: known[name] for name in ours}
    assert len(ours) > 80
