"""More attacks: ways round the walls that the other files try head on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from sandbox_support import BUILDS, Run, processes_with, runner, wait_until, warm_runner

from codemill.core.errors import IsolationError
from codemill.sandbox import Job, Policy, Sandbox, python_argv

# Other processes' sockets -----------------------------------------------------------------------------------------

DATAGRAMS = """
import array, os, socket, sys
for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC):
    for address in (sys.argv[1], "\\0" + sys.argv[2], "/dev/log", "/run/systemd/notify", "/run/systemd/journal/dev-log"):
        try: left, right = socket.socketpair(socket.AF_UNIX, kind)
        except OSError: continue
        for action in (lambda: left.sendto(b"reached", address), lambda: left.connect(address) or left.send(b"reached"),
                       lambda: left.sendmsg([b"reached"], [], 0, address)):
            try: action(); print("BREACH", address)
            except OSError: pass
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    for action in (lambda: one.connect(sys.argv[1]), lambda: one.bind("\\0mine-" + sys.argv[2]) or one.listen() or print("BREACH listen")):
        try: action()
        except OSError: pass
print("tried")
"""


def test_a_socket_pair_reaches_no_other_socket(run: Run) -> None:
    """A datagram socket made in a pair can be pointed elsewhere without a call of `socket`."""
    token = f"codemill-attack-{os.getpid()}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="codemill-attack-")))
        named, abstract = (stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2))
        named.bind(str(folder / "socket"))
        abstract.bind(f"\0{token}")
        folder.chmod(0o777)
        (folder / "socket").chmod(0o777)
        outcome = run(DATAGRAMS, str(folder / "socket"), token)
        for listener in (named, abstract):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.recv(100)
    assert outcome.stdout == b"tried\n", outcome


# What two jobs could share ----------------------------------------------------------------------------------------

MEETING = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mq_open.restype = libc.semget.restype = libc.shmget.restype = libc.msgget.restype = ctypes.c_int
mine, other = sys.argv[1], "ab".replace(sys.argv[1], "")
key = int(sys.argv[2])
number = lambda name: key + "ab".index(name)
def make(name):
    libc.mq_open(f"/codemill-{key}-{name}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
    libc.semget(number(name), 1, 0o1666), libc.shmget(number(name), 4096, 0o1666), libc.msgget(number(name), 0o1666)
def found(name):
    if libc.mq_open(f"/codemill-{key}-{name}".encode(), os.O_RDWR) >= 0: yield "queue"
    if libc.semget(number(name), 1, 0o666) >= 0: yield "semaphore"
    if libc.shmget(number(name), 4096, 0o666) >= 0: yield "memory"
    if libc.msgget(number(name), 0o666) >= 0: yield "messages"
make(mine)
time.sleep(0.6)
print(*found(other))
"""


def test_two_jobs_share_no_memory_queue_or_semaphore(sandbox: Sandbox) -> None:
    key = str(0x40000000 + os.getpid() * 4)
    jobs = [Job(argv=python_argv("main.py", name, key), files={"main.py": MEETING.encode()}) for name in "ab"]
    outcomes = dict(sandbox.run_all(jobs))
    assert [(outcomes[n].stdout, outcomes[n].stderr) for n in (0, 1)] == [(b"\n", b""), (b"\n", b"")]


SIBLING = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
victims = [int(pid) for pid in sys.argv[1].split(",")]
def attempt(what, action):
    try:
        if action() not in (None, -1): print("BREACH", what)
    except OSError: pass
    except ValueError: pass
for pid in victims:
    for name in ("environ", "mem", "maps", "cmdline", "fd", "root", "cwd", "syscall"):
        attempt(name, lambda: os.path.isdir(f"/proc/{pid}/{name}") and os.listdir(f"/proc/{pid}/{name}") or open(f"/proc/{pid}/{name}", "rb").read(1))
    attempt("ptrace", lambda: libc.ptrace(16, pid, 0, 0))
    attempt("read", lambda: libc.process_vm_readv(pid, 0, 0, 0, 0, 0))
    attempt("pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL) or 1)
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGKILL):
        if pid != os.getpid(): attempt("signal", lambda: os.kill(pid, number) or (pid if os.path.exists(f"/proc/{pid}") else None))
print("tried")
"""


def test_a_sibling_cannot_be_read_or_killed(sandbox: Sandbox) -> None:
    token = f"sibling-{os.getpid()}-{time.monotonic_ns()}"
    victim = Job(
        argv=python_argv("main.py", token),
        files={"main.py": b"import time; time.sleep(1.5); print('whole')"},
        env={"KEY": token},
    )
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(sandbox.run_blocking(victim)))
    thread.start()
    try:
        assert wait_until(lambda: len(processes_with(token)) >= 1)
        for run in (runner(sandbox), warm_runner(sandbox)):
            outcome = run(SIBLING, ",".join(map(str, processes_with(token))))
            assert outcome.stdout == b"tried\n", outcome
    finally:
        thread.join()
    assert outcomes[0].stdout == b"whole\n", outcomes


TERMINALS = r"""
import os
for name in ("/dev/tty", "/dev/console", "/dev/kmsg", "/dev/pts/0", "/dev/ptmx", "/dev/vcs", "/proc/1/fd/1", "/proc/kmsg"):
    try:
        os.write(os.open(name, os.O_WRONLY | os.O_NOCTTY), b"\x1b]0;owned\x07")
        print("BREACH", name)
    except OSError: pass
print("tried")
"""


def test_nothing_is_written_where_people_look(run: Run) -> None:
    assert run(TERMINALS).stdout == b"tried\n"


def test_no_kind_of_planted_descriptor_is_inherited(tmp_path: Path) -> None:
    """Neither by a job nor by an interpreter that is started while they are open."""
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair()
    planted = [reader, writer, ours.fileno(), theirs.fileno(), os.open(tmp_path, os.O_RDONLY), os.open("/", os.O_PATH)]
    for descriptor in planted:
        os.set_inheritable(descriptor, True)
    code = "import os\nfor n in range(3, 1024):\n    try: print(n, os.fstat(n))\n    except OSError: pass"
    try:
        with Sandbox(workers=1) as sandbox:
            assert [run(code).stdout for run in (runner(sandbox), warm_runner(sandbox))] == [b"", b""]
    finally:
        ours.close()
        theirs.close()
        for descriptor in (reader, writer, *planted[4:]):
            os.close(descriptor)


@pytest.fixture(params=["full-job", "full-call", "bare-job"])
def greedy(request: pytest.FixtureRequest, sandboxes: Callable[[str], Sandbox]) -> Run:
    """For limits, of which there are no more kinds than these."""
    build, kind = request.param.split("-")
    return (runner if kind == "job" else warm_runner)(sandboxes(build))


# More of everything -----------------------------------------------------------------------------------------------

HOGS = {
    "populated": "import mmap\nheld = [mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE) for _ in range(64)]",
    "many small children": "import os, time\nfor _ in range(24):\n    if os.fork() == 0:\n        block = bytes([1]) * (16 << 20)\n        time.sleep(30)\ntime.sleep(30)",
    "shared": "import mmap, os, time\nheld = []\nwhile True:\n    held.append(mmap.mmap(-1, 8 << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))\n    held[-1].write(bytes(8 << 20))",
    "/dev/shm": "import os, time\nfor name in ('/dev/shm/x', os.environ['TMPDIR'] + '/x'):\n    try:\n        out = open(name, 'wb', 0)\n        while True: out.write(bytes(1 << 20))\n    except OSError: pass\nraise SystemExit(7)",
    "decompression": "import zlib\nbomb = zlib.compress(zlib.compress(bytes(1 << 30), 9), 9)\nheld = zlib.decompress(zlib.decompress(bomb))",
    "a huge number": "x = 7\nwhile True: x = x * x",
    "text of a number": "import sys\nsys.set_int_max_str_digits(0)\nstr(3 ** 10**8)",
}  # fmt: skip


@pytest.mark.parametrize("code", HOGS.values(), ids=HOGS)
def test_hogs_end_in_time(greedy: Run, code: str) -> None:
    policy = Policy(wall_seconds=4.0, cpu_seconds=1.0, memory_bytes=256 << 20, disk_bytes=16 << 20)
    outcome = greedy(code, policy=policy)
    assert not outcome.succeeded
    assert outcome.end in ("memory", "timeout", "disk", "exited", "signal")
    assert outcome.seconds < 10
    assert outcome.peak_bytes < 512 << 20


SPARSE = """
import os
out = open("sparse", "wb", 0)
try:
    out.truncate(900 << 10)  # within the limit for one file, and empty
    others = [open(str(n), "wb", 0) for n in range(40)]
    for other in others: other.truncate(900 << 10)
    for other in others:
        for place in range(0, 900 << 10, 4096): os.pwrite(other.fileno(), bytes(4096), place)
    print("BREACH", sum(os.stat(str(n)).st_blocks for n in range(40)) * 512, flush=True)
    import time; time.sleep(30)
except OSError as error: raise SystemExit(7)
"""


def test_sparse_files_count_when_they_are_filled(sandbox: Sandbox) -> None:
    outcome = runner(sandbox)(SPARSE, policy=Policy(wall_seconds=10, disk_bytes=8 << 20, file_bytes=1 << 20))
    assert outcome.end == "disk" or (outcome.end, outcome.exit_code) == ("exited", 7), outcome


def test_a_process_made_by_posix_spawn_counts_as_well(run: Run) -> None:
    """The C library makes it by a `vfork` of its own."""
    code = "import os, sys\nwhile True: os.posix_spawn('/bin/sleep', ['sleep', '60', sys.argv[1]], {})"
    token = f"spawned-{os.getpid()}"
    outcome = run(code, token, policy=Policy(wall_seconds=2, processes=16))
    assert not outcome.succeeded
    assert processes_with(token) == []


OVERFLOWS = {
    "comparison": "x = y = None\nfor _ in range(10**6): x, y = [x], [y]\nx == y",
    "repr": "import sys\nsys.setrecursionlimit(10**8)\nx = None\nfor _ in range(10**6): x = [x]\nrepr(x)",
    "a C callback": "import ctypes, sys\nsys.setrecursionlimit(10**8)\nkind = ctypes.CFUNCTYPE(None)\nf = kind(lambda: f())\nf()",
    "parser": "import ast, sys\nsys.setrecursionlimit(10**8)\nast.parse('-' * 10**6 + '1')",
}


@pytest.mark.parametrize("code", OVERFLOWS.values(), ids=OVERFLOWS)
def test_the_c_stack_ends(greedy: Run, code: str) -> None:
    outcome = greedy(code, policy=Policy(wall_seconds=8, cpu_seconds=6, memory_bytes=512 << 20))
    assert not outcome.succeeded
    assert outcome.seconds < 15


def test_no_core_is_written_even_if_it_is_asked_for(run: Run) -> None:
    code = """
import os, resource, signal
print(resource.getrlimit(resource.RLIMIT_CORE))
if os.fork() == 0: os.abort()
print(os.WCOREDUMP(os.wait()[1]), os.listdir("."))
"""
    lines = run(code).stdout.decode().splitlines()
    assert lines[0] == "(0, 0)"
    assert lines[1].startswith("False")
    assert "core" not in lines[1]


# Ends of the supervisor -------------------------------------------------------------------------------------------

SUPERVISOR = """
import sys
sys.path[:0] = sys.argv[3:]
from sandbox_support import BUILDS, warm_runner
from codemill.sandbox import Policy, Sandbox
code = "import os, sys, time\\nif os.fork() == 0: time.sleep(300)\\nprint('x')\\ntime.sleep(300)"
sandbox = Sandbox(Policy(wall_seconds=300), layers=BUILDS[sys.argv[1]])
print("ready", flush=True)
warm_runner(sandbox)(code, sys.argv[2])
"""


@pytest.mark.parametrize("build", BUILDS)
def test_a_killed_supervisor_takes_its_interpreters_along(build: str) -> None:
    def below(pid: int) -> set[int]:
        parents = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
        found = {pid}
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {pid}

    paths = [str(Path(__file__).parent), *sys.path]
    boxes = set(Path(tempfile.gettempdir()).glob("codemill-sandbox-*"))
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, build, "x", *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    inside: set[int] = set()
    try:
        assert supervisor.stdout is not None
        assert supervisor.stderr is not None
        if supervisor.stdout.readline() != b"ready\n":
            pytest.skip(f"this machine cannot isolate so: {supervisor.stderr.read().decode()[-300:]}")

        def grown() -> bool:
            inside.update(found := below(supervisor.pid))
            return len(found) >= 3  # an interpreter, the call and its child, at the least

        assert wait_until(grown)
    finally:
        supervisor.kill()
        supervisor.communicate()

    def left() -> list[str]:
        return [Path(f"/proc/{pid}/stat").read_text() for pid in inside if os.path.exists(f"/proc/{pid}")]

    wait_until(lambda: not left())
    assert left() == []
    assert wait_until(lambda: set(Path(tempfile.gettempdir()).glob("codemill-sandbox-*")) <= boxes)


def test_a_launcher_killed_from_outside_is_no_success(sandbox: Sandbox) -> None:
    """Whoever kills it (the kernel, for lack of memory): the outcome is an error or a bad end, and the tree is dead."""
    token = f"launcher-{os.getpid()}-{time.monotonic_ns()}"
    job = Job(argv=python_argv("main.py", token), files={"main.py": b"import time; time.sleep(60)"})
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(sandbox.run_blocking(job).succeeded)
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert wait_until(lambda: len(processes_with(token)) >= 1)
    (inside, *_) = processes_with(token)
    parent = int(Path(f"/proc/{inside}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent != os.getpid()
    os.kill(parent, 9)
    thread.join(20)
    assert not thread.is_alive()
    assert ended[0] is not True
    assert isinstance(ended[0], Exception | bool)
    assert not isinstance(ended[0], IsolationError)
    assert wait_until(lambda: processes_with(token) == [])
