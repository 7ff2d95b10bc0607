"""The engine in its own thread: many listeners, gone ones, slow ones, failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from engine_support import answers, asked, check_empty

from codemill.core.contracts import Request, Sampling
from codemill.core.errors import UnavailableError
from codemill.engine.engine import Engine, Piece, Prepared
from codemill.engine.service import EngineService
from tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(tiny_checkpoint(tmp_path_factory.mktemp("tiny")), dtype="fp32", device="cpu", max_batch=4)


@pytest.fixture
def service(engine: Engine) -> Iterator[EngineService]:
    with EngineService(engine) as running:
        yield running
    check_empty(engine)


async def pieces_of(service: EngineService, request: Request | Prepared) -> list[Piece]:
    return [piece async for piece in service.stream(request)]


def test_many_at_once_get_their_own_answers(service: EngineService, engine: Engine) -> None:
    wanted = [
        Request(id=str(i), prompt=f"{i} def f", n=1 + i % 2, sampling=Sampling(max_tokens=10, temperature=i % 3 / 2))
        for i in range(24)
    ]

    async def main() -> list[list[Piece]]:
        return await asyncio.gather(*(pieces_of(service, request) for request in wanted))

    together = asyncio.run(main())
    service.close()
    for request, pieces in zip(wanted, together, strict=True):
        done = [piece.completion for piece in pieces if piece.completion is not None]
        assert answers(done) == answers(list(engine.generate([request])))
        assert {piece.request_id for piece in pieces} == {request.id}
        for completion in done:
            assert {p.cached_tokens for p in pieces if p.index == completion.index} == {completion.cached_tokens}
            assert "".join(p.text for p in pieces if p.index == completion.index) == completion.text


def test_loops_in_several_threads(service: EngineService) -> None:
    ends: list[str] = []

    def client(name: int) -> None:
        for piece in asyncio.run(pieces_of(service, asked(name, f"{name}", max_tokens=6))):
            if piece.completion is not None:
                ends.append(piece.completion.request_id)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ends) == list("012345")


def wait_until_idle(service: EngineService) -> None:
    for _ in range(2000):
        stats = service.stats()
        if not (stats.running or stats.waiting):
            return
        time.sleep(0.005)
    raise AssertionError("the engine is still busy")


def test_a_closed_iterator_cancels(service: EngineService) -> None:
    async def main() -> None:
        before = service.stats().completion_tokens
        stream = service.stream(asked("long", "a", max_tokens=500))
        async for piece in stream:
            assert piece.completion is None
            break
        await stream.aclose()  # type: ignore[attr-defined]
        done = await pieces_of(service, asked("short", "b", max_tokens=3))
        assert done[-1].completion is not None
        await asyncio.get_running_loop().run_in_executor(None, wait_until_idle, service)
        assert service.stats().completion_tokens - before < 450

    asyncio.run(main())
    wait_until_idle(service)


def test_a_cancelled_task_cancels(service: EngineService) -> None:
    async def main() -> None:
        tasks = [asyncio.create_task(pieces_of(service, asked(i, "a" * i, max_tokens=400))) for i in range(1, 8)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, asyncio.CancelledError) for result in results)

    asyncio.run(main())
    wait_until_idle(service)


def test_a_listener_that_never_reads_holds_nobody_up(service: EngineService) -> None:
    async def main() -> None:
        lazy = service.stream(asked("lazy", "a", max_tokens=200))
        first = await anext(lazy)
        quick = await asyncio.gather(*(pieces_of(service, asked(i, "b", max_tokens=20)) for i in range(8)))
        assert all(pieces[-1].completion is not None for pieces in quick)
        rest = [piece async for piece in lazy]
        done = rest[-1].completion
        assert done is not None
        assert first.text + "".join(piece.text for piece in rest) == done.text

    asyncio.run(main())


def test_a_loop_that_is_gone_cancels_its_requests(service: EngineService) -> None:
    loop = asyncio.new_event_loop()
    stream = service.stream(asked("gone", "a", max_tokens=400))
    loop.run_until_complete(anext(stream))  # type: ignore[arg-type]
    loop.close()
    wait_until_idle(service)
    assert service.stats().completion_tokens > 0


def test_a_bad_request_ends_alone(service: EngineService) -> None:
    async def main() -> list[list[Piece]]:
        wanted = [
            asked("bad", "", max_tokens=3),
            asked("good", "a", max_tokens=3),
            asked("nan", "a", temperature=float("nan")),
        ]
        return await asyncio.gather(*(pieces_of(service, request) for request in wanted))

    ready = service.engine.prepare(asked("ready", "a", max_tokens=2))
    assert asyncio.run(pieces_of(service, ready))[-1].completion is not None
    bad, good, nan = asyncio.run(main())
    for pieces in (bad, nan):
        (piece,) = pieces
        assert piece.completion is not None
        assert piece.completion.finish_reason == "error"
    assert good[-1].completion is not None
    assert good[-1].completion.finish_reason != "error"


def test_close_drains_or_cancels(engine: Engine) -> None:
    async def main(drain_seconds: float) -> list[Piece]:
        service = EngineService(engine)
        service.start()
        task = asyncio.create_task(pieces_of(service, asked("a", "a", max_tokens=300)))
        while not service.stats().running:
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().run_in_executor(None, service.close, drain_seconds)
        pieces = await task
        with pytest.raises(UnavailableError, match="not running"):
            await pieces_of(service, asked("late", "a"))
        service.close()
        return pieces

    drained, cut = asyncio.run(main(60.0)), asyncio.run(main(0.0))
    assert drained[-1].completion is not None
    assert drained[-1].completion.finish_reason != "error"
    assert cut[-1].completion is not None
    assert "closed" in cut[-1].completion.error
    check_empty(engine)


def test_whoever_leaves_while_draining_is_not_waited_for(engine: Engine) -> None:
    async def main() -> None:
        service = EngineService(engine)
        service.start()
        before = service.stats().completion_tokens
        task = asyncio.create_task(pieces_of(service, asked("a", "a", max_tokens=500)))
        while not service.stats().running:
            await asyncio.sleep(0.001)
        closing = asyncio.get_running_loop().run_in_executor(None, service.close, 60.0)
        await asyncio.sleep(0.01)
        task.cancel()
        await closing
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.stats().completion_tokens - before < 450

    asyncio.run(main())
    check_empty(engine)


def test_a_failing_step_ends_those_in_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, failures = engine.decoder.forward, []

    def broken(*arguments: object) -> object:
        if not failures:
            failures.append(1)
            raise MemoryError("no room")
        return forward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.decoder, "forward", broken)

    async def main(service: EngineService) -> None:
        first = await pieces_of(service, asked("first", "a", max_tokens=3))
        assert first[-1].completion is not None
        assert "MemoryError: no room" in first[-1].completion.error
        second = await pieces_of(service, asked("second", "a", max_tokens=3))
        assert second[-1].completion is not None
        assert not second[-1].completion.error

    with EngineService(engine) as service:
        asyncio.run(main(service))
    check_empty(engine)


def test_without_start_nothing_is_accepted(engine: Engine) -> None:
    service = EngineService(engine)
    with pytest.raises(UnavailableError):
        asyncio.run(pieces_of(service, asked("a", "a")))
    service.close()
