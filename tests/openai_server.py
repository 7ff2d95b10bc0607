"""A server on the loopback that answers as it is told, well or badly, for tests of what asks it."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request as it came; `number` counts the requests of its path."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    number: int


@dataclass(frozen=True)
class Say:
    """An answer. `seconds`: wait before it. `declared`: a Content-Length that is a lie. `endless`: the body again and again.
    `hang`: nothing, until the client goes. `drip`: a byte at a time, with a pause in between."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    declared: int | None = None
    endless: bool = False
    hang: bool = False
    drip: float = 0.0

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class OpenAIServer:
    """Runs while the context is open. `asked` are the requests so far, `peak` the most at once, `left` clients that went away."""

    def __init__(self, answer: Callable[[Asked], Say]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.peak = self.running = self.left = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def bodies(self, path: str) -> list[Any]:
        return [asked.body for asked in self.asked if asked.path == path]

    def __enter__(self) -> OpenAIServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.handle(self)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that leave are what some tests are about

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        with self.lock:
            number = sum(asked.path == handler.path for asked in self.asked)
            headers = {name.lower(): value for name, value in handler.headers.items()}
            asked = Asked(handler.command, handler.path, headers, json.loads(raw) if raw else None, number)
            self.asked.append(asked)
            self.running += 1
            self.peak = max(self.peak, self.running)
        try:
            self._say(handler, self.answer(asked))
        finally:
            with self.lock:
                self.running -= 1

    def _say(self, handler: BaseHTTPRequestHandler, say: Say) -> None:
        if say.hang:
            self._wait_for_leaving(handler)
            handler.close_connection = True
            return
        time.sleep(say.seconds)
        data = say.data
        handler.send_response(say.status)
        for name, value in say.headers.items():
            handler.send_header(name, value)
        if say.endless:
            handler.close_connection = True
        elif "Content-Length" not in say.headers:
            handler.send_header("Content-Length", str(len(data) if say.declared is None else say.declared))
        handler.end_headers()
        if say.drip:
            for byte in data:
                handler.wfile.write(bytes([byte]))
                if self.closing.wait(say.drip):
                    return
            return
        handler.wfile.write(data)
        while say.endless and not self.closing.is_set():
            handler.wfile.write(data)
        if say.declared is not None:
            handler.close_connection = True

    def _wait_for_leaving(self, handler: BaseHTTPRequestHandler) -> None:
        while not self.closing.is_set():
            readable, _, _ = select.select([handler.connection], [], [], 0.02)
            if readable:
                with suppress(OSError):
                    if handler.connection.recv(1):
                        continue
                with self.lock:
                    self.left += 1
                return


def completion(text: str, *, prompt_tokens: int = 7, tokens: int = 3, finish: str | None = "stop", **more: Any) -> dict:
    """What `/v1/completions` answers; `more` goes into the choice."""
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": text, "finish_reason": finish, "logprobs": None, **more}],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        },
    }


def chat(message: dict, *, finish: str = "stop", **more: Any) -> dict:
    """What `/v1/chat/completions` answers."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **more}],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    }


def error(status: int, message: str, **more: Any) -> Say:
    """An error in the form that most servers share."""
    return Say({"error": {"message": message, "type": "error", "param": None, "code": None, **more}}, status)


def counted(body: dict) -> int:
    """Prompt tokens, as a tokenizer that splits at white space would count them."""
    return len(f"{body.get('prompt', '')} {body.get('suffix') or ''}".split()) + 1


def models(*names: str, owner: str = "vllm") -> Say:
    return Say({"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner} for name in names]})
