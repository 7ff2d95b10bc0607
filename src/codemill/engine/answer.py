"""One answer as it grows: its text out of tokens, the pieces that listeners get, and the completion at its end."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from codemill.core.contracts import Completion, Request, ToolCall
from codemill.engine.sampling import Choice, Sampler
from codemill.engine.scheduler import Track
from codemill.engine.stops import Stops
from codemill.models.tool_calls import find_tool_calls

End = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step added to one answer: text that will not be taken back, never half a character, and the tokens chosen.

    Text that may still become a stop string is held back, so it can lag behind the tokens. The last piece carries the
    completion.
    """

    request_id: str
    index: int
    text: str
    choices: tuple[Choice, ...]
    completion: Completion | None
    cached_tokens: int = 0  # of the prompt, found in the prefix cache


@dataclass(slots=True, eq=False)
class AnswerText:
    """Bytes in, text out: cut before a stop string, and shown only as far as it is certain.

    What might become a stop string or is half a character is held back until more is known.
    """

    stops: Stops | None
    _data: bytearray = field(default_factory=bytearray)
    _shown: int = 0
    _cut: bool = False
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def add(self, piece: bytes) -> bool:
        """Append a token's bytes; True if a stop string ends the text before them or inside them."""
        if self.stops is None:
            self._data += piece
            return False
        safe, self._cut = self.stops.feed(piece)
        self._data += safe
        return self._cut

    def take(self) -> str:
        """The text that has become certain since the last call."""
        fresh = self._decoder.decode(bytes(self._data[self._shown :]))
        self._shown = len(self._data)
        return fresh

    def close(self) -> str:
        """The answer has ended: what has not been taken of its text."""
        if self.stops is not None and not self._cut:
            self._data += self.stops.rest()
        return self.take() + self._decoder.decode(b"", True)

    @property
    def text(self) -> str:
        """All of it, once closed. Bytes that are no UTF-8 are U+FFFD."""
        return self._data.decode("utf-8", "replace")


@dataclass(slots=True, eq=False)
class Ticket:
    """A request inside the engine. `completions` fills as its samples end; `open` of them are still to come."""

    request: Request
    open: int
    on_piece: Callable[[Piece], None] | None
    completions: list[Completion] = field(default_factory=list)
    tracks: list[Track[Sample]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Sample:
    """One of a request's answers on its way."""

    ticket: Ticket
    index: int
    sampler: Sampler
    stop_ids: frozenset[int]
    text: AnswerText
    choices: list[Choice] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    hidden_D: Tensor | None = None  # from which the newest token came, kept for drafters that read it

    def show(self, text: str, fresh: list[Choice], cached_tokens: int, completion: Completion | None) -> None:
        """Tell the listener, if there is one."""
        if self.ticket.on_piece is not None:
            name = self.ticket.request.id
            self.ticket.on_piece(Piece(name, self.index, text, tuple(fresh), completion, cached_tokens))

    def completion(self, end: End, *, prompt_tokens: int, cached_tokens: int, error: str) -> Completion:
        """All of it, once its text is closed. For a request with tools the calls are taken out of the text."""
        request, choices = self.ticket.request, self.choices
        text, calls = self.text.text, tuple[ToolCall, ...]()
        if request.tools:
            names = {str(tool.get("function", tool).get("name")) for tool in request.tools}
            text, found = find_tool_calls(text, names)
            calls = tuple(
                ToolCall(id=f"call_{self.index}_{place}", name=call.name, arguments=call.arguments)
                for place, call in enumerate(found)
            )
        return Completion(
            request_id=request.id,
            index=self.index,
            text=text,
            tool_calls=calls,
            token_ids=tuple(choice.token for choice in choices),
            logprobs=tuple(choice.logprob for choice in choices),
            raw_logprobs=tuple(choice.raw_logprob for choice in choices),
            top_logprobs=tuple(choice.top for choice in choices) if request.sampling.top_logprobs else (),
            finish_reason=end,
            prompt_tokens=prompt_tokens,
            completion_tokens=len(choices),
            cached_tokens=cached_tokens,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
            error=error,
        )


def failed(request_id: str, index: int, error: str) -> Completion:
    """A completion that says why there is none."""
    return Completion(
        request_id=request_id, index=index, text="", token_ids=(), logprobs=(), finish_reason="error", error=error
    )
