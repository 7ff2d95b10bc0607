"""An engine in a thread of its own, for programs that answer many clients at once.

Commands go to the thread through a queue and are obeyed between two steps; pieces come back through the event loop of
whoever listens, those of one step together. Nobody who listens can hold the engine up: pieces that are not read wait in the
listener's own queue, which the length of its answer bounds.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from types import TracebackType

from codemill.core.contracts import Request
from codemill.core.errors import UnavailableError
from codemill.engine.answer import Piece, Ticket, failed
from codemill.engine.engine import Engine, EngineStats, Prepared
from codemill.models.memory import release_helpers


@dataclass(slots=True, eq=False)
class _Listener:
    """One request: the side of the event loop (`pieces`, `arrived`) and that of the engine's thread (`ticket`, `open`)."""

    request: Request
    loop: asyncio.AbstractEventLoop
    open: set[int]  # samples that have not ended
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    pieces: deque[Piece] = field(default_factory=deque)
    ticket: Ticket | None = None


class EngineService:
    """Runs an engine that nobody else uses meanwhile. Also a context manager.

    `stream` may be called from any event loop in any thread, as often as wanted at once.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._listeners: set[_Listener] = set()  # touched by the engine's thread only
        self._outbox: list[tuple[_Listener, Piece]] = []
        self._thread = threading.Thread(target=self._run, name="codemill-engine", daemon=True)
        self._lock = threading.Lock()  # between sending a command and closing: none is sent to a thread that has ended
        self._accepts = False
        self._deadline: float | None = None  # set by `close`, obeyed by the thread

    def start(self) -> None:
        """Start the thread, which has the processors to itself from now on. A service starts once."""
        release_helpers()
        self._thread.start()
        self._accepts = True

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, give those in flight `drain_seconds` to end, end the rest with an error, stop the thread."""
        with self._lock:
            self._accepts = False
            deadline = time.monotonic() + drain_seconds
            self._commands.put(lambda: setattr(self, "_deadline", deadline))
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> EngineService:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stats(self) -> EngineStats:
        """The engine's figures as of its last step; from any thread."""
        return self.engine.stats()

    async def stream(self, request: Request | Prepared) -> AsyncIterator[Piece]:
        """The pieces of a request's answers as they come; each sample's last one carries its completion, which says so if
        the request was bad. Closing the iterator cancels the request. Raises `UnavailableError` if the service is closed."""
        loop = asyncio.get_running_loop()
        if isinstance(request, Prepared):
            ready = request
        else:
            ready = await loop.run_in_executor(None, self.engine.prepare, request)
        remaining = max(1, len(ready.samplers))
        listener = _Listener(ready.request, loop, set(range(remaining)))
        self._send(lambda: self._submit(listener, ready))
        try:
            while remaining:
                await listener.arrived.wait()
                listener.arrived.clear()
                while listener.pieces:
                    piece = listener.pieces.popleft()
                    remaining -= piece.completion is not None
                    yield piece
        finally:
            if remaining:
                self._send(lambda: self._cancel(listener), even_closed=True)

    def _send(self, command: Callable[[], None], even_closed: bool = False) -> None:
        with self._lock:
            if self._accepts or even_closed:
                self._commands.put(command)
                return
        raise UnavailableError("the engine's service is not running: it was closed, or never started")

    # In the engine's thread

    def _run(self) -> None:
        while True:
            self._obey()
            if self._deadline is not None and (not self.engine.busy or time.monotonic() >= self._deadline):
                self._fail(list(self._listeners), "the service was closed before the answer was complete")
                self._hand_over()
                return
            if self.engine.busy:
                try:
                    self.engine.step()
                except Exception as error:  # whatever it was, those that wait behind must still be served
                    self._fail(self._stepped(), f"the engine failed: {type(error).__name__}: {error}")
            self._hand_over()

    def _obey(self) -> None:
        """Carry out the commands that are there; without any work in the engine, wait for one."""
        wait = not self.engine.busy and self._deadline is None
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return
            command()
            wait = False

    def _submit(self, listener: _Listener, ready: Prepared) -> None:
        def keep(piece: Piece) -> None:
            if piece.completion is not None:
                listener.open.discard(piece.index)
                if not listener.open:
                    self._listeners.discard(listener)
            self._outbox.append((listener, piece))

        self._listeners.add(listener)
        try:
            listener.ticket = self.engine.submit(ready, keep)
        except Exception as error:
            self._fail([listener], f"the engine failed: {type(error).__name__}: {error}")

    def _cancel(self, listener: _Listener) -> None:
        self._listeners.discard(listener)
        if listener.ticket is not None:
            self.engine.cancel(listener.ticket)

    def _stepped(self) -> list[_Listener]:
        """Whose sequences were in the step that failed; all of them if that cannot be told."""
        running = {id(track.owner.ticket) for track in self.engine.scheduler.running}
        return [one for one in self._listeners if id(one.ticket) in running] or list(self._listeners)

    def _fail(self, listeners: list[_Listener], reason: str) -> None:
        for listener in listeners:
            self._cancel(listener)
            for index in sorted(listener.open):
                completion = failed(listener.request.id, index, f"request {listener.request.id}: {reason}")
                self._outbox.append((listener, Piece(listener.request.id, index, "", (), completion)))

    def _hand_over(self) -> None:
        """Give the pieces of a step to their event loops, one call for each loop."""
        batches: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, Piece]]] = {}
        for listener, piece in self._outbox:
            batches.setdefault(listener.loop, []).append((listener, piece))
        self._outbox.clear()
        for loop, batch in batches.items():
            try:
                loop.call_soon_threadsafe(_arrive, batch)
            except RuntimeError:  # the loop was closed with its listeners
                for listener in {id(listener): listener for listener, _ in batch}.values():
                    self._cancel(listener)


def _arrive(batch: list[tuple[_Listener, Piece]]) -> None:
    for listener, piece in batch:
        listener.pieces.append(piece)
        listener.arrived.set()
