"""Drafts: cheap guesses of the next tokens, which one forward then checks all at once.

The rule of acceptance (`sampling.choose`) keeps greedy output and the sampling distribution as they are ("speculative
decoding", arXiv 2211.17192), so a draft can only win or lose time. Edits and repository code repeat what stands in the
prompt, and copying from there is the cheapest drafter ("prompt look-up decoding"; arXiv 2304.04487 for copied spans).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

LONGEST_DRAFT = 16
_NGRAM = 3  # a shorter match is too often chance
_CANDIDATES = 8  # latest places of an n-gram that are compared further back
_COMPARED = 32  # tokens compared further back
_LONGEST_REST = 32


@dataclass(frozen=True, slots=True)
class Ask:
    """A sequence that may be drafted for: all its tokens so far and the most that are wanted.

    `hidden_D` is the final hidden state from which its last token was chosen, for drafters that read it.
    """

    sequence: int
    tokens: Sequence[int]
    most: int
    hidden_D: Tensor | None = None


class Drafter(Protocol):
    """Guesses how sequences go on. A model's own heads for later tokens are one too: they ask for `hidden_D`."""

    @property
    def reads_hidden(self) -> bool: ...

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        """At most `most` tokens for each ask, maybe none."""
        ...

    def forget(self, sequence: int) -> None:
        """The sequence has ended."""
        ...


class PromptLookup:
    """Continues the longest earlier occurrence of a sequence's last tokens, in its prompt or in its own answer."""

    reads_hidden = False

    def __init__(self) -> None:
        self._indices: dict[int, _NgramIndex] = {}

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        drafts = []
        for ask in asks:
            index = self._indices.get(ask.sequence)
            if index is None:
                index = self._indices[ask.sequence] = _NgramIndex()
            drafts.append(index.continuation(ask.tokens, ask.most))
        return drafts

    def forget(self, sequence: int) -> None:
        self._indices.pop(sequence, None)


class _NgramIndex:
    """Where each n-gram of one growing sequence ends, the latest places only."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._indexed = _NGRAM - 1  # tokens before this place are in the index as ends

    def continuation(self, tokens: Sequence[int], most: int) -> list[int]:
        if len(tokens) <= _NGRAM or most < 1:
            return []
        for end in range(self._indexed, len(tokens) - 1):  # not the last one: it would match itself
            places = self._ends.setdefault(tuple(tokens[end - _NGRAM + 1 : end + 1]), [])
            places.append(end)
            del places[:-_CANDIDATES]
        self._indexed = max(self._indexed, len(tokens) - 1)
        best, longest = -1, -1
        for end in reversed(self._ends.get(tuple(tokens[-_NGRAM:]), ())):
            length = _common_end(tokens, end - _NGRAM, len(tokens) - 1 - _NGRAM)
            if length > longest:  # of equals the latest
                best, longest = end, length
        if best < 0:
            return []
        draft = list(tokens[best + 1 : best + 1 + most])
        period = len(tokens) - 1 - best
        while len(draft) < most:  # the text repeats itself: go on in its rhythm
            draft.append(draft[len(draft) - period])
        return draft


def _common_end(tokens: Sequence[int], first: int, second: int) -> int:
    """How many tokens up to the places `first` < `second` are equal, counted backwards."""
    length = 0
    while length < min(_COMPARED, first + 1) and tokens[first - length] == tokens[second - length]:
        length += 1
    return length


class Pace:
    """How many tokens to draft for one sequence: longer while drafts are right, pauses that grow while they are wrong."""

    __slots__ = ("_length", "_misses", "_rest")

    def __init__(self) -> None:
        self._length, self._misses, self._rest = 4, 0, 0

    def most(self) -> int:
        """Tokens to draft in this step."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._length

    def learn(self, drafted: int, accepted: int) -> None:
        """What became of a draft of at least one token."""
        if accepted == drafted:
            self._length, self._misses = min(2 * self._length, LONGEST_DRAFT), 0
        elif accepted:
            self._length, self._misses = max(2, accepted + 1), 0
        else:
            self._misses += 1
            self._length, self._rest = 2, min(1 << self._misses, _LONGEST_REST)
