"""What is broken or missing leads to a refusal or to an error, never to a run that is weaker than it says, nor to a pass."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_support import WARM, processes_with, runner, wait_until, warm_runner

from codemill.core.contracts import Answer, Status, Task
from codemill.core.errors import IsolationError, UnavailableError
from codemill.sandbox import (
    Axis,
    Call,
    Job,
    Layers,
    Policy,
    Sandbox,
    memory_group,
    python_argv,
    supervise,
    warm,
    witness,
)
from codemill.sandbox import launcher as launcher_module
from codemill.tasks.verifiers import verify

SLEEP = Job(argv=python_argv("-c", "import time; time.sleep(0.3); print('done')"))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing that a broken machine was seen to give is kept."""
    caches = (witness.examine, supervise.launcher_code, warm._zygote_code, memory_group._place)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def with_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: str) -> None:
    """The launcher as it would be with some of its functions broken."""
    broken = tmp_path / "launcher.py"
    broken.write_text(Path(launcher_module.__file__).read_text() + "\n\n" + lines)
    monkeypatch.setattr(launcher_module, "__file__", str(broken))


NO_PRIVILEGES_DROPPED = """
def drop_bounding_set(): pass
def drop_capabilities(): pass
def forbid_new_privileges(): pass
"""


@pytest.mark.parametrize(
    ("lines", "layers", "axis"),
    [
        (NO_PRIVILEGES_DROPPED, Layers(), Axis.PRIVILEGES),
        ("def filter_calls(*_): pass\ndef load_filter(*_): pass\n", Layers(), Axis.SYSCALLS),
        ("def landlock_restrict(*_): pass\n", Layers(mounts=False), Axis.FILES),
    ],
    ids=["privileges", "syscalls", "files"],
)
def test_a_lock_that_does_not_close_is_noticed_by_attack(
    lines: str, layers: Layers, axis: Axis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_launcher(monkeypatch, tmp_path, lines)
    with pytest.raises(IsolationError, match=f"isolation of {axis.value} is required but does not hold"):
        Sandbox(Policy(require=frozenset({axis})), layers=layers)


def test_a_daemon_that_outlives_its_job_is_noticed_by_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = witness.run_job, []

    def leaky(job: Job, *rest: object) -> object:
        outcome = real(job, *rest)  # type: ignore[arg-type]
        left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)", job.argv[-1]]))
        assert wait_until(lambda: left[-1].pid in processes_with(job.argv[-1]))
        return outcome

    monkeypatch.setattr(witness, "run_job", leaky)
    try:
        with pytest.raises(IsolationError, match="processes is required but does not hold here: left a daemon"):
            Sandbox()
    finally:
        for process in left:
            process.kill()
            process.wait()


def test_a_clock_that_does_not_ring_is_noticed_by_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    real = supervise._Run._kill
    monkeypatch.setattr(supervise._Run, "_kill", lambda run, why: None if why == "timeout" else real(run, why))
    monkeypatch.setattr(witness, "_SLEEP", "import time\ntime.sleep(1)\n")
    with pytest.raises(IsolationError, match="time"):
        Sandbox()


def test_no_landlock_and_no_filter_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "landlock_abi", lambda: 0)
    with pytest.raises(IsolationError, match="files"):
        Sandbox(layers=Layers(mounts=False))
    with Sandbox(Policy(require=frozenset()), layers=Layers(mounts=False)) as weak:
        assert weak.isolation["files"] == "nothing"
    witness.examine.cache_clear()
    monkeypatch.setattr(witness.seccomp, "supported", lambda machine: False)
    with pytest.raises(IsolationError, match=r"no filter for"):
        Sandbox()


def test_another_operating_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness.sys, "platform", "darwin")
    with pytest.raises(IsolationError, match="needs Linux, this is darwin"):
        Sandbox()


def test_without_a_control_group_the_watcher_bounds_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_group, "_place", lambda: None)
    policy = Policy(memory_bytes=128 << 20, wall_seconds=10)
    children = "import os, time\nfor _ in range(5):\n    if os.fork() == 0: break\nblock = bytes([1]) * (40 << 20)\ntime.sleep(20)"
    with Sandbox(policy) as sandbox:
        assert "group" not in sandbox.isolation["memory"]
        assert [run(children).end for run in (runner(sandbox), warm_runner(sandbox))] == ["memory", "memory"]


def test_a_control_group_that_is_gone_later_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as sandbox:
        if not sandbox._witness.layers.memory_group:
            pytest.skip("no control group can be made on this machine")
        monkeypatch.setattr(memory_group.MemoryGroup, "make", classmethod(lambda cls: None))
        with pytest.raises(IsolationError, match="memory group"):
            sandbox.run_blocking(SLEEP)


ORPHANS = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            block = bytes([1]) * (24 << 20)
            time.sleep(30)
        os._exit(0)
    os.wait()
time.sleep(30)
"""


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "bare"])
@pytest.mark.parametrize("kind", ["job", "call"])
def test_orphans_count_without_a_control_group(kind: str, namespaces: bool) -> None:
    with Sandbox(layers=Layers(memory_group=False, namespaces=namespaces)) as sandbox:
        run = (runner if kind == "job" else warm_runner)(sandbox)
        assert run(ORPHANS, policy=Policy(memory_bytes=256 << 20, wall_seconds=6)).end == "memory"


def test_a_call_cannot_ask_for_what_is_not_there() -> None:
    with Sandbox(Policy(require=frozenset()), layers=Layers(seccomp=False)) as loose:
        call = Call(entry="warm_main:main", payload=b"", policy=Policy(require=frozenset({Axis.SYSCALLS})))
        with pytest.raises(IsolationError, match="syscalls"):
            loose.run_warm_blocking(WARM, (call,))


# The supervisor itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["start", "_look", "_add_status", "outcome"])
def test_a_supervisor_that_crashes_gives_an_error_and_leaves_nothing(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    with Sandbox(workers=1) as sandbox:
        with monkeypatch.context() as patch:
            patch.setattr(supervise._Run, part, crash)
            started = time.monotonic()
            with pytest.raises(RuntimeError, match="a fault of ours"):
                sandbox.run_blocking(SLEEP)
            assert time.monotonic() - started < 15
        assert sandbox.run_blocking(SLEEP).stdout == b"done\n"


CALL = {"kind": "call", "test": "assert f() == 1", "names": ["f"], "whole": True}
PROGRAM = {"kind": "program", "test": "assert f() == 1", "call": ""}


@pytest.mark.parametrize("verifier", [CALL, PROGRAM], ids=["call", "program"])
@pytest.mark.parametrize("error", [OSError("no memory"), UnavailableError("no processes")])
def test_trouble_of_the_machine_is_no_verdict_on_a_right_answer(
    verifier: dict[str, object], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    task, answer = Task(id="t", verifier=verifier), Answer(task_id="t", completion="def f(): return 1")
    with Sandbox(workers=1) as sandbox:
        assert asyncio.run(verify(task, answer, sandbox, Path())).passed
        monkeypatch.setattr(warm.Worker, "run", fail)
        verdict = asyncio.run(verify(task, answer, sandbox, Path()))
    assert (verdict.status, verdict.score, verdict.scorable) == (Status.HARNESS_ERROR, 0.0, False)
    assert str(error) in verdict.reason


@pytest.mark.parametrize("verifier", [CALL, PROGRAM], ids=["call", "program"])
def test_a_fault_of_ours_in_the_middle_is_an_exception(
    verifier: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    task, answer = Task(id="t", verifier=verifier), Answer(task_id="t", completion="def f(): return 1")
    with Sandbox(workers=1) as sandbox:
        monkeypatch.setattr(warm.Worker, "_outcome", fail)
        with pytest.raises(RuntimeError, match="a fault of ours"):
            asyncio.run(verify(task, answer, sandbox, Path()))
