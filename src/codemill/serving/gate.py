"""The door of the server: who may enter, with how much, how often, and how long they may block it.

A plain ASGI layer around the application, so that everything is decided before a body is parsed. Nothing of a body is logged.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from codemill.serving.errors import ApiError
from codemill.serving.metrics import Metrics
from codemill.serving.settings import ServeSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN_PATHS = frozenset({"/health"})
_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CLIENTS = 4096  # addresses whose rate is remembered
log = logging.getLogger("codemill.serving")


class ClientGoneError(Exception):
    """The client went away, or took nothing for too long."""


@dataclass(slots=True)
class RateLimit:
    """A bucket of tokens for each client, refilled evenly ("token bucket"); the least recently seen is forgotten first."""

    per_minute: int
    _levels: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)  # tokens left, at what time

    def take(self, client: str, now: float) -> float:
        """Take one token: 0, or the seconds until there is one."""
        if not self.per_minute:
            return 0.0
        level, seen = self._levels.pop(client, (float(self.per_minute), now))
        level = min(float(self.per_minute), level + (now - seen) * self.per_minute / 60)
        self._levels[client] = (max(level - 1, 0.0) if level >= 1 else level, now)
        if len(self._levels) > _CLIENTS:
            self._levels.popitem(last=False)
        return 0.0 if level >= 1 else (1 - level) * 60 / self.per_minute


@dataclass(slots=True)
class _Visit:
    """One request on its way through the door."""

    id: str
    scope: Scope
    started: float
    status: int = 0
    begun: bool = False


class Gate:
    """Wraps an ASGI application. `draining` is set when the server is about to stop: new requests are then refused."""

    def __init__(self, app: Any, settings: ServeSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.rates = RateLimit(settings.rate_per_minute)
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        visit = _Visit(
            given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}", scope, time.perf_counter()
        )
        scope.setdefault("state", {})["request_id"] = visit.id
        scope["state"]["started"] = visit.started
        self.metrics.open_requests += 1
        try:
            await self._enter(visit, headers, receive, send)
        except ClientGoneError:
            visit.status = visit.status or 499
        except ApiError as error:
            await self._refuse(visit, error, send)
        finally:
            self.metrics.open_requests -= 1
            self._note(visit)

    async def _enter(self, visit: _Visit, headers: dict[str, str], receive: Receive, send: Send) -> None:
        scope = visit.scope
        self._check_sender(scope, headers)
        body = b""
        if scope["method"] == "POST":
            self._check_type(headers)
            body = await self._read(headers, receive)
        replayed = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def deliver(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                visit.status, visit.begun = message["status"], True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", visit.id.encode())]
            try:  # not `wait_for`, which before Python 3.12 loses a cancellation that comes as the message is taken
                async with asyncio.timeout(self.settings.stall_seconds):
                    await send(message)
            except TimeoutError:
                raise ClientGoneError from None

        await self.app(scope, replay, deliver)

    def _check_sender(self, scope: Scope, headers: dict[str, str]) -> None:
        settings = self.settings
        if settings.is_loopback and not settings.api_key:
            # A page in a browser can make a name of its own point to this machine; its requests carry that name.
            name = re.sub(r":\d+$", "", headers.get("host", "localhost")).lower()
            if name not in _OWN_NAMES:
                raise ApiError(403, f"this server answers to localhost only, not to {name[:100]!r}", code="wrong_host")
        if scope["path"] in OPEN_PATHS:
            return
        if settings.api_key:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            good = hmac.compare_digest(key.strip().encode("latin-1", "replace"), settings.api_key.encode())
            if scheme.lower() != "bearer" or not good:
                raise ApiError(401, "no valid API key: send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
        if scope["method"] == "POST":
            if self.draining:
                raise ApiError(503, "the server is about to stop", code="draining", retry_after=5)
            client = (scope.get("client") or ("",))[0]
            wait = self.rates.take(client, time.monotonic())
            if wait:
                raise ApiError(
                    429,
                    f"more than {settings.rate_per_minute} requests a minute from one client",
                    code="rate_limit_exceeded",
                    retry_after=wait,
                )

    def _check_type(self, headers: dict[str, str]) -> None:
        # Pages of other origins can send forms and plain text without asking; JSON they cannot.
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"the body must be JSON: send 'Content-Type: application/json', not {kind[:60]!r}")

    async def _read(self, headers: dict[str, str], receive: Receive) -> bytes:
        limit = self.settings.max_body_bytes
        too_large = ApiError(413, f"the body is larger than {limit:,} bytes", code="request_too_large")
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:18]) > limit:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.settings.stall_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self.settings.stall_seconds:g} seconds") from None

    async def _refuse(self, visit: _Visit, error: ApiError, send: Send) -> None:
        if visit.begun:
            return
        visit.status = error.status
        body = json.dumps(error.body).encode()
        headers = {
            "content-type": "application/json", "content-length": str(len(body)), "x-request-id": visit.id,
            "connection": "close", **error.headers,
        }  # fmt: skip
        encoded = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    def _note(self, visit: _Visit) -> None:
        seconds = time.perf_counter() - visit.started
        route = visit.scope.get("route")
        endpoint = getattr(route, "path", None) or ("/health" if visit.scope["path"] == "/health" else "other")
        self.metrics.request(endpoint, visit.status, seconds)
        log.info("%s %s %s %s %.0f ms", visit.id, visit.scope["method"], endpoint, visit.status, 1000 * seconds)
