"""`/v1/chat/completions`: conversations, tools, and answers of a given form."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from codemill.core.contracts import Constraint, Message, ToolCall
from codemill.engine.engine import Prepared
from codemill.engine.sampling import Choice
from codemill.models.tokenizer import Tokenizer
from codemill.models.tool_calls import OPENING, FoundCall, ToolCallText
from codemill.serving.completions import shown_choices, token_text
from codemill.serving.errors import ApiError
from codemill.serving.generate import Answer, Generation, Usage, new_seed
from codemill.serving.schema import ChatBody, MessageBody, ToolBody

DEFAULT_TOKENS = 4096  # at most, where none are asked for and the context has room


async def prepare(generation: Generation, body: ChatBody) -> list[Prepared]:
    """Check everything that can be refused."""
    generation.check_model(body.model)
    tokenizer = generation.engine.tokenizer
    forced = body.forced_tools
    constraint = _constraint(body, forced)
    # A call that must come is begun in the family's own token; its JSON is then the only thing left to write.
    opening = f"{OPENING}\n" if forced and OPENING in tokenizer.controls else ""
    tools = [tool.model_dump(exclude_none=True) for tool in body.shown_tools]
    messages = [_message(message) for message in body.messages]
    prompt = await generation.off_loop(lambda: tokenizer.chat_prompt(messages, tools=tools, opening=opening))
    asked = body.max_completion_tokens or body.max_tokens
    if asked == 0:
        raise ApiError(400, "max_tokens must be at least 1", param="max_tokens")
    room = generation.context_tokens - len(prompt)
    tokens = asked if asked and asked > 0 else max(1, min(room, DEFAULT_TOKENS))
    top = (body.top_logprobs or 0) if body.logprobs else 0
    how = body.sampling(tokens, new_seed(), constraint=constraint, top_logprobs=top)
    return await generation.prepare([prompt], how, body.samples)


def _constraint(body: ChatBody, forced: Sequence[ToolBody]) -> Constraint | None:
    if forced:
        schema: dict[str, Any] | None = {"anyOf": [_call_schema(tool) for tool in forced]}
        if len(forced) == 1:
            schema = _call_schema(forced[0])
    else:
        schema = body.response_format.schema_of_answer if body.response_format else None
    return Constraint(kind="json_schema", text=json.dumps(schema)) if schema is not None else None


def _call_schema(tool: ToolBody) -> dict[str, Any]:
    parameters = tool.function.parameters or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _message(message: MessageBody) -> Message:
    return Message(
        role="system" if message.role == "developer" else message.role,
        content=message.text,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id or "",
    )


class _Turn:
    """One answer as it grows: what is shown of it, and the calls in it."""

    def __init__(self, body: ChatBody) -> None:
        names = {tool.function.name for tool in body.shown_tools}
        self._splitter = ToolCallText(names) if names else None
        self._most = None if body.parallel_tool_calls in (None, True) else 1
        self._given = 0

    def feed(self, text: str, ended: bool) -> tuple[str, list[dict[str, Any]]]:
        """The text to show now, and the calls that became whole, as the protocol writes them."""
        if self._splitter is None:
            return text, []
        shown = self._splitter.feed(text)
        if ended:
            shown += self._splitter.rest()
        calls = self._splitter.calls[: self._most]
        fresh = [_call(call, number) for number, call in enumerate(calls) if number >= self._given]
        self._given = max(self._given, len(calls))
        return shown, fresh

    @property
    def called(self) -> bool:
        return self._given > 0


def _call(call: FoundCall, number: int) -> dict[str, Any]:
    return {
        "index": number,
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


async def answer(
    generation: Generation, body: ChatBody, ready: list[Prepared], usage: Usage, head: dict[str, Any]
) -> dict[str, Any]:
    answers = await generation.collect(ready, usage)
    choices = [_choice(generation.engine.tokenizer, body, ready[0].stop_ids, answer) for answer in answers]
    return {**head, "object": "chat.completion", "choices": choices, "usage": usage.body}


def _choice(tokenizer: Tokenizer, body: ChatBody, stop_ids: frozenset[int], answer: Answer) -> dict[str, Any]:
    turn = _Turn(body)
    text, calls = turn.feed(answer.text, ended=True)
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["content"] = text.strip() or None
        message["tool_calls"] = [{key: call[key] for key in ("id", "type", "function")} for call in calls]
    chosen = shown_choices(tokenizer, answer, stop_ids)
    return {
        "index": answer.index,
        "message": message,
        "logprobs": _logprobs(tokenizer, body, chosen) if body.logprobs else None,
        "finish_reason": "tool_calls" if calls and answer.finish == "stop" else answer.finish,
    }


async def events(
    generation: Generation, body: ChatBody, ready: list[Prepared], usage: Usage, head: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    head = {**head, "object": "chat.completion.chunk"}
    tokenizer, stop_ids = generation.engine.tokenizer, ready[0].stop_ids
    turns = [_Turn(body) for _ in range(body.samples)]
    for index in range(body.samples):
        yield {**head, "choices": [_delta(index, {"role": "assistant", "content": ""})]}
    async with aclosing(generation.parts(ready, usage)) as parts:  # type: ignore[type-var]
        async for part in parts:
            text, calls = turns[part.index].feed(part.text, ended=part.finish is not None)
            delta: dict[str, Any] = {"content": text} if text else {}
            if calls:
                delta["tool_calls"] = calls
            chosen = [choice for choice in part.choices if choice.token not in stop_ids] if body.logprobs else []
            if delta or chosen:
                logprobs = _logprobs(tokenizer, body, chosen) if chosen else None
                yield {**head, "choices": [_delta(part.index, delta, logprobs)]}
            if part.finish:
                called = turns[part.index].called and part.finish == "stop"
                yield {**head, "choices": [_delta(part.index, {}, None, "tool_calls" if called else part.finish)]}
    if body.stream_options and body.stream_options.include_usage:
        yield {**head, "choices": [], "usage": usage.body}


def _delta(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(tokenizer: Tokenizer, body: ChatBody, choices: Sequence[Choice]) -> dict[str, Any]:
    """Log-probabilities are the model's own, before any sampling."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text = token_text(tokenizer, token, body.return_tokens_as_token_ids)
        return {"token": text, "logprob": logprob, "bytes": list(tokenizer.decode_bytes((token,), skip_special=False))}

    return {
        "content": [
            {**entry(choice.token, choice.raw_logprob), "top_logprobs": [entry(*pair) for pair in choice.top]}
            for choice in choices
        ]
    }
