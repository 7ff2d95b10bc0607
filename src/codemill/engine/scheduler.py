"""Which tokens go through the next forward: decoding first, then prompts in the order in which they came.

A sequence is its tokens and the number of them whose keys and values are in the cache; whatever is missing is computed, be it
a whole prompt, the next chunk of one, or the one token just sampled. So a prompt cut into chunks, a prompt found in the
prefix cache and a sequence that lost its memory to others are one case.
"""

from __future__ import annotations

import itertools
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from codemill.engine.drafts import Pace
from codemill.engine.prefix import NULL_BLOCK, BlockPool

_LOOKED_AT = 256  # waiting sequences considered in one step
Owner = TypeVar("Owner")


@dataclass(slots=True, eq=False)
class Track(Generic[Owner]):
    """One sequence on its way through the engine: the tokens, and where their keys and values are.

    `owner` is whatever the engine keeps about it; `longest` is the most tokens it can come to have.
    """

    number: int  # order of arrival
    owner: Owner
    tokens: list[int]
    longest: int
    prompt_length: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    kept: int = 0  # of the blocks, those in the prefix tree
    row: int = -1  # of the block table, while running
    cached: int | None = None  # tokens of the prompt that need not be computed, known once it runs
    drafts: list[int] = field(default_factory=list)
    pace: Pace = field(default_factory=Pace)

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def begun(self) -> bool:
        """Whether any token has been sampled."""
        return len(self.tokens) > self.prompt_length


@dataclass(slots=True)
class Run(Generic[Owner]):
    """What one sequence does in a step: `count` tokens go through the forward, the last `rows` of them want logits."""

    track: Track[Owner]
    past: int
    count: int
    rows: int


class Scheduler(Generic[Owner]):
    """Sequences that wait and that run, and the memory between them. At most `max_batch` run; a step takes about
    `step_tokens` tokens (decoding never waits for prompts, and prompts always get at least a block's worth)."""

    def __init__(self, pool: BlockPool, *, max_batch: int, step_tokens: int, longest: int) -> None:
        self.pool, self.max_batch, self.step_tokens = pool, max_batch, step_tokens
        self.waiting: deque[Track[Owner]] = deque()
        self.running: list[Track[Owner]] = []  # by arrival
        self.table_RM = np.full((max_batch, min(pool.blocks_for(longest), pool.usable) + 1), NULL_BLOCK, np.int32)
        self._free_rows = list(range(max_batch))[::-1]
        self._numbers = itertools.count()
        self.preemptions = 0

    # Coming and going

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens could run alone."""
        return self.pool.blocks_for(tokens) <= self.pool.usable

    def add(self, owner: Owner, prompt: list[int], longest: int) -> Track[Owner]:
        """Queue a sequence. `prompt` may be shared between sequences, it is copied when one of them runs."""
        track = Track(next(self._numbers), owner, prompt, longest, len(prompt))
        self.waiting.append(track)
        return track

    def remove(self, tracks: Iterable[Track[Owner]]) -> None:
        """Take sequences out, wherever they are; those that have left already are passed over."""
        gone = {id(track) for track in tracks}
        for track in [track for track in self.running if id(track) in gone]:
            self._stop(track)
        if any(id(track) in gone for track in self.waiting):
            self.waiting = deque(track for track in self.waiting if id(track) not in gone)

    def finish(self, track: Track[Owner]) -> None:
        """A running sequence has ended: its full blocks stay in the prefix tree."""
        self._stop(track)

    def preempt_all(self) -> None:
        """Send everything that runs back into the queue, to be computed anew."""
        for track in reversed(self.running.copy()):
            self._preempt(track)

    def _stop(self, track: Track[Owner]) -> None:
        self.running.remove(track)
        self.table_RM[track.row] = NULL_BLOCK
        self._free_rows.append(track.row)
        self.pool.release(track.blocks)
        track.blocks, track.kept, track.computed, track.row = [], 0, 0, -1
        track.drafts = []

    def _preempt(self, track: Track[Owner]) -> None:
        self._stop(track)
        self.waiting.appendleft(track)
        self.preemptions += 1

    def _start(self, track: Track[Owner], blocks: list[int], computed: int) -> None:
        """Let a sequence run with `blocks`, already counted as its own, `computed` tokens of them filled."""
        track.row = self._free_rows.pop()
        track.blocks, track.computed = blocks, computed
        track.kept = computed // self.pool.block_tokens
        self.table_RM[track.row, : len(blocks)] = blocks
        if track.cached is None:
            track.cached = computed
            track.tokens = list(track.tokens)  # from here on its own
        insort(self.running, track, key=lambda t: t.number)

    # Planning a step

    def decoding(self) -> list[Track[Owner]]:
        """Running sequences whose newest token alone is missing, by arrival."""
        return [track for track in self.running if track.missing == 1]

    def plan(self) -> list[Run[Owner]]:
        """The runs of the next forward, decoding first. Drafts of a track are cut to the memory there is."""
        runs: list[Run[Owner]] = []
        for track in self.decoding():
            if track.row >= 0 and self._make_room(track):  # it may have given way to one before it
                count = 1 + len(track.drafts)
                runs.append(Run(track, track.computed, count, count))
        budget = max(self.step_tokens - sum(run.count for run in runs), self.pool.block_tokens)
        begun = [track for track in self.running if track.missing > 1]
        for track in itertools.chain(begun, self._admitted()):
            count = min(track.missing, budget)
            runs.append(Run(track, track.computed, count, int(count == track.missing)))
            budget -= count
            if budget == 0:
                break
        return runs

    def _admitted(self) -> Iterator[Track[Owner]]:
        """Waiting sequences that may run from now on, in order. One whose beginning another is about to compute lets others
        pass; one for which there is no memory does not, so everyone's turn comes."""
        place = 0
        while place < min(len(self.waiting), _LOOKED_AT) and self._free_rows:
            track = self.waiting[place]
            known = self.pool.match(track.tokens, len(track.tokens) - 1)
            if self._soon_known(track, len(known) * self.pool.block_tokens):
                place += 1
                continue
            fresh = self.pool.blocks_for(len(track.tokens)) - len(known)
            # Those that run will each want another block soon: without some left, this one would be sent back at once.
            if fresh + len(self.running) > self.pool.available - self.pool.reclaimable(known):
                return
            del self.waiting[place]
            self.pool.share(known)
            self._start(
                track, known + [self.pool.allocate() for _ in range(fresh)], len(known) * self.pool.block_tokens
            )
            yield track

    def _soon_known(self, track: Track[Owner], known: int) -> bool:
        """Whether a running prompt will fill the block behind the first `known` tokens, or is this very prompt."""
        end = known + self.pool.block_tokens
        for other in self.running:
            if other.missing > 1 or not other.begun:
                if end < len(track.tokens) and other.tokens[:end] == track.tokens[:end]:
                    return True
                if not track.begun and not other.begun and other.tokens == track.tokens:
                    return True
        return False

    def follow(self, leader: Track[Owner]) -> list[Track[Owner]]:
        """Start the waiting sequences with the prompt that `leader` has just computed, as far as there is place.

        They share its full blocks. Where the prompt does not end with a block, they get their own last block, into which
        the caller copies the leader's.
        """
        full, rest = divmod(leader.prompt_length, self.pool.block_tokens)
        started: list[Track[Owner]] = []
        for track in itertools.islice(self.waiting, _LOOKED_AT) if not leader.begun else ():
            if not self._free_rows or len(self.running) + bool(rest) > self.pool.available:
                break
            if not track.begun and track.tokens == leader.tokens:
                blocks = leader.blocks[:full]
                self.pool.share(blocks)
                if rest:
                    blocks.append(self.pool.allocate())
                self._start(track, blocks, leader.prompt_length)
                started.append(track)
        if started:
            gone = {id(track) for track in started}
            self.waiting = deque(track for track in self.waiting if id(track) not in gone)
        return started

    def advance(self, track: Track[Owner], count: int) -> None:
        """So many more of the track's tokens are in the cache; blocks that got full enter the prefix tree."""
        track.computed += count
        size = self.pool.block_tokens
        while (track.kept + 1) * size <= track.computed:
            at = track.kept
            parent = track.blocks[at - 1] if at else None
            block = self.pool.keep(parent, track.blocks[at], track.tokens[at * size : (at + 1) * size])
            track.blocks[at] = self.table_RM[track.row, at] = block
            track.kept += 1

    def _make_room(self, track: Track[Owner]) -> bool:
        """A block for the next token, from the youngest if need be; False if the track itself had to give way."""
        size = self.pool.block_tokens
        if track.computed + 1 > len(track.blocks) * size:
            while not self.pool.available:
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is track:
                    return False
            self._append_block(track)
        while track.computed + 1 + len(track.drafts) > len(track.blocks) * size:
            if not self.pool.available:
                del track.drafts[len(track.blocks) * size - track.computed - 1 :]
                break
            self._append_block(track)
        return True

    def _append_block(self, track: Track[Owner]) -> None:
        self.table_RM[track.row, len(track.blocks)] = block = self.pool.allocate()
        track.blocks.append(block)
