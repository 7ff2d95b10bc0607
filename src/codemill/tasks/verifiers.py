"""From an answer to a verdict: choosing the verifier of a task, and running many at once.

The kinds are a closed set: `call` (functions, called by a test in another process), `program` (a program and its test in
one process), `stdio` (what a program prints for given inputs), `command` (build steps, then runs), `workspace` (a
repository and its tests) and `combination` (weighted parts).
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.errors import InputError, UnavailableError
from codemill.sandbox import Sandbox
from codemill.tasks.call import CallSpec, CallVerifier
from codemill.tasks.combination import CombinationSpec, CombinationVerifier
from codemill.tasks.command import CommandSpec, CommandVerifier
from codemill.tasks.program import ProgramSpec, ProgramVerifier
from codemill.tasks.stdio import StdioSpec, StdioVerifier
from codemill.tasks.workspace import WorkspaceSpec, WorkspaceVerifier

Spec = TypeVar("Spec", bound=BaseModel)


class Verifier(Protocol):
    """Turns an answer into a verdict. Never raises because of what an answer is or does."""

    async def verify(self, task: Task, answer: Answer, sandbox: Sandbox) -> Verdict: ...


def verifier_for(task: Task, folder: Path) -> Verifier:
    """The verifier that the task's description names. `folder` holds the task set's `workspaces/`.

    Raises `InputError` for a description that is malformed or of an unknown kind.
    """
    match task.verifier.get("kind"):
        case "call":
            return CallVerifier(_spec(CallSpec, task), task.id)
        case "program":
            return ProgramVerifier(_spec(ProgramSpec, task))
        case "stdio":
            return StdioVerifier(_spec(StdioSpec, task))
        case "command":
            return CommandVerifier(_spec(CommandSpec, task), folder)
        case "workspace":
            return WorkspaceVerifier(_spec(WorkspaceSpec, task), folder)
        case "combination":
            return CombinationVerifier(_spec(CombinationSpec, task), task, lambda part: verifier_for(part, folder))
        case kind:
            valid = "call, program, stdio, command, workspace, combination"
            raise InputError(f"task {task.id}: unknown verifier kind {kind!r}; valid kinds: {valid}")


def _spec(model: type[Spec], task: Task) -> Spec:
    try:
        return model.model_validate(dict(task.verifier))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"task {task.id}: verifier field {field!r}: {first['msg']}") from None


async def verify(task: Task, answer: Answer, sandbox: Sandbox, folder: Path) -> Verdict:
    """One verdict. A fault of this machine (a full disk, no more processes) is `harness_error`, not an exception."""
    try:
        return await verifier_for(task, folder).verify(task, answer, sandbox)
    except (OSError, UnavailableError) as error:
        reason = f"the harness failed: {type(error).__name__}: {error}"
        return Verdict(
            task_id=task.id, sample=answer.sample, status=Status.HARNESS_ERROR, score=0.0, reason=reason[:500]
        )


def verify_all(
    pairs: Iterable[tuple[Task, Answer]], sandbox: Sandbox, folder: Path, *, workers: int | None = None
) -> Iterator[Verdict]:
    """Verdicts of task and answer pairs, as they finish; at most `workers` (default: cores) are under way.

    The runs go on in a thread of their own while the caller works on a verdict. Closing the iterator, an exception in
    the caller or Ctrl-C cancels what is under way and waits until it has ended. Pairs are taken from the iterable as
    they are needed, and `InputError` and other errors of ours end the iteration.
    """
    finished: queue.Queue[Verdict | BaseException | None] = queue.Queue()
    runner = _Runner(iter(pairs), sandbox, folder, workers or os.cpu_count() or 1, finished)
    thread = threading.Thread(target=runner.run, name="verify", daemon=True)
    thread.start()
    try:
        while (item := finished.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        runner.cancel()
        thread.join()


class _Runner:
    """The event loop of `verify_all`, in its own thread."""

    def __init__(
        self,
        pairs: Iterator[tuple[Task, Answer]],
        sandbox: Sandbox,
        folder: Path,
        workers: int,
        finished: queue.Queue[Verdict | BaseException | None],
    ) -> None:
        self._pairs, self._sandbox, self._folder = pairs, sandbox, folder
        self._workers, self._finished = workers, finished
        self._loop = asyncio.new_event_loop()
        self._stopped = threading.Event()
        self._main: asyncio.Task[None] | None = None

    def run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._all())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._finished.put(error)
        finally:
            self._finished.put(None)

    async def _all(self) -> None:
        self._main = asyncio.current_task()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._worker())
        except BaseExceptionGroup as errors:
            self._finished.put(errors.exceptions[0])

    async def _worker(self) -> None:
        for task, answer in self._pairs:
            if self._stopped.is_set():
                return
            self._finished.put(await verify(task, answer, self._sandbox, self._folder))

    def cancel(self) -> None:
        self._stopped.set()
        # A loop that has ended already refuses the call; one that has not begun sees the flag.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel_main)

    def _cancel_main(self) -> None:
        if self._main is not None:
            self._main.cancel()
