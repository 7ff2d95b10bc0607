"""`/v1/completions`: continue texts, or fill the gap before a `suffix` in the model's own tokens."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from codemill.engine.engine import Prepared
from codemill.engine.sampling import Choice
from codemill.models.tokenizer import Tokenizer
from codemill.serving.errors import ApiError
from codemill.serving.generate import Answer, Generation, Part, Usage, new_seed
from codemill.serving.schema import CompletionBody
from codemill.serving.trim import Middle, middle
from codemill.serving.window import split_at_line

DEFAULT_TOKENS = 16  # of the protocol


def fill_in_prompt(tokenizer: Tokenizer, prefix: str, suffix: str, line: str = "", **layout: Any) -> list[int]:
    """Prefix, suffix, and the cursor's unfinished line as the beginning of the middle.

    So what is typed on a line leaves all tokens before it as they were, and they stay in the prefix cache. White space
    before the cursor is left out: in the model's tokens it belongs to the word behind it. The model writes it again, and
    `Middle` takes it away.
    """
    before, begun = split_at_line(prefix)
    return [*tokenizer.fim_prompt(before, suffix, **layout), *tokenizer.encode((begun + line).rstrip(" \t"))]


def check_fills(generation: Generation) -> None:
    if generation.engine.tokenizer.fim is None:
        raise ApiError(
            400,
            f"model {generation.name!r} cannot fill in: it has no fill-in-the-middle tokens; leave out the suffix, or "
            "serve a model trained for it",
            param="suffix",
            code="no_fill_in",
        )


async def prepare(generation: Generation, body: CompletionBody) -> list[Prepared]:
    """Check everything that can be refused."""
    generation.check_model(body.model)
    tokenizer, stop_ids = generation.engine.tokenizer, frozenset[int]()
    if body.suffix is not None:
        check_fills(generation)
        stop_ids = tokenizer.fim.stop_ids if tokenizer.fim else stop_ids

    def encode(prompt: str | tuple[int, ...]) -> Sequence[int]:
        if not isinstance(prompt, str):
            return prompt
        if body.suffix is not None:
            return fill_in_prompt(tokenizer, prompt, body.suffix)
        return tokenizer.completion_prompt(prompt)

    prompts = await generation.off_loop(lambda: [encode(prompt) for prompt in body.prompts])
    how = body.sampling(
        body.max_tokens or DEFAULT_TOKENS, new_seed(), top_logprobs=int(body.logprobs or 0), stop_token_ids=stop_ids
    )
    return await generation.prepare(prompts, how, body.samples)


def cutter(body: CompletionBody) -> Callable[[], Middle] | None:
    if body.suffix is None or not isinstance(body.prompt, str):
        return None
    return middle(body.prompt, body.suffix, trim=body.trim)


async def answer(
    generation: Generation, body: CompletionBody, ready: list[Prepared], usage: Usage, head: dict[str, Any]
) -> dict[str, Any]:
    answers = await generation.collect(ready, usage, cutter(body))
    choices = [_choice(generation.engine.tokenizer, body, ready[0].stop_ids, answer) for answer in answers]
    return {**head, "object": "text_completion", "choices": choices, "usage": usage.body}


async def events(
    generation: Generation, body: CompletionBody, ready: list[Prepared], usage: Usage, head: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    head = {**head, "object": "text_completion"}
    offsets: dict[int, int] = {}
    async with aclosing(generation.parts(ready, usage, cutter(body))) as parts:  # type: ignore[type-var]
        async for part in parts:
            chosen = [choice for choice in part.choices if choice.token not in ready[0].stop_ids]
            if not (part.text or part.finish or (chosen and body.logprobs is not None)):
                continue
            yield {**head, "choices": [_chunk(generation.engine.tokenizer, body, part, chosen, offsets)]}
    if body.stream_options and body.stream_options.include_usage:
        yield {**head, "choices": [], "usage": usage.body}


def _chunk(
    tokenizer: Tokenizer, body: CompletionBody, part: Part, chosen: list[Choice], offsets: dict[int, int]
) -> dict[str, Any]:
    logprobs = None
    if body.logprobs is not None and body.logprobs is not False:
        logprobs, offsets[part.index] = _logprobs(tokenizer, body, chosen, offsets.get(part.index, 0))
    return {"index": part.index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish}


def _choice(tokenizer: Tokenizer, body: CompletionBody, stop_ids: frozenset[int], answer: Answer) -> dict[str, Any]:
    logprobs = None
    if body.logprobs is not None and body.logprobs is not False:
        logprobs, _ = _logprobs(tokenizer, body, shown_choices(tokenizer, answer, stop_ids), 0)
    return {"index": answer.index, "text": answer.text, "logprobs": logprobs, "finish_reason": answer.finish}


def shown_choices(tokenizer: Tokenizer, answer: Answer, stop_ids: frozenset[int]) -> list[Choice]:
    """The tokens of which at least the first byte is in the answer's text."""
    shown, size, at = [], len(answer.text.encode("utf-8", "replace")), 0
    for choice in answer.choices:
        if choice.token in stop_ids or at >= size:
            break
        shown.append(choice)
        at += len(tokenizer.decode_bytes((choice.token,)))
    return shown


def token_text(tokenizer: Tokenizer, token: int, as_id: bool = False) -> str:
    return f"token_id:{token}" if as_id else tokenizer.decode((token,), skip_special=False)


def _logprobs(
    tokenizer: Tokenizer, body: CompletionBody, choices: Sequence[Choice], offset: int
) -> tuple[dict[str, Any], int]:
    """The protocol's lists, and the offset behind them. Log-probabilities are the model's own, before any sampling."""
    name = partial(token_text, tokenizer, as_id=body.return_tokens_as_token_ids)
    offsets = []
    for choice in choices:
        offsets.append(offset)
        offset += len(token_text(tokenizer, choice.token))
    found = {
        "tokens": [name(choice.token) for choice in choices],
        "token_logprobs": [choice.raw_logprob for choice in choices],
        "top_logprobs": [{name(token): value for token, value in choice.top} for choice in choices]
        if body.logprobs
        else None,
        "text_offset": offsets,
    }
    return found, offset


def new_head(identity: str, model: str) -> dict[str, Any]:
    """What every chunk and answer begins with."""
    return {"id": identity, "created": int(time.time()), "model": model}
