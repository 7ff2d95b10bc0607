"""Server-sent events, and the news that a client has gone."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response

from codemill.serving.errors import ApiError
from codemill.serving.gate import ClientGoneError, Receive, Scope, Send

log = logging.getLogger("codemill.serving")
DONE = "[DONE]"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream(Response):
    """Sends each object as one event. Closes `events` when the client goes away or takes nothing any more, at once.

    A failure after the first event can no longer change the status: it becomes an event of its own. `end` is sent last;
    `closed` is called in any case.
    """

    def __init__(
        self, events: AsyncIterator[dict[str, Any]], closed: Callable[[], None], end: str | None = DONE
    ) -> None:
        super().__init__()
        self._events, self._closed, self._end = events, closed, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait((pump, gone), return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                raise ClientGoneError
            pump.result()
        finally:
            for task in (pump, gone):
                task.cancel()
            await asyncio.gather(pump, gone, return_exceptions=True)
            self._closed()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        try:
            async with aclosing(self._events) as events:  # type: ignore[type-var]
                async for event in events:
                    await send(_body(json.dumps(event, ensure_ascii=False)))
        except ApiError as error:
            await send(_body(json.dumps(error.body)))
        except (ClientGoneError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.error("a stream failed: %s", type(error).__name__, exc_info=_places_only(error))
            await send(_body(json.dumps(ApiError(500, "the server failed").body)))
        last = _body(self._end)["body"] if self._end else b""
        await send({"type": "http.response.body", "body": last, "more_body": False})


def _body(text: str) -> dict[str, Any]:
    data = f"data: {text}\n\n".encode("utf-8", "replace")
    return {"type": "http.response.body", "body": data, "more_body": True}


def _places_only(error: Exception) -> tuple[type[Exception], Exception, Any]:
    """A traceback without the error's own words, which may quote what somebody sent."""
    return type(error), RuntimeError(type(error).__name__), error.__traceback__


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
