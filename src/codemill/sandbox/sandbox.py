"""The sandbox as the other rooms see it: ask for isolation once, then run jobs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from codemill.core.errors import ConfigError
from codemill.sandbox.job import Job, Outcome
from codemill.sandbox.plan import Layers
from codemill.sandbox.policy import Policy
from codemill.sandbox.supervise import run_job
from codemill.sandbox.witness import examine


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

    def _submit(self, job: Job, cancel: threading.Event) -> Future[Outcome]:
        policy = job.policy or self.policy
        if job.policy is not None:
            self._witness.demand(policy.require)
        with self._lock:
            if self._pool is None or self._pool_owner != os.getpid():  # threads do not survive a fork
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")
                self._pool_owner = os.getpid()
            witness = self._witness
            return self._pool.submit(run_job, job, policy, witness.layers, witness.breaches, cancel)

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pool_owner == os.getpid():
            pool.shutdown()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _finished(running: dict[Future[Outcome], int]) -> Iterator[tuple[int, Outcome]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()
