"""Programs that want too much: each ends in time, is called what it was, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from sandbox_support import Run, processes_with, runner

from codemill.sandbox import Job, Layers, Policy, Sandbox, supervise


@pytest.fixture(params=["full", "bare"])  # between the two nothing is new about limits
def run(request: pytest.FixtureRequest, sandboxes: Callable[[str], Sandbox]) -> Run:
    return runner(sandboxes(request.param))


SHORT = Policy(wall_seconds=0.25, memory_bytes=256 << 20)

GREEDY_PARENT = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        break
block = bytearray(60 << 20)
block[::4096] = bytes([1]) * len(block[::4096])
time.sleep(30)
"""


@pytest.mark.parametrize(
    "code",
    [
        "blocks = []\nwhile True: blocks.append(b'x' * (1 << 20))",
        "bytearray(10 << 30)",
        "x = [0]\nwhile True: x += x",
        "import mmap\nm = [mmap.mmap(-1, 32 << 20) for _ in range(64)]",
        GREEDY_PARENT,
    ],
    ids=["list", "one-block", "doubling", "mmap", "children"],
)
def test_memory_bombs_are_called_memory(run: Run, code: str) -> None:
    outcome = run(code)
    if outcome.end == "exited":  # mmap reports the refusal as an OSError of its own
        assert b"Cannot allocate memory" in outcome.stderr
    else:
        assert outcome.end == "memory"


def test_memory_shared_by_forks_is_counted_once(run: Run) -> None:
    code = """
import os, time
block = bytearray(40 << 20)
block[::4096] = bytes([1]) * len(block[::4096])
for _ in range(12):
    if os.fork() == 0:
        time.sleep(0.3)
        os._exit(0)
while True:
    try: os.wait()
    except ChildProcessError: break
print("fine")
"""
    outcome = run(code)
    assert (outcome.end, outcome.stdout) == ("exited", b"fine\n")
    assert 40 << 20 < outcome.peak_bytes < 256 << 20


def test_a_crash_is_not_called_memory(run: Run) -> None:
    outcome = run("import ctypes; ctypes.string_at(0)")
    assert (outcome.end, outcome.signal, outcome.exit_code) == ("signal", signal.SIGSEGV, None)


def test_memory_without_an_owner_cannot_be_had(run: Run) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for attempt in (lambda: os.memfd_create("x"), lambda: ctypes.c_int(libc.shmget(0, 1 << 20, 0o1600)).value):
    try: print(attempt() >= 0)
    except OSError: print(False)
"""
    assert run(code).stdout == b"False\nFalse\n"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nwhile True:\n    if os.fork(): os._exit(0)",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        "import os, subprocess, sys\nwhile True: subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])",
    ],
    ids=["fork", "relay", "threads", "subprocess"],
)
def test_fork_bombs_end_and_leave_nothing(run: Run, code: str) -> None:
    token = "token-of-the-bomb"
    outcome = run(code, token, policy=Policy(wall_seconds=0.6, processes=16, memory_bytes=256 << 20))
    # Where the kernel counts, forks fail inside and the program goes on or dies of it; else the watcher kills.
    assert outcome.end in ("processes", "timeout", "exited", "memory")
    assert outcome.seconds < 5
    assert processes_with(token) == []


def test_a_modest_family_is_left_alone(run: Run) -> None:
    code = """
import subprocess, sys, threading
threads = [threading.Thread(target=lambda: None) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(sum(int(subprocess.check_output([sys.executable, "-S", "-c", "print(1)"])) for _ in range(3)))
"""
    outcome = run(code)
    assert (outcome.end, outcome.exit_code, outcome.stdout) == ("exited", 0, b"3\n")


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "9 ** 9 ** 9",
        "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')",
    ],
    ids=["loop", "power", "regex"],
)
def test_processor_time_is_bounded(run: Run, code: str) -> None:
    outcome = run(code, policy=Policy(cpu_seconds=0.3, wall_seconds=20.0))
    assert outcome.end == "timeout"
    assert outcome.seconds < 15
    assert outcome.cpu_seconds > 0.2


def test_the_kernels_own_processor_limit_is_the_clock_too() -> None:
    """It may be a moment quicker than the count that is seen from outside."""
    policy = Policy(cpu_seconds=3.0)
    assert supervise.why_ended(-signal.SIGXCPU, 2.99, 0, b"", policy) == "timeout"
    assert supervise.why_ended(-signal.SIGSEGV, 2.99, 0, b"", policy) == "signal"


def test_processor_time_is_summed_over_the_tree(run: Run) -> None:
    code = """
import os, time
for _ in range(60):
    if os.fork() == 0:
        end = time.process_time() + 0.05
        while time.process_time() < end: pass
        os._exit(0)
    os.wait()
"""
    outcome = run(code, policy=Policy(cpu_seconds=0.3, wall_seconds=20.0))
    assert outcome.end == "timeout"


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ntime.sleep(60)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import signal, time; signal.alarm(0); signal.setitimer(signal.ITIMER_REAL, 0); time.sleep(60)",
        "import os, time\nos.close(1); os.close(2)\ntime.sleep(60)",
        "import os, time\nif os.fork() == 0:\n    time.sleep(60)\nos.wait()",
    ],
    ids=["sleep", "deaf", "stopped", "timers", "closed-output", "waits-for-child"],
)
def test_wall_time_is_bounded(run: Run, code: str) -> None:
    outcome = run(code, policy=SHORT)
    assert (outcome.end, outcome.exit_code) == ("timeout", None)
    assert 0.2 < outcome.seconds < 5


def test_output_floods_are_drained_cut_and_counted(run: Run) -> None:
    code = """
import os, sys
os.write(1, b"first")
block = b"-" * 65536
for _ in range(400):
    sys.stdout.buffer.write(block); sys.stderr.buffer.write(block)
sys.stdout.buffer.flush()
os.write(1, b"last")
"""
    outcome = run(code, policy=Policy(output_bytes=1000))
    assert (outcome.end, outcome.exit_code) == ("exited", 0)
    assert len(outcome.stdout) == len(outcome.stderr) == 1000
    assert outcome.stdout.startswith(b"first")
    assert outcome.stdout.endswith(b"last")
    assert outcome.stdout_dropped == 400 * 65536 + 9 - 1000
    assert outcome.stderr_dropped == 400 * 65536 - 1000


def test_an_endless_flood_ends_with_the_clock(run: Run) -> None:
    outcome = run("import os\nwhile True: os.write(1, b'x' * 65536); os.write(2, b'y' * 65536)", policy=SHORT)
    assert outcome.end == "timeout"
    assert outcome.stdout_dropped > 0
    assert set(outcome.stdout) == set(b"x")
    assert set(outcome.stderr) == set(b"y")


def test_short_output_is_whole(run: Run) -> None:
    outcome = run("import os; os.write(1, bytes(range(256))); os.write(2, b'e')", policy=Policy(output_bytes=256))
    assert (outcome.stdout, outcome.stdout_dropped) == (bytes(range(256)), 0)
    assert (outcome.stderr, outcome.stderr_dropped) == (b"e", 0)


def test_standard_input_ends(run: Run) -> None:
    assert run("import sys; print(repr(sys.stdin.read()))").stdout == b"''\n"
    big = b"line\n" * 500_000
    outcome = run("import sys; print(len(sys.stdin.buffer.read()))", stdin=big)
    assert outcome.stdout == b"%d\n" % len(big)


def test_standard_input_cannot_be_written(run: Run) -> None:
    code = "import os\ntry: os.write(0, b'y')\nexcept OSError: print('refused')\nprint(input())"
    assert run(code, stdin=b"x\n").stdout == b"refused\nx\n"


FILLERS = {
    "one file": "out = open('f', 'wb', 0)\nwhile True: out.write(bytes(65536))",
    "many": "n = 0\nwhile True:\n    open(str(n), 'wb').write(bytes(65536)); n += 1",
    "unlinked": "import os\nkept = []\nwhile True:\n    kept.append(open('f', 'wb', 0)); os.unlink('f')\n"
    "    for _ in range(8): kept[-1].write(bytes(65536))",
    "inodes": "n = 0\nwhile True:\n    open(str(n), 'wb').close(); n += 1",
}


@pytest.mark.parametrize("code", FILLERS.values(), ids=FILLERS)
def test_the_disk_cannot_be_filled(run: Run, code: str) -> None:
    # Errors are swallowed, so that only the bound itself can end it.
    deaf = "while True:\n    try:\n" + "\n".join(" " * 8 + line for line in code.splitlines())
    deaf += "\n    except OSError as error:\n        print(error.errno, flush=True); raise SystemExit(7)"
    policy = Policy(wall_seconds=15.0, disk_bytes=4 << 20, file_bytes=1 << 20, descriptors=64)
    outcome = run(deaf, policy=policy)
    assert outcome.end == "disk" or (outcome.end, outcome.exit_code) == ("exited", 7)


def test_a_workspace_does_not_count_against_the_disk(run: Run, tmp_path: object) -> None:
    outcome = run(
        "open('new', 'wb').write(bytes(400_000)); print('fine')",
        files={"large": bytes(3 << 20)},
        policy=Policy(disk_bytes=1 << 20),
    )
    assert outcome.stdout == b"fine\n"


def test_descriptors_are_bounded_and_none_is_inherited(run: Run) -> None:
    code = """
import os, stat
def kind(n):
    try: return stat.S_IFMT(os.fstat(n).st_mode)
    except OSError: return None
print([n for n in range(1024) if kind(n) is not None])
kept = []
try:
    while True: kept.append(os.dup(0))
except OSError as error: print(error.errno, len(kept))
"""
    assert run(code).stdout == b"[0, 1, 2]\n24 61\n"
    assert run(code, result=True).stdout.startswith(b"[0, 1, 2, 3]\n")


def test_an_abort_leaves_no_core_file_and_recursion_ends(plain: Sandbox) -> None:
    run = runner(plain)
    outcome = run("import os; os.abort()")
    assert (outcome.end, outcome.signal) == ("signal", signal.SIGABRT)
    code = "import sys; sys.setrecursionlimit(10**9)\ndef f(): return [f()]\nf()"
    assert run(code, policy=Policy(memory_bytes=64 << 20)).end in ("signal", "memory", "exited")


def test_zombies_take_a_place_each(run: Run) -> None:
    code = "import os, time\nfor _ in range(200):\n    if os.fork() == 0: os._exit(0)\ntime.sleep(1)"
    outcome = run(code, policy=Policy(wall_seconds=5.0, processes=16))
    assert not outcome.succeeded


def test_the_result_channel_is_separate_and_capped(run: Run) -> None:
    outcome = run("import os; os.write(3, b'abc'); print('out')", result=True)
    assert (outcome.result, outcome.stdout) == (b"abc", b"out\n")
    flood = run("import os\nwhile True: os.write(3, bytes(65536))", result=True)
    assert (flood.end, len(flood.result)) == ("output", 4 << 20)
    whole = run("import os\nfor _ in range(64): os.write(3, bytes(65536))", result=True)
    assert (whole.end, len(whole.result)) == ("exited", 4 << 20)


def test_limits_cannot_be_raised(run: Run) -> None:
    code = """
import resource
for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CORE"):
    number = getattr(resource, name)
    try: resource.setrlimit(number, (resource.RLIM_INFINITY,) * 2); print("raised", name)
    except (OSError, ValueError): pass
"""
    assert run(code).stdout == b""


def test_exit_codes_and_signals_are_told_apart(plain: Sandbox) -> None:
    run = runner(plain)
    assert run("raise SystemExit(3)").exit_code == 3
    assert run("1 / 0").exit_code == 1
    assert run("import os; os._exit(0)").succeeded
    killed = run("import os, signal; signal.raise_signal(signal.SIGKILL)")
    assert (killed.end, killed.signal, killed.exit_code) == ("signal", signal.SIGKILL, None)
    assert plain.run_blocking(Job(argv=("sh", "-c", "exit 9"))).exit_code == 9


def test_the_disk_is_looked_at_as_it_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long looks make long pauses, but not while a program writes more than it may."""
    free = [100 << 20]
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free[0], f_frsize=1, f_favail=0))
    run = supervise._Run(Job(argv=("true",)), Policy(disk_bytes=8 << 20), Layers(), threading.Event())
    run._box, run._disk_look, run._free = str(tmp_path), time.monotonic(), free[0]
    run._disk_look_seconds = 0.0
    assert not run._disk_look_is_due()
    free[0] -= 2 << 20
    assert run._disk_look_is_due()
    run._disk_look_seconds = 60.0
    free[0] -= 7 << 20
    assert not run._disk_look_is_due()
    free[0] -= 2 << 20
    assert run._disk_look_is_due()
    free[0] += 50 << 20  # somebody else made room: what is written after that counts from there
    assert not run._disk_look_is_due()
    free[0] -= 9 << 20
    assert run._disk_look_is_due()
    run.close()
