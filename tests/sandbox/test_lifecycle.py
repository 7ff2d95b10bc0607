"""Beginnings and ends: nothing outlives a job, a job does not outlive its supervisor, and many run at once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from sandbox_support import BUILDS, Run, processes_with, wait_until

from codemill.core.errors import ConfigError, IsolationError
from codemill.sandbox import Axis, Job, Layers, Policy, Sandbox, python_argv

SLEEP = {"main.py": b"import sys, time\nprint('up', flush=True)\ntime.sleep(float(sys.argv[1]))"}


def sleeper(seconds: float, token: str = "sleeper") -> Job:
    return Job(argv=python_argv("main.py", str(seconds), token), files=SLEEP)


DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    for action in (os.setsid, lambda: os.setpgid(0, 0)):
        try: action()
        except OSError: pass
    if os.fork() == 0:
        for number in range(1, 65):
            try: signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError): pass
        while True: time.sleep(60)
    os._exit(0)
os.wait()
print("parent ends", flush=True)
if sys.argv[1] == "stay": time.sleep(60)
"""


@pytest.mark.parametrize("parent", ["leave", "stay"])
def test_daemons_die_with_the_job(run: Run, parent: str) -> None:
    token = f"daemon-{parent}-{os.getpid()}"
    start = time.monotonic()
    outcome = run(DAEMON, parent, token, policy=Policy(wall_seconds=0.6))
    assert outcome.end == ("exited" if parent == "leave" else "timeout")
    assert outcome.stdout == b"parent ends\n"
    assert time.monotonic() - start < 6
    assert processes_with(token) == []


SUPERVISOR = """
import sys
sys.path[:0] = sys.argv[3:]
from sandbox_support import BUILDS
from codemill.sandbox import Job, Policy, Sandbox, python_argv
code = b"import os, time\\nif os.fork() == 0: os.setsid() if False else None\\nprint('x')\\ntime.sleep(300)"
sandbox = Sandbox(Policy(wall_seconds=300), layers=BUILDS[sys.argv[1]])
print("ready", flush=True)
sandbox.run_blocking(Job(argv=python_argv("main.py", sys.argv[2]), files={"main.py": code}))
"""


@pytest.mark.parametrize("build", BUILDS)
def test_a_killed_supervisor_takes_everything_along(build: str) -> None:
    token = f"orphan-{build}-{os.getpid()}"
    boxes = set(Path(tempfile.gettempdir()).glob("codemill-sandbox-*"))
    paths = [str(Path(__file__).parent), *sys.path]
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, build, token, *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert supervisor.stdout is not None
        assert supervisor.stderr is not None
        if supervisor.stdout.readline() != b"ready\n":
            pytest.skip(f"this machine cannot isolate so: {supervisor.stderr.read().decode()[-300:]}")

        def inside() -> list[int]:  # the supervisor's own command line holds the token as well
            return [pid for pid in processes_with(token) if pid != supervisor.pid]

        assert wait_until(lambda: len(inside()) >= 2)
    finally:
        supervisor.send_signal(signal.SIGKILL)
        supervisor.communicate()
    assert wait_until(lambda: processes_with(token) == [])
    assert wait_until(lambda: set(Path(tempfile.gettempdir()).glob("codemill-sandbox-*")) <= boxes)


def test_many_runs_leave_nothing_behind(sandbox: Sandbox) -> None:
    def state() -> tuple[list[str], list[str], set[str], int]:
        temporary = sorted(path.name for path in Path(tempfile.gettempdir()).glob("codemill-*"))
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        return temporary, sorted(os.listdir("/proc/self/fd")), set(mounts), threading.active_count()

    sandbox.run_blocking(sleeper(0))
    list(sandbox.run_all([sleeper(0)] * 4))
    before = state()
    token = f"many-{os.getpid()}"
    jobs = [Job(argv=("true", token), files={"sub/f": b"x"}) for _ in range(66)]
    assert all(outcome.succeeded for _, outcome in sandbox.run_all(jobs))
    assert processes_with(token) == []
    assert state() == before


def test_folders_without_permissions_are_removed(sandbox: Sandbox) -> None:
    code = b"import os\nos.makedirs('a/b', 0o700)\nopen('a/b/c', 'w')\nos.mkdir('closed', 0)\nos.umask(0o777)\nos.mkdir('d')"
    before = sorted(Path(tempfile.gettempdir()).glob("codemill-sandbox-*"))
    assert sandbox.run_blocking(Job(argv=python_argv("m.py"), files={"m.py": code})).succeeded
    assert sorted(Path(tempfile.gettempdir()).glob("codemill-sandbox-*")) == before


@pytest.mark.parametrize(("depth", "name"), [(600, "d" * 100), (3000, "d")])
def test_deep_folders_are_removed(run: Run, depth: int, name: str) -> None:
    """Deeper than Python recurses, and than a path can be long."""
    code = f"import os\nfor _ in range({depth}):\n    os.mkdir({name!r}); os.chdir({name!r})\nos.chmod('..', 0)"
    before = sorted(Path(tempfile.gettempdir()).glob("codemill-sandbox-*/codemill/d*"))
    outcome = run(code)
    assert outcome.end == "exited" or (outcome.end == "disk" and depth > 1000)
    assert run("print(1)").stdout == b"1\n"
    assert sorted(Path(tempfile.gettempdir()).glob("codemill-sandbox-*/codemill/d*")) == before


def test_run_all_yields_as_jobs_finish_and_reads_a_little_ahead(plain: Sandbox) -> None:
    taken = []

    def jobs() -> object:
        for number in range(20):
            taken.append(number)
            yield sleeper(1.0 if number == 0 else 0.0)

    finished = []
    for index, outcome in plain.run_all(jobs()):  # type: ignore[arg-type]
        assert outcome.succeeded
        assert len(taken) <= len(finished) + 2 * plain.workers
        finished.append(index)
    assert sorted(finished) == list(range(20))
    assert finished[0] != 0


def test_closing_run_all_kills_the_rest(plain: Sandbox) -> None:
    token = f"closed-{os.getpid()}"
    results = plain.run_all([sleeper(0, token), *[sleeper(300, token)] * 3])
    assert next(results)[0] == 0
    results.close()  # type: ignore[attr-defined]
    assert wait_until(lambda: processes_with(token) == [])


def test_async_runs_overlap_up_to_workers() -> None:
    async def both(sandbox: Sandbox) -> float:
        start = time.monotonic()
        outcomes = await asyncio.gather(*(sandbox.run(sleeper(0.4)) for _ in range(4)))
        assert all(outcome.stdout == b"up\n" for outcome in outcomes)
        return time.monotonic() - start

    with Sandbox(workers=4) as wide, Sandbox(workers=1) as narrow:
        together, alone = asyncio.run(both(wide)), asyncio.run(both(narrow))
    assert alone > 4 * 0.4  # no overlap with one worker, whatever the machine's load
    assert together < alone


def test_cancelling_a_task_kills_the_tree(plain: Sandbox) -> None:
    token = f"cancelled-{os.getpid()}"

    async def main() -> None:
        task = asyncio.create_task(plain.run(sleeper(300, token)))
        while not processes_with(token):
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert wait_until(lambda: processes_with(token) == [])


def test_every_outcome_says_what_isolated_it(sandbox: Sandbox) -> None:
    outcome = sandbox.run_blocking(sleeper(0))
    assert outcome.isolation == sandbox.isolation
    assert set(outcome.isolation) == {axis.value for axis in Axis}
    assert "nothing" not in outcome.isolation.values()


def test_the_report_has_a_row_for_each_axis(sandbox: Sandbox) -> None:
    rows = sandbox.report()
    assert [row["axis"] for row in rows] == [axis.value for axis in Axis]
    assert all(row["witnessed"] is True and row["enforced_by"] and row["detail"] for row in rows)


@pytest.mark.parametrize(
    ("layers", "axis"),
    [
        (Layers(seccomp=False), Axis.SYSCALLS),
        (Layers(seccomp=False, namespaces=False), Axis.NETWORK),
        (Layers(landlock=0, mounts=False), Axis.FILES),
        (Layers(landlock=2, namespaces=False), Axis.FILES),  # truncating is not covered before version 3
    ],
)
def test_a_missing_layer_is_noticed_by_attack(layers: Layers, axis: Axis) -> None:
    with pytest.raises(IsolationError, match=f"isolation of {axis.value} is required"):
        Sandbox(Policy(require=frozenset({axis})), layers=layers)
    loose = Sandbox(Policy(require=frozenset()), layers=layers)
    assert loose.isolation[axis] == "nothing"
    assert [row["witnessed"] for row in loose.report() if row["axis"] == axis] == [False]
    outcome = loose.run_blocking(sleeper(0))
    assert outcome.succeeded
    assert outcome.isolation[axis] == "nothing"
    with pytest.raises(IsolationError, match=axis.value):  # a job cannot ask for what is not there
        loose.run_blocking(Job(argv=("true",), policy=Policy(require=frozenset({axis}))))


@pytest.mark.parametrize(
    ("broken", "axis"),
    [("_look_at_tree", Axis.MEMORY), ("HeadAndTail", Axis.OUTPUT)],
)
def test_a_broken_supervisor_is_noticed_by_attack(monkeypatch: pytest.MonkeyPatch, broken: str, axis: Axis) -> None:
    from codemill.sandbox import supervise, witness

    class KeepAll(supervise.HeadAndTail):
        def __init__(self, limit: int) -> None:
            super().__init__(1 << 30)

    if broken == "HeadAndTail":
        monkeypatch.setattr(supervise, "HeadAndTail", KeepAll)
    else:
        monkeypatch.setattr(supervise._Run, broken, lambda self: None)
        monkeypatch.setattr(witness, "_WALL_SECONDS", 1.0)
    witness.examine.cache_clear()
    try:
        with pytest.raises(IsolationError, match=axis.value):
            Sandbox()
    finally:
        witness.examine.cache_clear()


@pytest.mark.parametrize("step", ["namespaces", "mounts", "landlock", "seccomp"])
def test_a_step_that_fails_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """As on a machine whose kernel refuses it: the launcher reports the step, the next attempt goes without."""
    from codemill.sandbox import supervise, witness

    real = supervise.run_job
    wanted = {"namespaces": "namespaces", "mounts": "own_mounts", "landlock": "landlock", "seccomp": "seccomp"}[step]

    def refuse(job: Job, policy: Policy, layers: Layers, *rest: object) -> object:
        if getattr(layers, wanted):
            raise supervise.LayerError(step, "Operation not permitted")
        return real(job, policy, layers, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(witness, "run_job", refuse)
    witness.examine.cache_clear()
    try:
        found = witness.examine(Layers())
    finally:
        witness.examine.cache_clear()
    assert found.missing.pop("memory group", "") in ("", "no control group can be made here")
    assert found.missing == {step: "Operation not permitted"}
    assert not getattr(found.layers, wanted)
    if step == "namespaces":  # what the rest must give by itself
        assert not {Axis.FILES, Axis.NETWORK, Axis.SYSCALLS} & set(found.breaches)


def test_signals_are_confined_without_namespaces_and_scopes() -> None:
    """An older Landlock has no scope for signals; the call filter then lets a program signal itself only."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    code = b"""
import os, signal, sys
for action in (lambda: os.kill(int(sys.argv[1]), 9), lambda: os.kill(os.getppid(), 9)):
    try: action(); print("BREACH")
    except PermissionError: pass
signal.signal(signal.SIGUSR1, lambda *_: print("got"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    try:
        with Sandbox(Policy(require=frozenset()), layers=Layers(namespaces=False, landlock=5)) as sandbox:
            job = Job(argv=python_argv("m.py", str(victim.pid)), files={"m.py": code})
            assert sandbox.run_blocking(job).stdout == b"got\n"
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_wrong_policies_and_workers_are_config_errors() -> None:
    for fields in ({"wall_seconds": 0}, {"memory_bytes": -1}, {"processes": 0}, {"cpu_seconds": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(fields))):
            Policy(**fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="axes: files, network"):
        Policy(require=frozenset({"fils"}))  # type: ignore[arg-type]
    assert Policy(require=frozenset({"files"})).require == {Axis.FILES}  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="workers"):
        Sandbox(workers=0)
