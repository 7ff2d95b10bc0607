"""What is said to an OpenAI-compatible server, and what it answers, checked. No network here, and no torch.

Three questions exist: `completions` (a prompt, perhaps with a suffix), `chat/completions` (messages and tools), and `infill` of
llama.cpp's server. The fields are those that vLLM, SGLang, Ollama and llama.cpp document. An answer comes from outside: nothing
in it is taken for granted, and text of it enters a message only shortened and without control characters.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from codemill.core.contracts import Request, Sampling, ToolCall
from codemill.core.errors import InputError
from codemill.core.text import visible

# Fields that not every server knows. One that is refused is left out from then on, as long as that changes nothing.
NEUTRAL: dict[str, Any] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0}
OPTIONAL = ("seed", "return_tokens_as_token_ids", "trim")
BYTES_A_TOKEN = 3  # of source code, at the lower end of what tokenizers reach: a budget in tokens, kept without one
PREFIX_SHARE = 2 / 3
TOOL_CALLS = 1000  # more of them in one answer are no answer
MESSAGE = 300  # characters of a server's error text that are passed on

Route = Literal["completions", "chat/completions", "infill"]
_ENDS: dict[str, Literal["stop", "length"]] = {
    "stop": "stop", "eos": "stop", "stop_sequence": "stop", "end_turn": "stop", "tool_calls": "stop", "function_call": "stop",
    "word": "stop", "length": "length", "max_tokens": "length", "limit": "length",
}  # fmt: skip


class MalformedAnswerError(ValueError):
    """The server's answer is not what its protocol says. The message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One checked answer. `logprobs` are as the server reports them, None where it reports none; token counts are 0 there."""

    text: str
    finish_reason: Literal["stop", "length"]
    tool_calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    model: str = ""


# Questions


def question(
    request: Request, model: str, *, index: int, fill_by: Route = "completions", logprobs: bool = False
) -> tuple[Route, dict[str, Any]]:
    """Route and body for completion `index` of a request; `fill_by` answers those with a suffix.

    Raises `InputError` for a request that no server of this kind can be asked.
    """
    how = request.sampling
    check_sampling(how, f"request {request.id}")
    body = _sampling(request, index)
    if request.messages:
        body |= {"model": model, "messages": [_message(message) for message in request.messages]}
        if request.tools:
            body["tools"] = [_tool(tool) for tool in request.tools]
        if logprobs or how.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": how.top_logprobs, "return_tokens_as_token_ids": True}
        return "chat/completions", body
    if request.prompt_ids:
        return "completions", {**body, "model": model, "prompt": list(request.prompt_ids), **_logprobs(how, logprobs)}
    before, after = cut_to_bytes(request.prompt, request.suffix or "", request.max_prompt_tokens * BYTES_A_TOKEN)
    if request.suffix is not None:
        body["trim"] = False  # of `codemill serve`: what the model wrote, not what an editor would show of it
    if request.suffix is not None and fill_by == "infill":
        extra = [{"filename": file.path, "text": file.text} for file in request.context]
        body["n_predict"] = body.pop("max_tokens")
        return "infill", {**body, "model": model, "input_prefix": before, "input_suffix": after, "input_extra": extra}
    body |= {"model": model, "prompt": before, **_logprobs(how, logprobs)}
    return "completions", body if request.suffix is None else {**body, "suffix": after}


def check_sampling(how: Sampling, where: str) -> None:
    """Raise `InputError` for values that make no sense or cannot be asked of a server."""
    for name, good in (
        ("max_tokens", how.max_tokens >= 1),
        ("temperature", 0.0 <= how.temperature < math.inf),
        ("top_k", how.top_k >= 0),
        ("top_p", 0.0 < how.top_p <= 1.0),
        ("min_p", 0.0 <= how.min_p <= 1.0),
        ("repetition_penalty", 0.0 < how.repetition_penalty < math.inf),
        ("logit_bias", all(math.isfinite(bias) for bias in how.logit_bias.values())),
        ("top_logprobs", how.top_logprobs >= 0),
        ("stop", all(how.stop)),
    ):
        if not good:
            raise InputError(f"{where}: sampling {name} = {str(getattr(how, name))[:100]} is not allowed")
    if how.constraint is not None and how.constraint.kind != "json_schema":
        raise InputError(
            f"{where}: a constraint of kind {how.constraint.kind} cannot be asked of a server in a way that they share; "
            "give a JSON schema"
        )


def _sampling(request: Request, index: int) -> dict[str, Any]:
    """Everything is said: what is left out a server takes from the model's own settings or from its own taste."""
    how = request.sampling
    fields: dict[str, Any] = {
        "max_tokens": how.max_tokens,
        "temperature": how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k or NEUTRAL["top_k"],
        "min_p": how.min_p,
        "repetition_penalty": how.repetition_penalty,
        "repeat_penalty": how.repetition_penalty,  # its name in llama.cpp
        "seed": seed_for(request, index),
        "stream": False,
    }
    if how.stop:
        fields["stop"] = list(how.stop)
    if how.stop_token_ids:
        fields["stop_token_ids"] = list(how.stop_token_ids)
    if how.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in how.logit_bias.items()}
    if how.constraint is not None:
        schema = _schema(how.constraint.text, request.id)
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": schema},
        }
    return fields


def seed_for(request: Request, index: int) -> int:
    """A seed of 31 bits for one completion. Requests that share `Sampling.seed` must not draw the same tokens."""
    digest = hashlib.blake2b(f"{request.sampling.seed}:{request.id}:{index}".encode("utf-8", "replace"), digest_size=4)
    return int.from_bytes(digest.digest(), "little") >> 1


def may_drop(name: str, value: Any) -> bool:
    """Whether a field can be left out without asking for something else."""
    return name in OPTIONAL or (name in NEUTRAL and bool(value == NEUTRAL[name]))


def _schema(text: str, request_id: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"request {request_id}: the constraint is not a JSON schema: {error}") from None


def _logprobs(how: Sampling, wanted: bool) -> dict[str, Any]:
    if not (wanted or how.top_logprobs):
        return {}
    return {"logprobs": max(1, how.top_logprobs), "return_tokens_as_token_ids": True}


def _message(message: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        said["tool_call_id"] = message.tool_call_id
    return said


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)}


def cut_to_bytes(before: str, after: str, room: int) -> tuple[str, str]:
    """The text nearest to the gap, `room` UTF-8 bytes of it (0: all), two thirds before it; never half a character."""
    left, right = before.encode("utf-8", "surrogatepass"), after.encode("utf-8", "surrogatepass")
    if not room or len(left) + len(right) <= room:
        return before, after
    keep = min(len(left), max(round(room * PREFIX_SHARE), room - len(right)))
    return left[len(left) - keep :].decode("utf-8", "ignore"), right[: room - keep].decode("utf-8", "ignore")


# Answers


def parse(data: bytes) -> Any:
    """JSON from outside. Raises `MalformedAnswerError`."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # also: not UTF-8, a number of a million digits
        raise MalformedAnswerError(f"not JSON ({shown(str(error))[:80]}): {shown(data[:80])!r}") from None


def reply(route: Route, data: Any, request: Request) -> Reply:
    """The checked answer to `question`. Raises `MalformedAnswerError`, or `InputError` for an answer that was withheld."""
    limit = request.sampling.max_tokens
    found = _infilled(data) if route == "infill" else _chosen(data, chat=route == "chat/completions", limit=limit)
    text, finish = found.text, found.finish_reason
    at = min((at for stop in request.sampling.stop if (at := text.find(stop)) >= 0), default=-1)
    if at >= 0:  # not every server takes them all, or takes them out
        text, finish = text[:at], "stop"
    if request.sampling.constraint is not None and finish == "stop" and not found.tool_calls:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            raise InputError("the server did not keep to the JSON schema: its answer is not JSON") from None
    return Reply(**{**{name: getattr(found, name) for name in Reply.__slots__}, "text": text, "finish_reason": finish})


def _chosen(data: Any, *, chat: bool, limit: int) -> Reply:
    choices = _get(data, "choices", list)
    if not choices:
        raise MalformedAnswerError("choices is empty")
    choice = choices[0]
    if chat:
        message = _get(choice, "message", dict)
        text, calls = _content(message.get("content")), _tool_calls(message.get("tool_calls"))
    else:
        text, calls = _get(choice, "text", str), ()
    usage = _get(data, "usage", dict, {}) or {}
    details = _get(usage, "prompt_tokens_details", dict, {}) or {}
    values, top, ids = _read_logprobs(choice.get("logprobs"))
    tokens = _count(usage, "completion_tokens")
    unsaid = "length" if tokens >= limit else "stop"
    return Reply(
        text=whole(text),
        finish_reason=_finish(_get(choice, "finish_reason", str, unsaid)),
        tool_calls=calls,
        token_ids=ids,
        logprobs=values,
        top_logprobs=top,
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=tokens,
        cached_tokens=_count(details, "cached_tokens"),
        model=shown(_get(data, "model", str, "") or ""),
    )


def _infilled(data: Any) -> Reply:
    text = whole(_get(data, "content", str))
    older = "limit" if data.get("stopped_limit") is True else "stop"  # before there was a stop_type
    return Reply(
        text=text,
        finish_reason=_finish(_get(data, "stop_type", str, older)),
        prompt_tokens=_count(data, "tokens_evaluated"),
        completion_tokens=_count(data, "tokens_predicted"),
        # `tokens_cached` counts what the cache holds afterwards, not what it had
        cached_tokens=_count(_get(data, "timings", dict, {}), "cache_n"),
        model=shown(_get(data, "model", str, "") or ""),
    )


def _finish(value: str) -> Literal["stop", "length"]:
    if value == "content_filter":
        raise InputError("the server withheld the answer (content filter)")
    if value not in _ENDS:
        raise MalformedAnswerError(f"finish_reason is {shown(value)[:60]!r}, which is not known")
    return _ENDS[value]


def _content(value: Any) -> str:
    """The text of a chat message, which some servers give in parts; none when tools are called."""
    if isinstance(value, list):
        return "".join(_get(part, "text", str, "") or "" for part in value)
    if value is None or isinstance(value, str):
        return value or ""
    raise MalformedAnswerError(f"content is a {type(value).__name__}, not text")


def _tool_calls(value: Any) -> tuple[ToolCall, ...]:
    if value is not None and (not isinstance(value, list) or len(value) > TOOL_CALLS):
        raise MalformedAnswerError(f"tool_calls is not a list of at most {TOOL_CALLS}")
    calls = []
    for i, call in enumerate(value or ()):
        function = _get(call, "function", dict)
        arguments = function.get("arguments", "")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments)
        if not isinstance(arguments, str):
            raise MalformedAnswerError(f"tool_calls.{i}.function.arguments is a {type(arguments).__name__}, not text")
        name = whole(_get(function, "name", str))
        calls.append(ToolCall(id=_get(call, "id", str, "") or f"call_{i}", name=name, arguments=whole(arguments)))
    return tuple(calls)


_Top = tuple[tuple[tuple[int, float], ...], ...]


def _read_logprobs(value: Any) -> tuple[tuple[float, ...], _Top, tuple[int, ...]]:
    """Log-probabilities in either layout: parallel lists, or a list of entries. Ids where the server writes tokens as ids."""
    if value is None:
        return (), (), ()
    entries = _get(value, "content", list, None)
    if entries is not None:
        tokens = [_get(entry, "token", str) for entry in entries]
        numbers = [entry.get("logprob") for entry in entries]
        tops = [
            [(_get(t, "token", str), t.get("logprob")) for t in _get(entry, "top_logprobs", list, []) or []]
            for entry in entries
        ]
    else:
        tokens, numbers = _get(value, "tokens", list, []) or [], _get(value, "token_logprobs", list, []) or []
        listed = _get(value, "top_logprobs", list, None) or [None] * len(numbers)
        if any(t is not None and not isinstance(t, dict) for t in listed):
            raise MalformedAnswerError("logprobs.top_logprobs is not a list of objects")
        tops = [list((t or {}).items()) for t in listed]
    if len(tokens) != len(numbers):
        raise MalformedAnswerError(f"logprobs: {len(tokens)} tokens and {len(numbers)} values")
    ids = _ids(tokens)
    top = tuple(_top(row) for row in tops) if ids and any(tops) else ()
    return tuple(_logprob(number) for number in numbers), top, ids


def _top(row: Sequence[tuple[str, Any]]) -> tuple[tuple[int, float], ...]:
    return tuple(zip(_ids([token for token, _ in row]), [_logprob(value) for _, value in row], strict=False))


def _ids(tokens: Sequence[Any]) -> tuple[int, ...]:
    """Ids of tokens written as "token_id:17", nothing for tokens written as text."""
    numbers = [t.removeprefix("token_id:") for t in tokens if isinstance(t, str) and t.startswith("token_id:")]
    if len(numbers) != len(tokens) or not all(n.isascii() and n.isdigit() and len(n) < 10 for n in numbers):
        return ()
    return tuple(map(int, numbers))


def _logprob(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf <= value <= 1e-3:
        raise MalformedAnswerError(f"logprobs: {shown(repr(value))[:60]} is not a log-probability")
    return float(max(value, -1e4))  # minus infinity has no place in a record


def _count(data: Any, name: str) -> int:
    value = data.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1 << 40:
        raise MalformedAnswerError(f"{name} is {shown(repr(value))[:60]}, not a count")
    return value


_REQUIRED: Any = object()


def _get(data: Any, name: str, kind: type, default: Any = _REQUIRED) -> Any:
    """A field of an object. A null counts as missing; missing without a default, or of another type, is an error."""
    if not isinstance(data, dict):
        raise MalformedAnswerError(f"a {type(data).__name__} where an object with {name!r} belongs")
    value = data.get(name)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, kind):
        problem = "missing" if value is None else f"a {type(value).__name__}, not a {kind.__name__}"
        raise MalformedAnswerError(f"{name} is {problem}")
    return value


def problem_in(data: bytes) -> tuple[str, frozenset[str]]:
    """What an error answer says, on one line, and the words by which it names its kind (code, type, parameter)."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return shown(data), frozenset()
    inner = said.get("error", said) if isinstance(said, dict) else said
    if not isinstance(inner, dict):
        return shown(inner if isinstance(inner, str) else json.dumps(inner)), frozenset()
    words = {str(inner[key])[:100] for key in ("code", "type", "param") if isinstance(inner.get(key), str | int)}
    message = inner.get("message", inner.get("detail", ""))
    return shown(message if isinstance(message, str) else json.dumps(message)), frozenset(words)


def shown(text: str | bytes) -> str:
    """Text from outside for a message: one short line without control characters."""
    if isinstance(text, bytes):
        text = text[: 4 * MESSAGE].decode("utf-8", "replace")
    line = " ".join(visible(text[: 2 * MESSAGE]).split())
    return line if len(line) <= MESSAGE else f"{line[:MESSAGE]}…"


def whole(text: str) -> str:
    """The text with halves of surrogate pairs, which JSON can carry and UTF-8 cannot, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
