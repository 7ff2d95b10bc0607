"""A generator behind an OpenAI-compatible server: vLLM, SGLang, Ollama, llama.cpp's server, or `codemill serve`.

Each completion is a request of its own, many at once. A failure is an error completion to that request alone. Imports no torch.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from codemill.core.contracts import Completion, Request, Sampling
from codemill.core.errors import CodemillError, ConfigError, InputError, UnavailableError, nearest
from codemill.engine.openai_http import Connection, Failure, Patience, Server
from codemill.engine.openai_wire import MalformedAnswerError, Reply, Route, may_drop, question, reply, shown

Infill = Literal["auto", "suffix", "infill", "none"]

# The suffix of the probe: short lines, each a token at least to whatever tokenizer, and few bytes for a small context.
PROBE_LINES = 32
PROBE_SUFFIX = "\n" + "".join(f"{'abcdefgh'[i % 8]}\n" for i in range(PROBE_LINES))
NAMES = 8  # of models, as answers state them, that are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars for a million tokens."""

    prompt: float = 0.0
    completion: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InfillFound:
    """How a server fills in, and how that is known."""

    way: Literal["suffix", "infill", "none"]
    why: str


class OpenAIGenerator:
    """Completes requests through a server. One `generate` at a time; construction sends nothing.

    `endpoint` is the server's address, with or without its `/v1`. The key is read from the environment variable that
    `api_key_env` names, and appears nowhere else. `infill`: how the server is asked to fill in between a prefix and a suffix;
    "auto" finds out with a few tokens when it is first needed. `logprobs` asks for those of the answer's tokens.

    Without the server's tokenizer `max_prompt_tokens` is kept by bytes, three a token. Context files reach the model by
    `/infill` only: the others have no field for them.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        api_key_env: str = "",
        concurrency: int = 16,
        patience: Patience | None = None,
        infill: Infill = "auto",
        price: Price | None = None,
        logprobs: bool = False,
    ) -> None:
        if not model:
            raise ConfigError("model is empty: name the model as the server lists it")
        if concurrency < 1:
            raise ConfigError(f"concurrency is {concurrency}; at least one request must be under way")
        self._server = Server(
            endpoint,
            api_key_env=api_key_env,
            patience=patience or Patience(),
            connections=concurrency,
            droppable=may_drop,
        )
        self.base, self.model, self.concurrency = self._server.base, model, concurrency
        self.price, self.logprobs = price or Price(), logprobs
        self.answered_by: set[str] = set()  # the models that answers name; a server may have another than was asked for
        self._found = None if infill == "auto" else InfillFound(way=infill, why="as given")

    def __repr__(self) -> str:
        return f"OpenAIGenerator({self.base!r}, {self.model!r})"

    @property
    def name(self) -> str:
        return self.model

    @property
    def infills(self) -> bool:
        """Whether requests with a suffix can be answered. Asks the server, once; raises `UnavailableError` if it cannot."""
        return self.infill.way != "none"

    @property
    def infill(self) -> InfillFound:
        """How the server fills in. One that takes a suffix and leaves it unread does not."""
        if self._found is None:
            self._found = self._find_infill()
        return self._found

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield completions as they finish. What fails yields one with `finish_reason` "error"; closing cancels the rest.

        Requests are taken from the iterable as places become free. `n` completions are `n` requests to the server: what `n`
        means with a seed differs between servers.
        """
        done: queue.SimpleQueue[Future[Completion]] = queue.SimpleQueue()
        jobs = ((request, index) for request in requests for index in range(max(1, request.n)))
        running = 0
        with Connection(self._server) as connection:
            while True:
                while running < self.concurrency and (job := next(jobs, None)) is not None:
                    request, index = job
                    future = connection.start(self._complete(connection, request, index, self._way(request)))
                    future.add_done_callback(done.put)
                    running += 1
                if not running:
                    return
                completion = done.get().result()
                running -= 1
                yield completion

    def check(self) -> dict[str, str]:
        """What the server says of the model, before any work: `owned_by` and the like; {} if it lists no models.

        Raises `UnavailableError` if it cannot be reached or refuses the key, `InputError` if it does not have the model.
        """
        try:
            data = self._server.ask_alone("GET", "models", None)
        except Failure as failure:
            if failure.passing or failure.status in (0, 401, 403):
                raise UnavailableError(f"{self.base}: {failure}") from None
            return {}
        models = data.get("data") if isinstance(data, dict) else None
        known: dict[str, Any] = {}
        for entry in models if isinstance(models, list) else ():
            if isinstance(entry, dict) and isinstance(entry.get("id"), str):
                known[entry["id"]] = entry
        if known and self.model not in known:
            hint = nearest(self.model, [shown(name) for name in list(known)[:20]])
            raise InputError(f"{self.base}: has no model {self.model!r}; {hint}")
        entry = known.get(self.model, {})
        return {
            name: shown(str(entry[name]))
            for name in ("owned_by", "root", "max_model_len")
            if isinstance(entry.get(name), str | int)
        }

    # One completion

    def _way(self, request: Request) -> InfillFound | str:
        """How a request with a suffix is put, or why that cannot be known."""
        if request.suffix is None or request.messages or request.prompt_ids:
            return InfillFound(way="suffix", why="")
        try:
            return self.infill
        except CodemillError as error:
            return str(error)

    async def _complete(
        self, connection: Connection, request: Request, index: int, way: InfillFound | str
    ) -> Completion:
        try:
            if request.n < 1:
                raise InputError(f"request {request.id}: n is {request.n}; ask for at least one completion")
            if isinstance(way, str):
                raise InputError(way)
            if way.way == "none":
                raise InputError(f"request {request.id}: {self.model} cannot be asked to infill here: {way.why}")
            fill_by: Route = "infill" if way.way == "infill" else "completions"
            route, body = question(request, self.model, index=index, fill_by=fill_by, logprobs=self.logprobs)
            answer = reply(route, await self._server.ask(connection, "POST", route, body), request)
        except (CodemillError, Failure, MalformedAnswerError) as error:
            return Completion(
                request_id=request.id,
                index=index,
                text="",
                token_ids=(),
                logprobs=(),
                finish_reason="error",
                error=self._server.private(str(error)),
            )
        if answer.model and len(self.answered_by) < NAMES:
            self.answered_by.add(answer.model)
        return self._completion(request, index, answer)

    def _completion(self, request: Request, index: int, answer: Reply) -> Completion:
        cost = answer.prompt_tokens * self.price.prompt + answer.completion_tokens * self.price.completion
        return Completion(
            request_id=request.id,
            index=index,
            text=answer.text,
            token_ids=answer.token_ids,
            # Servers report the model's own distribution; it is the one sampled from where nothing reshapes it.
            logprobs=answer.logprobs if _is_plain(request.sampling) else (),
            raw_logprobs=answer.logprobs,
            top_logprobs=answer.top_logprobs,
            finish_reason=answer.finish_reason,
            tool_calls=answer.tool_calls,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cached_tokens=answer.cached_tokens,
            cost=cost / 1e6,
        )

    # Does the server fill in?

    def _find_infill(self) -> InfillFound:
        try:
            found = self._probe_suffix()
        except (MalformedAnswerError, InputError) as error:
            found = InfillFound(way="none", why=f"suffix: {error}")
        if found.way == "suffix":
            return found
        request = Request(id="probe", prompt="value = ", suffix=PROBE_SUFFIX, sampling=Sampling(max_tokens=1))
        try:
            tokens = self._probe(request, "infill").prompt_tokens
        except (MalformedAnswerError, InputError) as error:
            return InfillFound(way="none", why=f"{found.why}; /infill: {error}")
        if tokens < PROBE_LINES:
            why = f"{found.why}; /infill counted {tokens} tokens for {PROBE_LINES} lines"
            return InfillFound(way="none", why=why)
        return InfillFound(way="infill", why=f"{found.why}; /infill read {tokens} tokens")

    def _probe_suffix(self) -> InfillFound:
        """Whether `suffix` reaches the model: some servers refuse it, some take it and leave it unread."""
        plain = Request(id="probe", prompt="value = ", sampling=Sampling(max_tokens=1))
        gap = Request(id="probe", prompt="value = ", suffix=PROBE_SUFFIX, sampling=Sampling(max_tokens=1))
        without = self._probe(plain, "completions").prompt_tokens
        within = self._probe(gap, "completions").prompt_tokens
        if not without or not within:
            return InfillFound(way="none", why="the server counts no tokens, so whether it reads a suffix is unknown")
        if within - without < PROBE_LINES:
            why = f"a suffix is left unread ({PROBE_LINES} lines of it made {within - without} more prompt tokens)"
            return InfillFound(way="none", why=why)
        return InfillFound(
            way="suffix", why=f"{PROBE_LINES} lines of suffix made {within - without} more prompt tokens"
        )

    def _probe(self, request: Request, fill_by: Route) -> Reply:
        """A reply, or `InputError` with the server's refusal. Raises `UnavailableError` when the server is not there."""
        route, body = question(request, self.model, index=0, fill_by=fill_by)
        try:
            return reply(route, self._server.ask_alone("POST", route, body), request)
        except Failure as failure:
            if failure.passing:
                raise UnavailableError(f"{self.base}: {failure}") from None
            raise InputError(str(failure)) from None


def _is_plain(how: Sampling) -> bool:
    """Whether the sampling distribution is the model's own; a greedy choice is reported so by the engine, too."""
    off = (how.top_k, how.top_p, how.min_p, how.repetition_penalty) == (0, 1.0, 0.0, 1.0)
    return off and how.temperature in (0.0, 1.0) and not how.logit_bias and how.constraint is None
