"""A server in a thread, on a tiny checkpoint or on a script of what the model writes."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from codemill.core.contracts import Completion, Request
from codemill.engine.engine import Engine, Piece, Prepared
from codemill.engine.sampling import Choice
from codemill.engine.service import EngineService
from codemill.serving.server import Server, listen
from codemill.serving.settings import ServeSettings
from tiny import tiny_checkpoint

TOOL_CHAT = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>"
    "<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def checkpoint(folder: Path, *, infills: bool = True, tools: bool = True) -> Path:
    """A tiny checkpoint with 4,096 positions and, if wanted, a template that shows tools."""
    tiny_checkpoint(folder, infills=infills)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    if tools:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TOOL_CHAT}))
    return folder


@dataclass
class Script:
    """What a model is made to write: `texts` by sample, in pieces of `size` characters, one each `seconds`."""

    texts: list[str] = field(default_factory=lambda: [""])
    size: int = 3
    seconds: float = 0.0
    finish: str = "stop"
    error: str = ""  # after the text
    prompts: list[list[int]] = field(default_factory=list)  # seen
    given: int = 0  # pieces
    closed: int = 0  # streams that ended, one way or the other


class ScriptedService(EngineService):
    """A service whose answers are written down; the engine still checks and tokenises."""

    def __init__(self, engine: Engine, script: Script) -> None:
        super().__init__(engine)
        self.script = script

    async def stream(self, request: Request | Prepared) -> AsyncIterator[Piece]:
        script, ready = self.script, request if isinstance(request, Prepared) else self.engine.prepare(request)
        script.prompts.append(ready.prompt)
        try:
            for index in range(ready.request.n):
                text = script.texts[index % len(script.texts)]
                pieces = [text[start : start + script.size] for start in range(0, len(text), script.size)]
                for piece in [*pieces, ""]:
                    await asyncio.sleep(script.seconds)
                    script.given += 1
                    choices = tuple(Choice(byte, -0.5, -0.5) for byte in piece[:64].encode())
                    yield Piece("scripted", index, piece, choices, None)
                finish: Any = "error" if script.error else script.finish
                done = Completion(
                    request_id="scripted",
                    text=text,
                    token_ids=(),
                    logprobs=(),
                    finish_reason=finish,
                    error=script.error,
                )
                yield Piece("scripted", index, "", (), done)
        finally:
            script.closed += 1


@dataclass
class Running:
    """A server that runs."""

    url: str
    server: Server
    service: EngineService

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(**{"base_url": self.url, "timeout": 60, **options})


@contextmanager
def running(service: EngineService, **settings: Any) -> Iterator[Running]:
    """Serve in a thread for the length of a block."""
    chosen = ServeSettings(port=0, **settings)
    listener = listen(chosen)
    server = Server(service, chosen)
    with service:
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.01)
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", server, service)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def events_of(response: httpx.Response) -> list[Any]:
    """The objects of an event stream, the end mark as text."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def eventually(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
