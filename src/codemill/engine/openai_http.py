"""Asking an HTTP server until there is an answer or no hope of one.

What can pass is tried again with growing pauses (full jitter, as described in "Exponential Backoff And Jitter", AWS
Architecture Blog, 2015); what cannot is not. The server's pauses are kept, by all requests. Bodies are bounded, redirects not
followed, and the key never enters a message. Imports no torch.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from codemill import __version__
from codemill.core.errors import ConfigError
from codemill.engine.openai_wire import MalformedAnswerError, parse, problem_in, shown

MAX_BODY = 32 << 20  # bytes of one answer
MAX_ERROR = 64 << 10  # and of one error
# Statuses worth another try. Every other one is final, among them 400, 401, 403, 404, 413, 422 and all redirects.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
# And never, whatever the status: the same request would only fail again. Words of an error's code or type, or of its text.
FINAL_WORDS = frozenset({
    "context_length_exceeded", "exceed_context_size_error", "content_policy_violation", "content_filter", "insufficient_quota",
    "invalid_api_key", "model_not_found", "invalid_request_error",
})  # fmt: skip
FINAL_PHRASES = ("maximum context length", "unsupported param", "not supported", "does not support", "content policy")
REFUSALS = frozenset({400, 422, 500})  # statuses with which servers refuse a field that they do not know


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, in seconds. `whole` bounds one completion, its retries and pauses included.

    A server answers when it has finished writing, so `first_byte` must be longer than the longest answer takes.
    """

    connect: float = 10.0
    first_byte: float = 600.0
    whole: float = 1800.0
    retries: int = 6
    pause: float = 0.5  # at most, before the first retry; doubled for each one after it
    longest_pause: float = 30.0


class Failure(Exception):
    """No answer, and why. `passing`: it may be had later. `after`: seconds that the server asks to wait. `refused`: fields that
    it named when it refused them."""

    def __init__(
        self,
        message: str,
        *,
        passing: bool,
        status: int = 0,
        after: float | None = None,
        refused: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(message)
        self.passing, self.status, self.after, self.refused = passing, status, after, refused


class Server:
    """The address of a server, its key, and what was learnt about it. `droppable` says of a field and its value whether leaving
    it out asks for the same."""

    def __init__(
        self,
        endpoint: str,
        *,
        api_key_env: str,
        patience: Patience,
        connections: int,
        droppable: Callable[[str, Any], bool],
    ) -> None:
        self.base = normal_endpoint(endpoint)
        self.patience, self.connections = patience, connections
        self._key = _read_key(api_key_env)
        self._droppable = droppable
        self._refused: set[str] = set()

    def headers(self) -> dict[str, str]:
        said = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": f"codemill/{__version__}",
        }
        return said | {"Authorization": f"Bearer {self._key}"} if self._key else said

    def private(self, text: str) -> str:
        """Text that may be shown: some servers put the key into their errors."""
        return text.replace(self._key, "[key]") if self._key else text

    def url(self, route: str) -> str:
        # llama.cpp serves /infill beside /v1, not inside it.
        return f"{self.base.removesuffix('/v1')}/infill" if route == "infill" else f"{self.base}/{route}"

    async def ask(self, connection: Connection, method: str, route: str, body: dict[str, Any] | None) -> Any:
        """The JSON of a good answer. Raises `Failure`."""
        patience, retries, last = self.patience, 0, "none"
        try:
            async with asyncio.timeout(patience.whole) as limit:
                while True:
                    await connection.wait_for_turn()
                    try:
                        return await self._try(connection, method, route, self._trimmed(body))
                    except Failure as failure:
                        last = str(failure)
                        if failure.refused:  # the same with less, at once
                            self._refused |= failure.refused
                            continue
                        if not failure.passing or retries == patience.retries:
                            raise
                        pause = self._pause(retries, failure.after)
                        retries += 1
                        left = (limit.when() or math.inf) - asyncio.get_running_loop().time()
                        if pause > left:
                            raise Failure(f"{last}; {pause:.0f} s to wait are too long", passing=True) from None
                        if failure.after is not None:
                            connection.hold(pause)
                        await asyncio.sleep(pause)
        except TimeoutError:
            raise Failure(f"no answer within {patience.whole:g} s; last failure: {last}", passing=True) from None

    def ask_alone(self, method: str, route: str, body: dict[str, Any] | None) -> Any:
        """The same over a connection of its own, blocking."""
        with Connection(self) as connection:
            return connection.start(self.ask(connection, method, route, body)).result()

    def _pause(self, retries: int, asked: float | None) -> float:
        """Seconds before the next try: what the server asks for and a little more, not to come back all at once."""
        jitter = random.random()  # of no influence on any result, so not from a seed
        if asked is not None:
            return asked + jitter * self.patience.pause
        return jitter * min(self.patience.longest_pause, self.patience.pause * 2.0**retries)

    def _trimmed(self, body: dict[str, Any] | None) -> dict[str, Any] | None:
        """The body without the fields that this server has refused, where that asks for the same."""
        if body is None or not self._refused:
            return body
        return {name: v for name, v in body.items() if not (name in self._refused and self._droppable(name, v))}

    async def _try(self, connection: Connection, method: str, route: str, body: dict[str, Any] | None) -> Any:
        try:
            # ASCII: a prompt may hold half a surrogate pair, which JSON can carry and UTF-8 cannot.
            content = None if body is None else json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise Failure(f"the request cannot be written as JSON: {error}", passing=False) from None
        try:
            status, headers, data = await self._exchange(connection.client, method, self.url(route), content)
        except httpx.TimeoutException:
            raise Failure(f"no connection within {self.patience.connect:g} s", passing=True) from None
        except httpx.HTTPError as error:
            text = self.private(shown(str(error))) or type(error).__name__
            raise Failure(f"connection failed: {text}", passing="CERTIFICATE_VERIFY" not in text) from None
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Failure(f"cannot be asked: {shown(str(error))}", passing=False) from None
        if status != 200:
            raise self._failure(status, headers, data, body or {})
        try:
            return parse(data)
        except MalformedAnswerError as error:  # a proxy's page, or an answer cut off: may be better next time
            raise Failure(f"the answer is malformed: {error}", passing=True) from None

    async def _exchange(
        self, client: httpx.AsyncClient, method: str, url: str, content: bytes | None
    ) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and a body of bounded size."""
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.patience.first_byte):
                    response = await stack.enter_async_context(client.stream(method, url, content=content))
            except TimeoutError:
                raise Failure(f"nothing came within {self.patience.first_byte:g} s", passing=True) from None
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise Failure("the answer is compressed, which was not asked for", passing=False)
            good = response.status_code == 200
            data = bytearray()
            async for piece in response.aiter_raw(1 << 16):
                data += piece
                if len(data) > MAX_BODY:
                    raise Failure(f"the answer is larger than {MAX_BODY >> 20} MiB", passing=False)
                if len(data) > MAX_ERROR and not good:
                    break
            return response.status_code, response.headers, bytes(data)

    def _failure(self, status: int, headers: httpx.Headers, data: bytes, body: dict[str, Any]) -> Failure:
        said, words = problem_in(data)
        said = self.private(said)
        message = f"HTTP {status}{f': {said}' if said else ''}"
        if 300 <= status < 400:
            return Failure(f"{message} (redirects are not followed)", passing=False, status=status)
        final = bool(words & FINAL_WORDS) or any(phrase in said.lower() for phrase in FINAL_PHRASES)
        refused: frozenset[str] = frozenset()
        if status in REFUSALS:
            named = {name for name in body if name in words or re.search(rf"\b{name}\b", said)}
            refused = frozenset(name for name in named if self._droppable(name, body[name]))
        passing = status in PASSING and not final
        return Failure(message, passing=passing, status=status, after=_retry_after(headers), refused=refused)


class Connection:
    """An event loop in a thread of its own, with one client in it. Leaving it cancels what is under way."""

    client: httpx.AsyncClient
    _loop: asyncio.AbstractEventLoop
    _closing: asyncio.Event

    def __init__(self, server: Server) -> None:
        self._server = server
        self._held_until = 0.0
        # A daemon: Ctrl-C in the middle of anything ends the program, not the wait for a server.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True, name="openai-client")
        self._ready: queue.SimpleQueue[ConfigError | None] = queue.SimpleQueue()

    def __enter__(self) -> Connection:
        self._thread.start()
        problem = self._ready.get()
        if problem is not None:
            raise problem
        return self

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """A `concurrent.futures.Future` of the coroutine, which runs in the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(timeout=10.0)

    async def _serve(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = self._server
        try:
            client = httpx.AsyncClient(
                headers=server.headers(),
                timeout=httpx.Timeout(None, connect=server.patience.connect),
                limits=httpx.Limits(max_connections=server.connections, max_keepalive_connections=server.connections),
                follow_redirects=False,
                trust_env=not is_loopback(server.base),  # proxies are for what lies outside
            )
        except Exception as error:  # a proxy or certificate setting of the environment that httpx rejects
            self._ready.put(ConfigError(f"{server.base}: the HTTP client does not start: {shown(str(error))}"))
            return
        async with client:
            self.client = client
            self._ready.put(None)
            await self._closing.wait()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_for_turn(self) -> None:
        """Wait while the server has asked to be left alone."""
        while (pause := self._held_until - time.monotonic()) > 0:
            await asyncio.sleep(pause)

    def hold(self, seconds: float) -> None:
        self._held_until = max(self._held_until, time.monotonic() + seconds)


def normal_endpoint(endpoint: str) -> str:
    """The address up to and with `/v1`. Raises `ConfigError`, which never repeats what may be a secret."""
    try:
        parts = urlsplit(endpoint.strip())
        port = parts.port
    except ValueError:
        raise ConfigError("endpoint: not an address; write it like http://127.0.0.1:8000/v1") from None
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            "endpoint: credentials and parameters do not belong into the address; put the key into an environment variable and "
            "name that (--api-key-env)"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"endpoint {shown(endpoint)[:80]!r}: write it like http://127.0.0.1:8000/v1")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path if path.endswith('/v1') else f'{path}/v1'}"


def is_loopback(base: str) -> bool:
    host = urlsplit(base).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _read_key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"environment variable {shown(variable)!r} is not set; put the server's key there")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"environment variable {shown(variable)!r} holds no key: it must be one word of ASCII")
    return key


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that the server asks to wait: a number, or a date. Nonsense is no request."""
    text = headers.get("retry-after", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
