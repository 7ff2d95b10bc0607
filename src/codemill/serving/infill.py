"""`/infill` as llama.cpp's server answers it to llama.vim and llama.vscode.

The window over the file is ours (`window.py`), and so is the cut of the answer (`trim.py`). Without a `temperature` the
answer is the likeliest one. `t_max_prompt_ms`, `samplers` and `cache_prompt` change nothing: prompts are always cached, and
cannot be left half computed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from codemill.core.contracts import ContextFile
from codemill.engine.engine import Prepared
from codemill.models.tokenizer import Tokenizer
from codemill.serving.completions import check_fills, fill_in_prompt
from codemill.serving.generate import Generation, Usage, new_seed
from codemill.serving.schema import InfillBody
from codemill.serving.trim import Middle, middle
from codemill.serving.window import Window, choose_window

DEFAULT_TOKENS = 128  # where the editor sets no limit
_FIM_TOKENS = 8  # a prompt's control tokens, with some to spare
_EXTRA_SHARE = 2  # other files may take so much of the room: one half


@dataclass(slots=True)
class Infill:
    """A prepared request and what its answer needs to know."""

    ready: Prepared
    usage: Usage
    cutter: Callable[[], Middle]
    warms_only: bool
    deadline_seconds: float  # from the first token on, 0: none
    text: str = ""
    stopped_by: str = "eos"
    answer_tokens: list[int] = field(default_factory=list)


async def prepare(generation: Generation, body: InfillBody, usage: Usage) -> Infill:
    check_fills(generation)
    tokenizer = generation.engine.tokenizer
    tokens = DEFAULT_TOKENS if body.n_predict < 0 else body.n_predict
    generation.check_room(1, tokens)
    prompt = await generation.off_loop(
        lambda: _prompt(tokenizer, body, generation.context_tokens - max(tokens, 1) - _FIM_TOKENS)
    )
    stop_ids = tokenizer.fim.stop_ids if tokenizer.fim else frozenset[int]()
    how = body.sampling(max(tokens, 1), new_seed(), temperature=0.0, stop_token_ids=stop_ids)
    (ready,) = await generation.prepare([prompt], how, 1)
    typed = body.input_prefix + body.prompt
    cutter = middle(typed, body.input_suffix, path=body.path, min_indent=body.n_indent, trim=body.trim)
    return Infill(ready, usage, cutter, tokens == 0, body.t_max_predict_ms / 1000)


def _prompt(tokenizer: Tokenizer, body: InfillBody, room: int) -> list[int]:
    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer.encode_batch(texts)] if texts else []

    files, taken = _extra(body, room // _EXTRA_SHARE, count)
    window = choose_window(body.input_prefix, body.prompt, body.input_suffix, max(room - taken, 1), count)
    fim = tokenizer.fim
    if files and (fim is None or fim.repo is None or fim.file_sep is None):
        # A model without tokens for repositories reads other files as text before its own.
        window = Window("".join(f"{file.text}\n\n" for file in files) + window.before, window.line, window.after)
        files = []
    prompt = fill_in_prompt(tokenizer, window.before, window.after, window.line, context=files, path=body.path)
    return prompt if len(prompt) <= room + _FIM_TOKENS else _shortened(tokenizer, window, room)


def _shortened(tokenizer: Tokenizer, window: Window, room: int) -> list[int]:
    """For texts whose tokens are hard to foretell: cut by tokens, without other files."""
    line = tokenizer.encode(window.line.rstrip(" \t"))[-(room // 3) :]
    return [*tokenizer.fim_prompt(window.before, window.after, max_tokens=max(room - len(line), 4)), *line]


def _extra(body: InfillBody, room: int, count: Any) -> tuple[list[ContextFile], int]:
    """The newest of the other files that fit, in the order given, and their tokens. Editors append what is new."""
    kept: list[ContextFile] = []
    taken = 0
    chunks = [chunk for chunk in body.input_extra if chunk.text]
    sizes = count([f"{chunk.filename}\n{chunk.text}\n" for chunk in chunks])
    for chunk, size in zip(reversed(chunks), reversed(sizes), strict=True):
        taken += size + 2
        if taken > room:
            taken -= size + 2
            break
        kept.insert(0, ContextFile(path=chunk.filename, text=chunk.text))
    return kept, taken


async def answer(generation: Generation, body: InfillBody, infill: Infill) -> dict[str, Any]:
    async with aclosing(_texts(generation, infill)) as texts:  # type: ignore[type-var]
        async for _ in texts:
            pass
    return _chosen_fields(_final(generation, infill, infill.text), body.response_fields)


async def events(generation: Generation, body: InfillBody, infill: Infill) -> AsyncIterator[dict[str, Any]]:
    async with aclosing(_texts(generation, infill)) as texts:  # type: ignore[type-var]
        async for text in texts:
            if text:
                yield {"index": 0, "content": text, "tokens": [], "stop": False}
    yield _chosen_fields(_final(generation, infill, ""), body.response_fields)


async def _texts(generation: Generation, infill: Infill) -> AsyncIterator[str]:
    """The pieces of the answer's text. Beyond its time it ends with the line that it is in."""
    first = 0.0
    async with aclosing(generation.parts([infill.ready], infill.usage, infill.cutter)) as parts:  # type: ignore[type-var]
        async for part in parts:
            if infill.warms_only:
                return
            first = first or time.perf_counter()
            infill.text += part.text
            infill.answer_tokens += [choice.token for choice in part.choices]
            if part.finish:
                infill.stopped_by = "limit" if part.finish == "length" else "eos"
            yield part.text
            late = infill.deadline_seconds and time.perf_counter() - first > infill.deadline_seconds
            if late and "\n" in infill.text:
                infill.stopped_by = "limit"
                return


def _final(generation: Generation, infill: Infill, content: str) -> dict[str, Any]:
    usage = infill.usage
    predicted = 0 if infill.warms_only else usage.completion_tokens
    computed = usage.prompt_tokens - usage.cached_tokens
    prompt_ms, predicted_ms = 1000 * usage.first_token, 1000 * (usage.ended - usage.first_token)
    return {
        "index": 0,
        "content": content,
        "tokens": [],
        "id_slot": 0,
        "stop": True,
        "model": generation.name,
        "tokens_predicted": predicted,
        "tokens_evaluated": usage.prompt_tokens,
        "tokens_cached": usage.prompt_tokens + predicted,
        "truncated": False,
        "stop_type": infill.stopped_by,
        "stopping_word": "",
        "generation_settings": {"n_predict": infill.ready.request.sampling.max_tokens},
        "timings": {
            "cache_n": usage.cached_tokens,
            "prompt_n": computed,
            "prompt_ms": prompt_ms,
            "prompt_per_token_ms": prompt_ms / max(computed, 1),
            "prompt_per_second": 1000 * computed / max(prompt_ms, 0.001),
            "predicted_n": predicted,
            "predicted_ms": predicted_ms,
            "predicted_per_token_ms": predicted_ms / max(predicted, 1),
            "predicted_per_second": 1000 * predicted / max(predicted_ms, 0.001),
        },
    }


def _chosen_fields(answer: dict[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """What the editor asked to see. `timings/prompt_n` asks for a nested field and is its key in the answer as well; a field
    that does not exist is left out."""
    if fields is None:
        return answer
    found: dict[str, Any] = {}
    for path in fields:
        value: Any = answer
        for key in path.split("/"):
            value = value.get(key, found) if isinstance(value, dict) else found
        if value is not found:
            found[path] = value
    return found
