"""Calls of warm interpreters: what one run leaves for the next, what two joined calls see of each other, and failure."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
import time
from pathlib import Path

import pytest
from sandbox_support import wait_until

from codemill.core.errors import InputError, UnavailableError
from codemill.sandbox import Call, Outcome, Policy, Sandbox, Warm
from codemill.sandbox.warm import Worker

WARM = Warm(modules=(Path(__file__).with_name("warm_pair.py"),), imports=("json",))


def call(name: str, payload: bytes = b"", **fields: object) -> Call:
    return Call(entry=f"warm_pair:{name}", payload=payload, result=True, **fields)


def one(sandbox: Sandbox, name: str, payload: bytes = b"", **fields: object) -> Outcome:
    return sandbox.run_warm_blocking(WARM, (call(name, payload, **fields),))[0]


def worker_of(sandbox: Sandbox) -> Worker:
    """The worker that the next run takes."""
    one(sandbox, "nothing")
    return sandbox._idle[WARM][-1]


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_payload_and_result_of_any_size(sandbox: Sandbox, size: int) -> None:
    payload = os.urandom(size)
    outcome = one(sandbox, "echo", payload) if size < 60_000 else None
    outcome = outcome or one(sandbox, "echo", payload)
    assert outcome.succeeded
    assert outcome.result == payload
    assert all(by != "nothing" or axis == "output" for axis, by in outcome.isolation.items())


def test_two_calls_are_joined_and_end_with_the_first(sandbox: Sandbox) -> None:
    first, second = sandbox.run_warm_blocking(WARM, (call("ask", b"question "), call("answer", b"answer to ")))
    assert first.result == b"answer to question "
    assert second.signal == signal.SIGKILL
    assert first.seconds < 30


def test_nothing_of_a_judge_is_in_the_memory_of_a_candidate(sandbox: Sandbox) -> None:
    """Not in the one that runs beside it, and not in later ones of the same interpreter."""
    first, second = secrets.token_hex(16).encode(), secrets.token_hex(16).encode()
    pair = call("hold_secret", first + second), call("look_for", first + b"|" + second)
    worker = worker_of(sandbox)
    holder, looker = sandbox.run_warm_blocking(WARM, pair)
    assert holder.result == first + second
    assert looker.result.startswith(b"0 of "), looker
    for _ in range(2):
        later = one(sandbox, "look_for", first + b"|" + second)
        assert later.result.startswith(b"0 of "), later
        assert int(later.result.split()[-1]) > 6000
    assert worker_of(sandbox) is worker
    assert not one(sandbox, "look_for_own", first + b"|" + second).result.startswith(b"0 of ")


def test_nothing_is_left_for_the_next_call(sandbox: Sandbox) -> None:
    worker = worker_of(sandbox)
    clean = one(sandbox, "look_around").result
    assert one(sandbox, "leave_things").end == "exited"
    assert one(sandbox, "look_around").result == clean
    assert worker_of(sandbox) is worker
    assert not worker.busy
    assert clean.startswith(b"([], [")


def test_ends_are_told_apart(sandbox: Sandbox) -> None:
    assert (one(sandbox, "crash").end, one(sandbox, "crash").signal) == ("signal", signal.SIGSEGV)
    assert one(sandbox, "spin", policy=Policy(wall_seconds=0.3)).end == "timeout"
    assert one(sandbox, "spin", policy=Policy(wall_seconds=20, cpu_seconds=0.3)).end == "timeout"
    assert one(sandbox, "flood").end == "output"
    outcome = one(sandbox, "print_a_lot", policy=Policy(output_bytes=1000))
    whole = b"".join(b"%d\n" % number for number in range(100_000))
    assert outcome.stdout == whole[:500] + whole[-500:]
    assert outcome.stdout_dropped == len(whole) - 1000


def test_a_worker_that_is_gone_is_replaced_and_the_call_run_again(plain: Sandbox) -> None:
    worker = worker_of(plain)
    os.kill(worker._root, signal.SIGKILL)
    assert one(plain, "echo", b"still").result == b"still"
    assert worker_of(plain) is not worker
    assert wait_until(lambda: not os.path.exists(f"/proc/{worker._root}"))


def test_a_call_under_which_every_worker_dies_counts_against_it(plain: Sandbox) -> None:
    """A killer outside takes down each interpreter that runs a spinning call; the harmless probe goes through."""
    over = threading.Event()

    def kill_spinning() -> None:
        while not over.is_set():
            for name in filter(str.isdigit, os.listdir("/proc")):
                try:
                    parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
                    warm = b"zygote" in Path(f"/proc/{parent}/cmdline").read_bytes() and parent != os.getpid()
                    ticks = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[11])
                    if warm and ticks > 5 and plain_root(parent):
                        os.kill(parent, signal.SIGKILL)
                except (OSError, IndexError, ValueError):
                    continue
            time.sleep(0.02)

    def plain_root(pid: int) -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        return "NSpid:" in status and status.split("NSpid:")[1].split("\n")[0].split()[-1] == "1"

    killer = threading.Thread(target=kill_spinning)
    killer.start()
    try:
        outcome = one(plain, "spin", policy=Policy(wall_seconds=20, cpu_seconds=20))
    finally:
        over.set()
        killer.join()
    assert outcome.end == "signal"
    assert not outcome.succeeded


def test_cancelling_kills_and_the_sandbox_goes_on(plain: Sandbox) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(plain.run_warm(WARM, (call("spin"),)))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert one(plain, "echo", b"on").result == b"on"


def test_many_at_once_keep_their_own_results(plain: Sandbox) -> None:
    async def all_of_them() -> list[bytes]:
        jobs = [plain.run_warm(WARM, (call("echo", b"%d" % number),)) for number in range(200)]
        return [outcome.result for (outcome,) in await asyncio.gather(*jobs)]

    assert asyncio.run(all_of_them()) == [b"%d" % number for number in range(200)]
    assert len(plain._idle[WARM]) <= plain.workers


def test_runs_leave_no_process_descriptor_or_memory(plain: Sandbox) -> None:
    worker = worker_of(plain)

    def use() -> tuple[int, int, int]:
        status = Path(f"/proc/{worker._root}/status").read_text()
        memory = int(status.split("VmRSS:")[1].split()[0])
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{worker._root}/fd")), memory

    for _ in range(50):
        one(plain, "print_a_lot", policy=Policy(output_bytes=1000)) if _ % 10 == 0 else one(plain, "leave_things")
    before = use()
    for _ in range(300):
        one(plain, "nothing")
    after = use()
    assert after[:2] == before[:2]
    assert after[2] < before[2] + 2000
    assert not worker.busy


def test_closing_ends_the_interpreters() -> None:
    with Sandbox(workers=1) as sandbox:
        root = worker_of(sandbox)._root
        assert os.path.exists(f"/proc/{root}")
    assert wait_until(lambda: not os.path.exists(f"/proc/{root}"))


def test_bad_requests(plain: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 calls"):
        plain.run_warm_blocking(WARM, (call("nothing"),) * 3)
    broken = tmp_path / "broken.py"
    broken.write_text("def main(:\n")
    with pytest.raises(InputError, match=r"broken\.py"):
        plain.run_warm_blocking(Warm(modules=(broken,)), (call("nothing"),))
    broken.with_name("raises.py").write_text("1 / 0\n")
    with pytest.raises(UnavailableError, match="ZeroDivisionError"):
        plain.run_warm_blocking(Warm(modules=(tmp_path / "raises.py",)), (call("nothing"),))
    outcome = one(plain, "no_such_function")
    assert (outcome.exit_code, b"no_such_function" in outcome.stderr) == (1, True)
