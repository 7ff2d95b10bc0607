"""Programs that want out. Whatever a program says about its success, the thing attacked is looked at as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sandbox_support import BUILDS, Run

from codemill.core.errors import InputError
from codemill.sandbox import Job, Sandbox, launcher, python_argv

TRY = """
import contextlib, json, os, sys
def attempt(name, action):
    try: value = action()
    except BaseException as error: return
    print("BREACH", name, repr(value)[:80], flush=True)
"""


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("hunter2")
    return path


READS = """
import glob
secret = sys.argv[1]
with contextlib.suppress(OSError): os.symlink(secret, "link")
with contextlib.suppress(OSError): os.symlink("/", "root")
with contextlib.suppress(OSError): os.link(secret, "hard")
names = [secret, "../" * 20 + secret[1:], "link", "root" + secret, "hard", "/proc/self/root" + secret,
         "/proc/self/cwd/" + "../" * 20 + secret[1:], "/proc/1/root" + secret, "/proc/1/environ", "/proc/1/cmdline"]
names += [f"/proc/{sys.argv[2]}/{name}" for name in ("environ", "maps", "mem", "fd/0", "cwd/x", "root" + secret)]
names += ["/etc/shadow", "/etc/hostname", "/etc/machine-id", "/var/log/dpkg.log", "/dev/mem", "/dev/kmsg"]
for name in names: attempt("read " + name, lambda: open(name, "rb").read(1))
for name in ("/", "/home", "/root", "/proc", "/sys", "/var", "/dev", "/etc", os.path.dirname(secret), "../..", "root"):
    attempt("list " + name, lambda: os.listdir(name))
folder = os.open(".", os.O_RDONLY)
attempt("dir_fd", lambda: os.open("../" * 20 + secret[1:], os.O_RDONLY, dir_fd=folder))
attempt("O_PATH", lambda: os.read(os.open(f"/proc/self/fd/{os.open(secret, os.O_PATH)}", os.O_RDONLY), 1))
attempt("chroot", lambda: os.chroot("."))
attempt("glob", lambda: glob.glob(os.path.dirname(secret) + "/*")[0])
attempt("execute", lambda: os.execv(secret, [secret]))
"""


def test_nothing_outside_can_be_read(run: Run, secret: Path) -> None:
    secret.chmod(0o755)
    outcome = run(TRY + READS, str(secret), str(os.getpid()))
    assert (outcome.end, outcome.exit_code, outcome.stderr) == ("exited", 0, b"")
    assert b"BREACH" not in outcome.stdout, outcome.stdout.decode()


WRITES = """
secret, folder = sys.argv[1], os.path.dirname(sys.argv[1])
actions = [
    lambda: open(secret, "w"), lambda: open(secret, "ab"), lambda: os.open(secret, os.O_RDONLY | os.O_TRUNC),
    lambda: os.truncate(secret, 0), lambda: os.unlink(secret), lambda: os.rename(secret, "mine"),
    lambda: os.rename("mine", secret), lambda: os.mkdir(folder + "/d"), lambda: open(folder + "/f", "w"),
    lambda: os.symlink("x", folder + "/l"), lambda: os.link("mine", folder + "/h"), lambda: os.mkfifo(folder + "/p"),
    lambda: os.rmdir(folder), lambda: os.replace(secret, secret + "2"),
    lambda: open("/usr/planted", "w"), lambda: open(sys.executable, "ab"), lambda: os.unlink(sys.executable),
    lambda: open(os.__file__, "ab"), lambda: open("/proc/sys/kernel/core_pattern", "w"), lambda: open("/dev/sda", "w"),
    lambda: os.mknod("dev", 0o020600, os.makedev(1, 1)), lambda: open("/tmp/../etc/planted", "w"),
]
open("mine", "w").write("x")
for number, action in enumerate(actions): attempt(f"write {number}", action)
# What these say is worth nothing: the file is looked at afterwards.
for action in (lambda: os.chmod(secret, 0o777), lambda: os.utime(secret, (1, 1)), lambda: os.chown(secret, 12, 12),
               lambda: os.setxattr(secret, "user.a", b"b"), lambda: os.chmod(folder, 0)):
    with contextlib.suppress(OSError): action()
"""


def test_nothing_outside_can_be_changed(run: Run, secret: Path) -> None:
    def state() -> object:
        status = secret.stat()
        return status.st_mode, status.st_uid, status.st_ctime_ns, secret.read_text(), os.listdir(secret.parent)

    before, folder = state(), secret.parent.stat()
    outcome = run(TRY + WRITES, str(secret))
    assert (outcome.end, outcome.exit_code, outcome.stderr) == ("exited", 0, b"")
    assert b"BREACH" not in outcome.stdout, outcome.stdout.decode()
    assert state() == before
    assert secret.parent.stat().st_ctime_ns == folder.st_ctime_ns
    assert not Path("/usr/planted").exists()


NETWORK = """
import socket
families = [(n, getattr(socket, n)) for n in dir(socket) if n.startswith("AF_")]
for name, family in families:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        attempt(f"socket {name} {kind}", lambda: socket.socket(family, kind))
for address in (("127.0.0.1", 9), ("::1", 9), ("localhost", 9), ("192.0.2.1", 80)):
    attempt(f"connect {address}", lambda: socket.create_connection(address, 0.2))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
attempt("names", lambda: socket.getaddrinfo("example.org", 80))
attempt("vsock pair", lambda: socket.socketpair(socket.AF_INET))
left, right = socket.socketpair()
left.send(b"pair"); print(right.recv(4).decode())
import asyncio
print(asyncio.run(asyncio.sleep(0, "loop")))
"""


def test_no_socket_but_a_pair_of_ones_own(run: Run) -> None:
    outcome = run(TRY + NETWORK)
    assert outcome.stdout == b"pair\nloop\n", outcome


SYSCALLS = """
import ctypes, errno, signal
libc = ctypes.CDLL(None, use_errno=True)
def refused(name, result):
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print("BREACH", name, result, ctypes.get_errno())
for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    refused(f"unshare {flag:x}", libc.unshare(flag))
    refused(f"clone {flag:x}", libc.syscall({clone}, ctypes.c_ulong(flag | 17), 0, 0, 0, 0))
refused("mount", libc.mount(b"none", b".", b"tmpfs", 0, None))
refused("umount", libc.umount2(b"/", 2))
refused("ptrace", libc.ptrace(0, 0, 0, 0))
refused("personality", libc.personality(0xffffffff))
refused("setns", libc.setns(0, 0))
refused("swapon", libc.swapon(b"x", 0))
refused("kexec, bpf and others", max(libc.syscall(n, 0, 0, 0, 0, 0) for n in {numbers}))
refused("newer", libc.syscall(4000))
"""


def test_kernel_interfaces_are_refused(run: Run) -> None:
    from codemill.sandbox import seccomp

    names = ["bpf", "keyctl", "userfaultfd", "perf_event_open", "io_uring_setup", "kexec_load", "open_by_handle_at"]
    names += ["process_vm_readv", "pidfd_getfd", "quotactl", "reboot", "init_module", "clock_settime", "pivot_root"]
    machine = os.uname().machine
    numbers = list(seccomp.numbers(machine, names).values())
    clone = seccomp.numbers(machine, ["clone"])["clone"]
    code = TRY + SYSCALLS.replace("{clone}", str(clone)).replace("{numbers}", str(numbers))
    outcome = run(code)
    assert (outcome.end, outcome.exit_code, outcome.stdout) == ("exited", 0, b""), outcome


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the 32-bit entry exists on x86_64 only")
def test_the_32_bit_entry_kills(run: Run) -> None:
    """`int 0x80` numbers calls differently; a filter that does not look at the machine would be passed by."""
    code = """
import ctypes, mmap
code = b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3"  # getpid by the 32-bit table
page = mmap.mmap(-1, 4096, prot=7); page.write(code)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
"""
    outcome = run(code)
    assert (outcome.end, outcome.signal, outcome.stdout) == ("signal", signal.SIGSYS, b"")


PRIVILEGES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(39, 0, 0, 0, 0) == 1
sets = ctypes.create_string_buffer(24)
assert libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets) == 0 and not any(sets.raw), sets.raw
assert os.getuid() or not any(libc.prctl(23, n, 0, 0, 0) == 1 for n in range(64))
if os.getuid():
    for call in (os.setuid, os.setgid, os.seteuid): attempt("became root", lambda: call(0))
attempt("groups", lambda: os.setgroups([0]))
attempt("nice", lambda: os.nice(-5))
import subprocess
for program in ("sudo", "mount", "newgrp", "passwd"):
    attempt(program, lambda: subprocess.run([program, "-c", "id"], check=True, stdin=0, capture_output=True))
print(os.getgroups())
"""


def test_no_privilege_is_left(run: Run) -> None:
    outcome = run(TRY + PRIVILEGES)
    assert (outcome.exit_code, outcome.stderr) == (0, b"")
    assert b"BREACH" not in outcome.stdout, outcome.stdout.decode()


SIGNALS = """
import signal
victim, supervisor = int(sys.argv[1]), int(sys.argv[2])
for pid in (victim, supervisor, -1, -victim, -supervisor, os.getppid()):
    if pid in (os.getpid(), 1): continue
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(OSError):
            if pid == -1: signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if pid != -1 or number == signal.SIGTERM: os.kill(pid, number)
for action in (lambda: os.sched_setaffinity(victim, {0}), lambda: os.setpriority(os.PRIO_PROCESS, victim, 19),
               lambda: os.setpriority(os.PRIO_USER, 0, 19)):
    with contextlib.suppress(OSError): action()
import resource
with contextlib.suppress(OSError): resource.prlimit(victim, resource.RLIMIT_NOFILE, (3, 3))
print("alive")
"""


def test_no_other_process_can_be_reached(run: Run) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        before = Path(f"/proc/{victim.pid}/limits").read_text(), os.getpriority(os.PRIO_PROCESS, victim.pid)
        outcome = run(TRY + SIGNALS, str(victim.pid), str(os.getpid()))
        assert outcome.stdout == b"alive\n", outcome
        assert victim.poll() is None
        after = Path(f"/proc/{victim.pid}/limits").read_text(), os.getpriority(os.PRIO_PROCESS, victim.pid)
        assert after == before
        assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == before[1]
    finally:
        victim.kill()
        victim.wait()


def test_ones_own_children_can_be_killed(run: Run) -> None:
    outcome = run("import subprocess; p = subprocess.Popen(['sleep', '60']); p.kill(); print(p.wait())")
    assert outcome.stdout == b"-9\n", outcome


def test_the_environment_is_fixed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_TOKEN", "do-not-leak")
    monkeypatch.setenv("PYTHONPATH", "/leak")
    outcome = run("import os, json; print(json.dumps(dict(os.environ)))", env={"EXTRA": "é", "TZ": "Europe/Berlin"})
    seen = json.loads(outcome.stdout)
    assert "CANARY_TOKEN" not in seen
    assert "PYTHONPATH" not in seen
    assert (seen["EXTRA"], seen["TZ"], seen["PYTHONHASHSEED"]) == ("é", "Europe/Berlin", "0")
    assert seen["HOME"] == seen["TMPDIR"]
    assert not seen["HOME"].startswith(str(Path.home()) + "/")


def test_hashes_and_flags_are_the_same_each_time(run: Run) -> None:
    code = "import sys; print(hash('a'), sys.flags.no_site, sys.flags.safe_path, sys.flags.no_user_site, sys.path)"
    first = run(code).stdout
    assert first == run(code).stdout
    assert first.split()[1:4] == [b"1", b"True", b"1"]
    assert b"site-packages" not in first


def test_planted_descriptors_are_not_inherited(run: Run, secret: Path) -> None:
    descriptor = os.open(secret, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    high = os.dup2(descriptor, 200)
    try:
        code = "import os\nfor n in range(3, 1024):\n    try: print(n, os.fstat(n))\n    except OSError: pass"
        assert run(code).stdout == b""
    finally:
        os.close(descriptor)
        os.close(high)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("how", ["workspace", "files"])
def test_a_chain_of_folders_is_copied_or_refused(
    sandboxes: Callable[[str], Sandbox], tmp_path: Path, build: str, how: str
) -> None:
    sandbox, work = sandboxes(build), tmp_path / "work"
    (work / "/".join("d" * 200)).mkdir(parents=True)

    def job(depth: int) -> Job:
        if how == "files":
            return Job(argv=("sh", "-c", "cat $(find . -type f)"), files={"d/" * depth + "f": b"found"})
        top = work
        for _ in range(depth // 200 - 1):  # from the top, as a path to the bottom would be too long
            above = tmp_path / "above"
            (above / "/".join("d" * 199)).mkdir(parents=True)
            top.rename(above / "/".join("d" * 199) / "d")
            above.rename(top)
        (work / ("d/" * 150) / "f").write_bytes(b"found")
        return Job(argv=("sh", "-c", "cat $(find . -type f)"), workspace=work)

    try:
        assert sandbox.run_blocking(job(200)).stdout == b"found"
        with pytest.raises(InputError, match="folders deep"):
            sandbox.run_blocking(job(5000 if how == "workspace" else 2000))
    finally:
        launcher.remove_tree(str(work))  # pytest cannot


def test_a_workspace_is_copied_and_its_links_are_not_followed(run: Run, secret: Path, tmp_path: Path) -> None:
    work = tmp_path / "work space"
    (work / "sub" / "empty").mkdir(parents=True)
    (work / "sub" / "data").write_bytes(b"\x00\xff")
    (work / "tool").write_text("#!/bin/sh\necho ran\n")
    (work / "tool").chmod(0o755)
    (work / "root").symlink_to("/")
    (work / "leak").symlink_to(secret)
    (work / "pipe").parent.joinpath("name\nwith newline").write_text("x")
    os.mkfifo(work / "pipe")
    (work / os.fsdecode(b"\xff")).write_text("not UTF-8")
    code = """
import os, subprocess
for folder, folders, files in sorted(os.walk(os.fsencode("."))): print(folder, sorted(folders), sorted(files))
print(open("sub/data", "rb").read(), subprocess.check_output("./tool"))
open("sub/data", "w").write("changed"); open("tool", "w").write("changed"); os.remove("name\\nwith newline")
"""
    outcome = run(code, workspace=work, files={"sub/deep/er.txt": b"x", "tool": b"#!/bin/sh\necho mine\n"})
    lines = outcome.stdout.decode().splitlines()
    assert lines[0] == "b'.' [b'sub'] [b'main.py', b'name\\nwith newline', b'tool', b'\\xff']", outcome
    assert lines[1:4] == [
        "b'./sub' [b'deep', b'empty'] [b'data']",
        "b'./sub/deep' [] [b'er.txt']",
        "b'./sub/empty' [] []",
    ]
    assert lines[4] == r"b'\x00\xff' b'mine\n'"
    assert (work / "sub" / "data").read_bytes() == b"\x00\xff"
    assert (work / "tool").read_text().endswith("echo ran\n")
    assert (work / "name\nwith newline").exists()


def test_readable_trees_are_readable_only(run: Run, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "module.py").write_text("value = 7\n")
    (tmp_path / "sibling").write_text("x")
    (tmp_path / "alias").symlink_to(tree)
    single = tmp_path / "single"
    single.write_text("one file")
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
import module
print(module.value, open(sys.argv[2]).read(), os.listdir(sys.argv[1]))
for name, action in {
    "sibling": lambda: open(sys.argv[1] + "/../sibling").read(),
    "write": lambda: open(sys.argv[1] + "/module.py", "a"),
    "new": lambda: open(sys.argv[1] + "/new", "w"),
    "remove": lambda: os.unlink(sys.argv[2]),
}.items():
    try: print("BREACH", name, action())
    except OSError: pass
"""
    for name in (tree, tmp_path / "alias"):
        outcome = run(code, str(name), str(single), readable=(name, single))
        assert outcome.stdout == b"7 one file ['module.py']\n", outcome
    assert (tree / "module.py").read_text() == "value = 7\n"


def test_two_jobs_do_not_see_each_other(sandbox: Sandbox) -> None:
    code = """
import os, sys, time
home = os.environ["HOME"]
open(home + "/mark-" + sys.argv[1], "w").write("x")
try: open("/dev/shm/mark-shared-" + sys.argv[1], "w")
except OSError: pass
time.sleep(0.5)
other = "ab".replace(sys.argv[1], "")
print(other in "".join(n[-1] for n in os.listdir(home) if n.startswith("mark-")))
try: print(open("/dev/shm/mark-shared-" + other))
except OSError: pass
"""
    jobs = [Job(argv=python_argv("m.py", name), files={"m.py": code.encode()}) for name in "ab"]
    outcomes = dict(sandbox.run_all(jobs))
    assert [outcomes[0].stdout, outcomes[1].stdout] == [b"False\n", b"False\n"]


def test_the_interpreter_works_as_usual(run: Run) -> None:
    code = """
import hashlib, json, sqlite3, ssl, tempfile, multiprocessing, concurrent.futures, subprocess, decimal, shutil, os, zoneinfo
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "a"); open(path, "w").write("x")
    shutil.copy2(path, path + "b"); os.chmod(path, 0o600); os.utime(path); shutil.copytree(folder, folder + "2")
    base = sqlite3.connect(os.path.join(folder, "db")); base.execute("create table t (x)"); base.commit()
with concurrent.futures.ThreadPoolExecutor(4) as pool: print(sum(pool.map(int, "1234")))
print(subprocess.check_output("echo $((1 + 1)) | cat", shell=True))
open("/dev/null", "w").write("x"); print(len(open("/dev/urandom", "rb").read(4)))
"""
    outcome = run(code)
    assert outcome.stdout == b"10\nb'2\\n'\n4\n", outcome


def test_jobs_that_cannot_be_set_up_are_input_errors(plain: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such program"):
        plain.run_blocking(Job(argv=("no-such-program-anywhere",)))
    with pytest.raises(InputError, match="missing"):
        plain.run_blocking(Job(argv=("true",), workspace=tmp_path / "missing"))
    with pytest.raises(InputError, match="does not exist"):
        plain.run_blocking(Job(argv=("true",), readable=(tmp_path / "missing",)))
    for wide in ("/", "/tmp"):
        with pytest.raises(InputError, match="too wide"):
            plain.run_blocking(Job(argv=("true",), readable=(Path(wide),)))
    with pytest.raises(InputError, match="cannot be filled"):
        plain.run_blocking(Job(argv=("true",), files={"a": b"", "a/b": b""}))
    for name in ("/etc/passwd", "../x", "a/../../x", "", "."):
        with pytest.raises(InputError):
            Job(argv=("true",), files={name: b""})
    for fields in ({"argv": ()}, {"argv": ("a\0b",)}, {"argv": ("true",), "env": {"A=B": "x"}}):
        with pytest.raises(InputError):
            Job(**fields)


def test_an_earlier_job_leaves_nothing_to_find(run: Run) -> None:
    first = run("import os; open('left', 'w').write('x'); print(os.getcwd())")
    again = run(f"import os; print(os.listdir({first.stdout.decode().strip()!r}))")
    # Its own folder, under the same name where it has a root of its own; else nothing.
    assert again.stdout in (b"['main.py']\n", b"")
