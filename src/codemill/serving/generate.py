"""From prepared requests to parts of answers: what every endpoint does between its question and its answer's form."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from codemill.core.contracts import Request, Sampling
from codemill.core.errors import CodemillError, UnavailableError
from codemill.engine.engine import Engine, Piece, Prepared
from codemill.engine.sampling import Choice
from codemill.engine.service import EngineService
from codemill.serving.errors import ApiError, refusal
from codemill.serving.metrics import Metrics
from codemill.serving.settings import ServeSettings
from codemill.serving.trim import Middle

Result = TypeVar("Result")
Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Part:
    """What one answer grew by; `finish` on its last part."""

    index: int
    text: str
    choices: tuple[Choice, ...]
    finish: Finish | None


@dataclass(slots=True)
class Usage:
    """Tokens of one request's prompts (each once) and answers, and its times in seconds since the request came in."""

    started: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token: float = 0.0
    ended: float = 0.0

    @property
    def body(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(slots=True)
class Answer:
    """A whole answer."""

    index: int
    text: str = ""
    choices: list[Choice] = field(default_factory=list)
    finish: Finish = "stop"


class Generation:
    """The engine as the endpoints see it: admission, preparation off the event loop, parts in order of their coming."""

    def __init__(self, service: EngineService, settings: ServeSettings, metrics: Metrics) -> None:
        self.service, self.settings, self.metrics = service, settings, metrics
        self.sequences = 0  # admitted and not ended

    @property
    def engine(self) -> Engine:
        return self.service.engine

    @property
    def name(self) -> str:
        return self.settings.name or self.engine.name

    @property
    def context_tokens(self) -> int:
        """The longest prompt and answer together."""
        return min(self.engine.decoder.config.max_positions, self.engine.stats().kv_total)

    def check_model(self, asked: str | None) -> None:
        if asked and asked != self.name:
            raise ApiError(
                404,
                f"model {asked[:200]!r} is not served here; {self.name!r} is",
                param="model",
                code="model_not_found",
            )

    def admit(self, sequences: int) -> Callable[[], None]:
        """A place for so many answers; call what is returned to give it back (more than once does no harm). Raises `ApiError`
        429 if too many others have one, 400 if nobody may ask for as many."""
        settings = self.settings
        if sequences > settings.max_request_sequences:
            raise ApiError(
                400,
                f"{sequences} answers in one request; at most {settings.max_request_sequences} are allowed",
                param="n",
            )
        if self.sequences and self.sequences + sequences > settings.max_sequences:
            raise ApiError(
                429, f"{self.sequences} answers are being written or wait; come back", code="queue_full", retry_after=1
            )
        self.sequences += sequences
        held = sequences

        def leave() -> None:
            nonlocal held
            self.sequences -= held
            held = 0

        return leave

    async def off_loop(self, work: Callable[[], Result]) -> Result:
        """Run what takes processor time (tokenising, compiling a schema) beside the event loop; refusals become 400."""
        try:
            return await asyncio.get_running_loop().run_in_executor(None, work)
        except CodemillError as error:
            raise self.refused(error) from None

    def refused(self, reason: CodemillError | str) -> ApiError:
        return refusal(reason, str(self.engine.tokenizer.folder), self.name)

    async def prepare(self, prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int) -> list[Prepared]:
        """The engine's own check of each prompt. The random streams depend on the seed and the prompt's number alone."""
        for prompt in prompts:
            self.check_room(len(prompt), sampling.max_tokens)
        requests = [
            Request(id=f"prompt-{number}", prompt_ids=tuple(prompt), n=samples, sampling=sampling)
            for number, prompt in enumerate(prompts)
        ]
        ready = await self.off_loop(lambda: [self.engine.prepare(request) for request in requests])
        for one in ready:
            if one.error:
                raise self.refused(one.error)
        return ready

    def check_room(self, prompt: int, new: int) -> None:
        if not prompt:
            raise ApiError(400, "the prompt is empty", param="prompt")
        if prompt + new > self.context_tokens:
            raise ApiError(
                400,
                f"{prompt} prompt tokens and {new} new ones do not fit into {self.context_tokens} tokens",
                code="context_length_exceeded",
            )

    def parts(
        self, ready: Sequence[Prepared], usage: Usage, cutter: Callable[[], Middle] | None = None
    ) -> AsyncIterator[Part]:
        """Parts of all answers as they come. Answer `s` of prompt `p` has index p * n + s. Closing it cancels the rest.

        `cutter` makes the cut of one answer; an answer whose end it knows is not written on.
        """
        if len(ready) == 1:
            return self._parts(ready[0], 0, usage, cutter)
        sources = [partial(self._parts, one, number * one.request.n, usage, cutter) for number, one in enumerate(ready)]
        return _merged(sources)

    async def collect(
        self, ready: Sequence[Prepared], usage: Usage, cutter: Callable[[], Middle] | None = None
    ) -> list[Answer]:
        """All answers, whole, by index."""
        answers: dict[int, Answer] = {}
        async with aclosing(self.parts(ready, usage, cutter)) as parts:  # type: ignore[type-var]
            async for part in parts:
                answer = answers.setdefault(part.index, Answer(part.index))
                answer.text += part.text
                answer.choices += part.choices
                answer.finish = part.finish or answer.finish
        return [answers[index] for index in sorted(answers)]

    async def _parts(
        self, ready: Prepared, first: int, usage: Usage, cutter: Callable[[], Middle] | None
    ) -> AsyncIterator[Part]:
        cutters = [cutter() for _ in range(ready.request.n)] if cutter else []
        left = set(range(ready.request.n))
        counted = False
        async with aclosing(self._pieces(ready)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                completion = piece.completion
                if completion is not None and completion.finish_reason == "error":
                    raise self._failure(completion.error)
                if not usage.first_token:
                    usage.first_token = time.perf_counter() - usage.started
                if not counted:
                    counted = True
                    usage.prompt_tokens += len(ready.prompt)
                    usage.cached_tokens += piece.cached_tokens
                if piece.index not in left:
                    continue
                usage.completion_tokens += len(piece.choices)
                text, done = piece.text, completion is not None
                finish: Finish | None = None
                if completion is not None:
                    finish = "length" if completion.finish_reason == "length" else "stop"
                if cutters:
                    trimmer = cutters[piece.index]
                    text = trimmer.feed(text)
                    if done:
                        finish = finish if not trimmer.done else "stop"
                        text += trimmer.rest()
                    elif trimmer.done:
                        done, finish = True, "stop"
                if done:
                    left.discard(piece.index)
                usage.ended = time.perf_counter() - usage.started
                yield Part(first + piece.index, text, piece.choices, finish)
                if not left:
                    return

    async def _pieces(self, ready: Prepared) -> AsyncIterator[Piece]:
        try:
            async with aclosing(self.service.stream(ready)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece
        except UnavailableError:
            raise ApiError(503, "the server is about to stop", code="draining", retry_after=5) from None

    def _failure(self, error: str) -> ApiError:
        if "service was closed" in error:
            return ApiError(503, "the server was stopped before the answer was complete", code="draining")
        return ApiError(500, error.partition(": ")[2] if error.startswith("request ") else error)


def new_seed() -> int:
    return secrets.randbelow(1 << 31)


async def _merged(sources: Sequence[Callable[[], AsyncIterator[Part]]]) -> AsyncIterator[Part]:
    """Parts of several streams as they come; the first failure ends all."""
    queue: asyncio.Queue[Part | None] = asyncio.Queue()

    async def pump(source: Callable[[], AsyncIterator[Part]]) -> None:
        try:
            async with aclosing(source()) as parts:  # type: ignore[type-var]
                async for part in parts:
                    queue.put_nowait(part)
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.ensure_future(pump(source)) for source in sources]
    try:
        open_streams = len(tasks)
        while open_streams:
            part = await queue.get()
            if part is not None:
                yield part
                continue
            open_streams -= 1
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(work: Awaitable[Result], gone: Awaitable[None]) -> Result | None:
    """The result of `work`; None, and `work` cancelled, if the client goes away first."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
