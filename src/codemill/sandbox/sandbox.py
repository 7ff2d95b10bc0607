"""The sandbox as the other rooms see it: ask for isolation once, then run jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from codemill.core.errors import ConfigError, InputError, UnavailableError
from codemill.sandbox.job import Job, Outcome
from codemill.sandbox.plan import Layers
from codemill.sandbox.policy import Policy
from codemill.sandbox.supervise import CancelledRun, run_job
from codemill.sandbox.warm import PROBE, Call, Warm, Worker, WorkerDied
from codemill.sandbox.witness import examine
from codemill.sandbox.workspace import Workspace

MAX_IDLE = 4  # warm interpreters kept for later, for each worker


class Sandbox:
    """Runs programs that nobody trusts, each in a process tree and a folder of its own.

    Making one attacks every axis of isolation live (about a second, once per process and choice of layers) and raises
    `IsolationError` if an axis that `policy.require` names does not hold: what cannot be isolated is never run.

    `policy`: limits of every job that brings none of its own.
    `workers`: jobs at a time; None is one for each processor this process may use.
    `layers`: the layers to try; None is all of them. To see how far a machine gets without some of them.

    Safe to use from several threads and event loops. `close`, or the end of a `with` block, waits for running jobs.
    """

    def __init__(self, policy: Policy = Policy(), workers: int | None = None, layers: Layers | None = None) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"sandbox: workers is {workers}: it must be at least 1")
        self.policy = policy
        self.workers = workers or len(os.sched_getaffinity(0))
        self._witness = examine(layers or Layers())
        self._witness.demand(policy.require)
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pool_owner = 0
        self._idle: dict[Warm, list[Worker]] = {}

    @property
    def isolation(self) -> dict[str, str]:
        """Axis to the names of what enforces it here; "nothing" where an attack got through."""
        return self._witness.isolation()

    def report(self) -> list[dict[str, Any]]:
        """One row for each axis: `axis`, `enforced_by`, `witnessed`, and in `detail` what was tried or got through."""
        return self._witness.report()

    async def run(self, job: Job) -> Outcome:
        """Run one job; others run meanwhile. Cancelling the task kills the job's tree.

        Raises `InputError` for a job that cannot be set up as asked and `UnavailableError` where the machine is in
        trouble: neither says anything about the program.
        """
        cancel = threading.Event()
        try:
            return await asyncio.wrap_future(self._submit(job, cancel))
        except asyncio.CancelledError:
            cancel.set()
            raise

    def run_blocking(self, job: Job) -> Outcome:
        """The same without an event loop. An exception in the waiting thread, like Ctrl-C, kills the job's tree."""
        cancel = threading.Event()
        future = self._submit(job, cancel)
        try:
            return future.result()
        finally:
            cancel.set()

    async def run_warm(self, warm: Warm, calls: tuple[Call, ...]) -> tuple[Outcome, ...]:
        """Run one function, or two that are joined by a socket, in forks of a warm interpreter.

        Two calls are separate processes that share nothing but a connected stream socket, descriptor 4 in each; the first
        one's end kills the second. The last call has an empty private folder, the first of two has none. Errors and
        cancellation as with `run`.
        """
        cancel = threading.Event()
        try:
            return await asyncio.wrap_future(self._submit_warm(warm, calls, cancel))
        except asyncio.CancelledError:
            cancel.set()
            raise

    def run_warm_blocking(self, warm: Warm, calls: tuple[Call, ...]) -> tuple[Outcome, ...]:
        """The same without an event loop."""
        cancel = threading.Event()
        future = self._submit_warm(warm, calls, cancel)
        try:
            return future.result()
        finally:
            cancel.set()

    def run_all(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Outcome]]:
        """Run many; yields their position and outcome as they finish. `jobs` is read only a little ahead.

        A job that cannot be run raises and ends the others, as does closing the iterator.
        """
        cancel = threading.Event()
        running: dict[Future[Outcome], int] = {}
        try:
            for index, job in enumerate(jobs):
                running[self._submit(job, cancel)] = index
                if len(running) >= 2 * self.workers:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            cancel.set()
            for future in running:
                future.cancel()

    def workspace(
        self,
        source: Path,
        *,
        policy: Policy | None = None,
        readable: Iterable[Path] = (),
        env: Mapping[str, str] | None = None,
        history: bool = False,
        total_seconds: float | None = None,
    ) -> Workspace:
        """A copy of a repository to work in over many steps, for a `with` or `async with` block.

        `policy`: limits of each command; `disk_bytes` is what all of them together may add. `readable`, `env`: as in `Job`,
        for every command. `history`: take along what is named `.git`. `total_seconds`: what all commands may take together.
        """
        return Workspace(
            self._submit,
            self._witness.layers,
            source,
            policy=policy or self.policy,
            readable=tuple(readable),
            env=env or {},
            history=history,
            total_seconds=total_seconds,
        )

    def _submit(self, job: Job, cancel: threading.Event) -> Future[Outcome]:
        policy = job.policy or self.policy
        if job.policy is not None:
            self._witness.demand(policy.require)
        witness = self._witness
        return self._threads().submit(run_job, job, policy, witness.layers, witness.breaches, cancel)

    def _submit_warm(self, warm: Warm, calls: tuple[Call, ...], cancel: threading.Event) -> Future[tuple[Outcome, ...]]:
        if len(calls) not in (1, 2):
            raise InputError(f"sandbox: {len(calls)} calls at once; one, or two that are joined")
        for call in calls:
            if call.policy is not None:
                self._witness.demand(call.policy.require)
        return self._threads().submit(self._run_warm, warm, calls, cancel)

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool_owner != os.getpid():  # threads do not survive a fork
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
                self._pool_owner = os.getpid()
                self._idle = {}
            return self._pool

    def _run_warm(self, warm: Warm, calls: tuple[Call, ...], cancel: threading.Event) -> tuple[Outcome, ...]:
        """On a thread of the pool. A worker that goes down is replaced and its calls are run once more; if that one goes
        down too while a harmless call works, the calls are what does it."""
        if cancel.is_set():
            raise CancelledRun
        policies = tuple(call.policy or self.policy for call in calls)
        problem = ""
        for _ in range(2):
            try:
                return self._with_worker(warm, calls, policies, cancel)
            except WorkerDied as error:
                problem = str(error)
        try:
            self._with_worker(warm, (Call(entry=PROBE, payload=b""),), policies[:1], threading.Event())
        except WorkerDied:
            raise UnavailableError(f"sandbox: warm interpreters die on this machine: {problem}") from None
        return tuple(Outcome(end="signal", signal=signal.SIGKILL, isolation=self.isolation) for _ in calls)

    def _with_worker(
        self, warm: Warm, calls: tuple[Call, ...], policies: tuple[Policy, ...], cancel: threading.Event
    ) -> tuple[Outcome, ...]:
        with self._lock:
            idle = self._idle.get(warm)
            worker = idle.pop() if idle else None
        if worker is None:
            worker = Worker(warm, self.policy, self._witness.layers, self._witness.breaches)
        try:
            outcomes = worker.run(calls, policies, cancel)
        except BaseException:
            worker.close()
            raise
        with self._lock:  # what was used last stands last
            self._idle[warm] = [*self._idle.pop(warm, ()), worker]
            surplus = self._surplus()
        for old in surplus:
            old.close()
        return outcomes

    def _surplus(self) -> list[Worker]:
        """The idle interpreters that were not used for longest, as many as there are too many of."""
        surplus: list[Worker] = []
        count = sum(map(len, self._idle.values()))
        for warm in list(self._idle):
            while self._idle[warm] and count - len(surplus) > MAX_IDLE * self.workers:
                surplus.append(self._idle[warm].pop(0))
            if not self._idle[warm]:
                del self._idle[warm]
        return surplus

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pool_owner == os.getpid():
            pool.shutdown()
            with self._lock:
                idle, self._idle = self._idle, {}
            for workers in idle.values():
                for worker in workers:
                    worker.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finished(running: dict[Future[Outcome], int]) -> Iterator[tuple[int, Outcome]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()
