"""Runs the server: a socket, an engine, and an end that lets nobody down."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from codemill.core.errors import UnavailableError
from codemill.engine.engine import Engine
from codemill.engine.service import EngineService
from codemill.serving.app import build_app
from codemill.serving.gate import Gate
from codemill.serving.settings import ServeSettings

MAX_CONNECTIONS = 1024  # beyond them new ones are told to come back
_KEEP_ALIVE_SECONDS = 75
_AFTER_DRAIN_SECONDS = 5  # for the last words of answers that were ended


class Server(uvicorn.Server):
    """Told to stop, it takes no new requests, gives those that run their time, ends the rest with an error, and returns."""

    def __init__(
        self, service: EngineService, settings: ServeSettings, on_start: Callable[[], None] = lambda: None
    ) -> None:
        self.service, self.settings, self.on_start = service, settings, on_start
        self.gate: Gate = build_app(service, settings)
        super().__init__(
            uvicorn.Config(
                self.gate,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=round(settings.drain_seconds) + _AFTER_DRAIN_SECONDS,
                proxy_headers=False,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.gate.draining = True
        # Closing the service ends what still runs at the deadline, each answer with an error of its own; the connections
        # then have nothing left to wait for.
        closing = asyncio.ensure_future(asyncio.to_thread(self.service.close, self.settings.drain_seconds))
        await super().shutdown(sockets)
        await closing


def listen(settings: ServeSettings) -> socket.socket:
    """The socket, bound and not yet listening."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections whose other end takes nothing are dropped by the system
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * settings.stall_seconds))
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror or error}); choose another --port"
        ) from None
    return listener


def serve(engine: Engine, settings: ServeSettings, say: Callable[[str], None], listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; `say` gets one line when requests are taken. A second signal ends it at once."""
    _log_to_stderr()
    before = {number: signal.signal(number, _nothing) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with EngineService(engine) as service, listener:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            line = f"serving {settings.name or engine.name} on http://{shown}:{port}"
            Server(service, settings, lambda: say(line)).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing(number: int, frame: FrameType | None) -> None:
    """The server hands signals on when it is done with them: by then there is nothing left to do."""


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("codemill.serving", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
