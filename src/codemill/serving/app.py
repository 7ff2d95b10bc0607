"""The server's routes. Every error is JSON in the form of the OpenAI protocol."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from codemill import __version__
from codemill.engine.service import EngineService
from codemill.serving import chat, completions, infill
from codemill.serving.errors import ApiError
from codemill.serving.gate import ClientGoneError, Gate
from codemill.serving.generate import Generation, Usage, unless_gone
from codemill.serving.metrics import Metrics
from codemill.serving.schema import ChatBody, CompletionBody, InfillBody
from codemill.serving.settings import ServeSettings
from codemill.serving.sse import DONE, EventStream, disconnected

Ready = TypeVar("Ready")
Result = TypeVar("Result")


def build_app(service: EngineService, settings: ServeSettings) -> Gate:
    """The application for a service that runs, behind its gate."""
    metrics = Metrics()
    app = FastAPI(title="codemill", version=__version__, docs_url=None, redoc_url=None)
    generation = Generation(service, settings, metrics)
    gate = Gate(app, settings, metrics)
    _add_errors(app)
    _add_generation(app, generation)
    _add_information(app, generation, gate)
    return gate


def _add_generation(app: FastAPI, generation: Generation) -> None:
    @app.post("/v1/completions")
    async def complete(body: CompletionBody, http: HttpRequest) -> Response:
        visit = _Visit(generation, http, body.samples * len(body.prompts))
        head = completions.new_head(visit.name("cmpl"), generation.name)
        return await visit.respond(
            completions.prepare(generation, body),
            lambda ready: completions.answer(generation, body, ready, visit.usage, head),
            lambda ready: completions.events(generation, body, ready, visit.usage, head),
            streams=bool(body.stream),
        )

    @app.post("/v1/chat/completions")
    async def converse(body: ChatBody, http: HttpRequest) -> Response:
        visit = _Visit(generation, http, body.samples)
        head = completions.new_head(visit.name("chatcmpl"), generation.name)
        return await visit.respond(
            chat.prepare(generation, body),
            lambda ready: chat.answer(generation, body, ready, visit.usage, head),
            lambda ready: chat.events(generation, body, ready, visit.usage, head),
            streams=bool(body.stream),
        )

    @app.post("/infill")
    async def fill_in(body: InfillBody, http: HttpRequest) -> Response:
        visit = _Visit(generation, http, 1)
        return await visit.respond(
            infill.prepare(generation, body, visit.usage),
            lambda ready: infill.answer(generation, body, ready),
            lambda ready: infill.events(generation, body, ready),
            streams=bool(body.stream),
            end=None,
        )


class _Visit:
    """One request for answers: its place among those that are written, its tokens and times."""

    def __init__(self, generation: Generation, http: HttpRequest, sequences: int) -> None:
        self.generation, self.http = generation, http
        self.usage = Usage(http.state.started)
        self.leave = generation.admit(sequences)

    def name(self, kind: str) -> str:
        return f"{kind}-{self.http.state.request_id}"

    async def respond(
        self,
        preparation: Awaitable[Ready],
        answer: Callable[[Ready], Awaitable[dict[str, Any]]],
        events: Callable[[Ready], AsyncIterator[dict[str, Any]]],
        *,
        streams: bool,
        end: str | None = DONE,
    ) -> Response:
        """The answer, whole or as a stream; what can be refused is refused before a stream begins."""
        response: Response | None = None
        try:
            ready = await self._unless_gone(preparation)
            if streams:
                response = EventStream(events(ready), self._end, end)
                return response
            return JSONResponse(await self._unless_gone(answer(ready)))
        finally:
            if response is None:
                self._end()

    async def _unless_gone(self, work: Awaitable[Result]) -> Result:
        done = await unless_gone(work, disconnected(self.http.receive))
        if done is None:
            raise ClientGoneError
        return done

    def _end(self) -> None:
        self.leave()
        usage = self.usage
        if usage.first_token:
            path = self.http.scope["route"].path
            self.generation.metrics.answer(path, usage.first_token, usage.completion_tokens, usage.ended)


def _add_information(app: FastAPI, generation: Generation, gate: Gate) -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        engine = generation.engine
        model = {
            "id": generation.name,
            "object": "model",
            "created": started,
            "owned_by": "codemill",
            "max_model_len": generation.context_tokens,
            "fills_in": engine.infills,
            "takes_tools": engine.tokenizer.takes_tools,
        }
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> JSONResponse:
        if gate.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = generation.metrics.text(generation.service.stats(), generation.sequences)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: HttpRequest, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        where = [str(part)[:100] for part in problem["loc"] if part != "body"]
        if problem["type"] == "json_invalid":
            where = []
        message = str(problem["msg"]).removeprefix("Value error, ")[:500]
        found = ApiError(400, f"{'.'.join(where)}: {message}" if where else message, param=".".join(where) or None)
        return JSONResponse(found.body, 400)

    @app.exception_handler(HTTPException)
    async def other(request: HttpRequest, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path[:100]}: {error.detail}"
        return JSONResponse(ApiError(error.status_code, message).body, error.status_code)
