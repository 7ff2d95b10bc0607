"""Our generator: continuous batching over a block cache, on the trainer's own decoder.

A step is one forward over a flat stream without padding: one token of every sequence that decodes, drafts of more behind
some of them, and chunks of new prompts. Sequences join and leave at every step; the scheduler says which, the prefix tree
what need not be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codemill.core.contracts import Completion, Request
from codemill.core.errors import CodemillError, ConfigError, InputError
from codemill.engine.answer import AnswerText, End, Piece, Sample, Ticket, failed
from codemill.engine.cache import KVCache, Paged, blocks_for_memory
from codemill.engine.drafts import Ask, Drafter, PromptLookup
from codemill.engine.prefix import BlockPool
from codemill.engine.sampling import Choice, Sampler, check_sampling, choose
from codemill.engine.scheduler import Run, Scheduler, Track
from codemill.engine.stops import Stops
from codemill.models.checkpoint import load_decoder, pick_weights
from codemill.models.decoder import Decoder
from codemill.models.tokenizer import Tokenizer

# Measured on two cores: a prompt's tokens cost about the same in chunks of 256 and of 512, and more in smaller ones.
STEP_TOKENS = 256
# Measured with our kernels: a forward of 16 rows takes about a quarter longer than one of a single row, 32 rows take half
# as long again or more. So drafts fill a step up to 16 rows, and a batch of 16 or more does not draft.
DRAFT_ROWS = 16
_MOST_SAMPLES = 1024
_NOT_A_NUMBER = "the model's logits hold NaN; its weights are broken, or too large for their number format"


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done since it was made, and holds now; `kv_used` and `kv_total` in tokens, `kv_used` without what
    is kept for reuse only."""

    running: int
    waiting: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    steps: int
    preemptions: int
    kv_used: int
    kv_cached: int
    kv_total: int


@dataclass(slots=True, eq=False)
class Prepared:
    """A request that has been checked and tokenised; `error` if it cannot be answered."""

    request: Request
    prompt: list[int] = field(default_factory=list)
    stop_ids: frozenset[int] = frozenset()
    samplers: list[Sampler] = field(default_factory=list)
    texts: list[AnswerText] = field(default_factory=list)
    error: str = ""


class Engine:
    """Completes requests with a decoder. Not thread-safe: one thread calls `submit`, `cancel`, `step` and `generate`
    (`prepare` alone may run in any thread).

    `max_batch` sequences run at once; a step takes about `step_tokens` tokens. The key-value cache takes `kv_bytes` (0: what
    `max_batch` full sequences need, at most 2 GiB and half of the free memory). `speculate` drafts tokens by prompt look-up, a
    `drafter` does it another way.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str = "",
        max_batch: int = 32,
        step_tokens: int = STEP_TOKENS,
        kv_bytes: int = 0,
        speculate: bool = True,
        drafter: Drafter | None = None,
    ) -> None:
        for option, given in (("max_batch", max_batch), ("step_tokens", step_tokens)):
            if given < 1:
                raise ConfigError(f"{option} {given} is too little: give at least 1")
        self.decoder, self.tokenizer = decoder.eval(), tokenizer
        config, dtype, device = decoder.config, decoder.dtype, decoder.device
        blocks = blocks_for_memory(config, dtype, device, max_batch=max_batch, kv_bytes=kv_bytes)
        self.cache = KVCache(config, blocks, dtype, device)
        self.pool = BlockPool(blocks, self.cache.block_tokens)
        self.scheduler: Scheduler[Sample] = Scheduler(
            self.pool, max_batch=max_batch, step_tokens=step_tokens, longest=config.max_positions
        )
        self.drafter: Drafter | None = drafter or (PromptLookup() if speculate else None)
        self._name = name
        self._refused: list[Completion] = []
        self._counts = {"prompt": 0, "completion": 0, "cached": 0, "drafted": 0, "accepted": 0, "steps": 0}

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        dtype: str = "auto",
        device: str = "auto",
        weights: str = "bf16",
        max_batch: int = 32,
        step_tokens: int = STEP_TOKENS,
        kv_bytes: int = 0,
        speculate: bool = True,
    ) -> Engine:
        """An engine for a checkpoint folder, its weights packed for inference: as they are, or quantised."""
        kept = pick_weights(weights)
        decoder = load_decoder(folder, dtype=dtype, device=device).pack(kept)
        return cls(
            decoder,
            Tokenizer.load(folder),
            name=folder.name,
            max_batch=max_batch,
            step_tokens=step_tokens,
            kv_bytes=kv_bytes,
            speculate=speculate,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def infills(self) -> bool:
        return self.tokenizer.fim is not None

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.scheduler.running or self.scheduler.waiting or self._refused)

    def stats(self) -> EngineStats:
        pool, counts = self.pool, self._counts
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
            prompt_tokens=counts["prompt"],
            completion_tokens=counts["completion"],
            cached_tokens=counts["cached"],
            drafted_tokens=counts["drafted"],
            accepted_tokens=counts["accepted"],
            steps=counts["steps"],
            preemptions=self.scheduler.preemptions,
            kv_used=(pool.usable - pool.available) * pool.block_tokens,
            kv_cached=pool.idle * pool.block_tokens,
            kv_total=pool.usable * pool.block_tokens,
        )

    def take_weights(self, decoder: Decoder) -> None:
        """Take the weights of a decoder of the same configuration in place, for instance after an optimiser's step."""
        self.decoder.take(decoder)
        self.reset_cache()

    def reset_cache(self) -> None:
        """Forget all keys and values, because the weights have changed. What is running is computed anew with the new ones."""
        self.scheduler.preempt_all()
        self.pool.reset()

    # Requests in

    def encode(self, request: Request) -> tuple[list[int], frozenset[int]]:
        """The prompt's token ids and the ids that end its answer. Raises a `CodemillError` for a bad request."""
        tokenizer, limit = self.tokenizer, request.max_prompt_tokens
        check_sampling(request.sampling, f"request {request.id}")
        if not 1 <= request.n <= _MOST_SAMPLES:
            raise InputError(
                f"request {request.id}: n = {request.n} is not between 1 and {_MOST_SAMPLES:,}; ask several times"
            )
        stop_ids = tokenizer.stop_ids | frozenset(request.sampling.stop_token_ids)
        if request.prompt_ids:
            ids = list(request.prompt_ids)
            if not 0 <= min(ids) <= max(ids) < self.decoder.config.vocab_size:
                raise InputError(
                    f"request {request.id}: a token id lies outside 0..{self.decoder.config.vocab_size - 1}"
                )
        elif request.messages:
            ids = tokenizer.chat_prompt(request.messages, max_tokens=limit, tools=request.tools)
        elif request.suffix is not None:
            ids = tokenizer.fim_prompt(request.prompt, request.suffix, context=request.context, max_tokens=limit)
            stop_ids = stop_ids | tokenizer.fim.stop_ids if tokenizer.fim else stop_ids
        else:
            ids = tokenizer.completion_prompt(request.prompt, max_tokens=limit)
        self._check_room(request, len(ids))
        return ids, stop_ids

    def _check_room(self, request: Request, prompt: int) -> None:
        where, new = f"request {request.id}", request.sampling.max_tokens
        longest = self.decoder.config.max_positions
        if not prompt:
            raise InputError(f"{where}: the prompt is empty")
        if prompt + new > longest:
            raise InputError(
                f"{where}: {prompt} prompt tokens and {new} new ones do not fit into the model's {longest} positions; "
                "lower max_tokens or set max_prompt_tokens"
            )
        if not self.scheduler.fits(prompt + new):
            raise InputError(
                f"{where}: {prompt} prompt tokens and {new} new ones do not fit into the key-value cache of "
                f"{self.stats().kv_total} tokens; lower max_tokens, set max_prompt_tokens or give the engine more kv_bytes"
            )

    def prepare(self, request: Request) -> Prepared:
        """Check and tokenise: the part of `submit` that may run in any thread, beside a `step`. Never raises for what a
        request says."""
        try:
            ids, stop_ids = self.encode(request)
            # The name of a sample's random stream: no id holds a null character and a number by accident.
            names = [request.id, *(f"{request.id}\0{index}" for index in range(1, request.n))]
            vocabulary = self.decoder.config.vocab_size
            samplers = [
                Sampler(request.sampling, name, ids, self.tokenizer, vocabulary, stop_ids)
                for name in names[: request.n]
            ]
            stop = request.sampling.stop
            texts = [AnswerText(Stops(stop) if stop else None) for _ in samplers]
        except CodemillError as error:
            return Prepared(request, error=str(error))
        return Prepared(request, ids, stop_ids, samplers, texts)

    def submit(self, request: Request | Prepared, on_piece: Callable[[Piece], None] | None = None) -> Ticket:
        """Queue a request; the steps that follow answer it. `on_piece` is called within them, and must neither block nor
        raise; for a request that cannot be answered it is called at once, and the next step returns the reason."""
        ready = request if isinstance(request, Prepared) else self.prepare(request)
        ticket = self._queue(ready, Ticket(ready.request, max(1, len(ready.samplers)), on_piece))
        self._refused += ticket.completions
        return ticket

    def _queue(self, ready: Prepared, ticket: Ticket) -> Ticket:
        if ready.error:
            self._refuse(ticket, ready.error)
            return ticket
        longest = len(ready.prompt) + ready.request.sampling.max_tokens
        for index, (sampler, text) in enumerate(zip(ready.samplers, ready.texts, strict=True)):
            sample = Sample(ticket, index, sampler, ready.stop_ids, text)
            ticket.tracks.append(self.scheduler.add(sample, ready.prompt, longest))
        self._counts["prompt"] += len(ready.prompt) * len(ready.samplers)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop answering a request; no piece or completion follows. Harmless for one that is done."""
        if ticket.open:
            ticket.open, ticket.on_piece = 0, None
            self.scheduler.remove(ticket.tracks)
            self._forget(ticket.tracks)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield completions as they finish. A bad request yields one with `finish_reason` "error"; the others go on."""
        ready = [self.prepare(request) for request in requests]
        # Long ones first: the batch then drains with short ones, and its tail is short. Equal prompts stay together.
        places: dict[tuple[int, ...], int] = {}
        order = [places.setdefault(tuple(one.prompt), len(places)) for one in ready]
        longest = [-len(one.prompt) - one.request.sampling.max_tokens if one.prompt else -(1 << 62) for one in ready]
        done: list[Completion] = []  # of all of them
        tickets = []
        for i in sorted(range(len(ready)), key=lambda i: (longest[i], order[i], i)):
            ticket = Ticket(ready[i].request, max(1, len(ready[i].samplers)), None, done)
            tickets.append(self._queue(ready[i], ticket))
        left = len(done) + sum(ticket.open for ticket in tickets)
        try:
            while left:
                if not done:
                    self.step()
                left -= len(done)
                finished, done[:] = done.copy(), []
                yield from finished
        finally:
            for ticket in tickets:
                self.cancel(ticket)

    # A step

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """One forward for everything in flight; what it finished, and what was refused since the last one."""
        done, self._refused = self._refused, []
        self._draft()
        runs = self.scheduler.plan()
        if not runs:
            return done
        self._counts["steps"] += 1
        hidden_TD = self._forward(runs)
        rows: list[int] = []  # of the stream, whose logits are wanted
        tracks: list[Track[Sample]] = []
        start = 0
        for run in runs:
            end = start + run.count
            self.scheduler.advance(run.track, run.count - len(run.track.drafts))
            if run.rows:
                rows += range(end - run.rows, end)
                tracks.append(run.track)
                followers = self._follow(run.track)
                rows += [end - 1] * len(followers)
                tracks += followers
            start = end
        if tracks:
            wanted_RD = hidden_TD if rows == list(range(len(hidden_TD))) else hidden_TD[rows]
            chosen = choose(
                self.decoder.logits(wanted_RD), [(track.owner.sampler, tuple(track.drafts)) for track in tracks]
            )
            self._keep_hidden(tracks, chosen, wanted_RD)
            for track, choices in zip(tracks, chosen, strict=True):
                completion = self._take(track, choices)
                if completion is not None:
                    done.append(completion)
        return done

    def _draft(self) -> None:
        if self.drafter is None:
            return
        tracks = self.scheduler.decoding()
        rows = DRAFT_ROWS - len(self.scheduler.running)
        asks, asked = [], []
        for track in tracks:
            if rows <= 0:
                break
            most = min(track.pace.most(), track.longest - len(track.tokens) - 1, rows)
            if most > 0:
                asks.append(Ask(track.number, track.tokens, most, track.owner.hidden_D))
                asked.append(track)
                rows -= most
        for track, draft in zip(asked, self.drafter.propose(asks) if asks else (), strict=True):
            track.drafts = draft

    def _forward(self, runs: Sequence[Run[Sample]]) -> Tensor:
        ids: list[int] = []
        for run in runs:
            tokens = run.track.tokens
            ids += tokens[run.past : run.past + run.count]
            ids += run.track.drafts
        rows_R = [run.track.row for run in runs]
        widest = max(len(run.track.blocks) for run in runs)
        attend = Paged(
            self.cache,
            self.scheduler.table_RM[rows_R, :widest],
            np.fromiter((run.past for run in runs), np.int64, len(runs)),
            np.fromiter((run.count for run in runs), np.int64, len(runs)),
        )
        hidden: Tensor = self.decoder(torch.tensor(ids, device=self.decoder.device), attend.positions_T, attend)
        return hidden

    def _follow(self, leader: Track[Sample]) -> list[Track[Sample]]:
        """Sequences with the prompt that was just computed: they begin at its end."""
        followers = self.scheduler.follow(leader)
        if followers and leader.prompt_length % self.cache.block_tokens:
            last = leader.prompt_length // self.cache.block_tokens
            self.cache.copy(leader.blocks[last], [track.blocks[last] for track in followers])
        return followers

    def _keep_hidden(
        self, tracks: Sequence[Track[Sample]], chosen: Sequence[Sequence[Choice]], hidden_RD: Tensor
    ) -> None:
        """Remember the state from which each newest token came, for a drafter that reads it."""
        if self.drafter is None or not self.drafter.reads_hidden:
            return
        start = 0
        for track, choices in zip(tracks, chosen, strict=True):
            track.owner.hidden_D = hidden_RD[start + len(choices) - 1].clone()
            start += 1 + len(track.drafts)

    def _take(self, track: Track[Sample], choices: list[Choice]) -> Completion | None:
        """Add the chosen tokens to an answer; its completion if they end it."""
        sample = track.owner
        end: End | None = None
        fresh: list[Choice] = []
        for choice in choices:
            if choice.token < 0:
                return self._fail(track, choice.error, fresh)
            fresh.append(choice)
            track.tokens.append(choice.token)
            end = self._end_of(track, choice.token)
            if end is not None:
                break
        self._add(track, fresh, len(choices) - 1)
        self.scheduler.advance(track, len(fresh) - 1)
        if end is not None:
            return self._end(track, end, fresh)
        if sample.ticket.on_piece is not None:
            sample.show(sample.text.take(), fresh, track.cached or 0, None)
        return None

    def _add(self, track: Track[Sample], fresh: list[Choice], accepted: int) -> None:
        sample, drafted = track.owner, len(track.drafts)
        sample.choices += fresh
        self._counts["completion"] += len(fresh)
        if drafted:
            sample.drafted += drafted
            sample.accepted += accepted
            self._counts["drafted"] += drafted
            self._counts["accepted"] += accepted
            track.pace.learn(drafted, accepted)
            track.drafts = []

    def _end_of(self, track: Track[Sample], token: int) -> End | None:
        sample = track.owner
        if token in sample.stop_ids or sample.text.add(self.tokenizer.decode_bytes((token,))):
            return "stop"
        return "length" if len(track.tokens) >= track.longest else None

    # Answers out

    def _fail(self, track: Track[Sample], error: str, fresh: list[Choice]) -> Completion:
        """No next token can be chosen: for a reason of the request's own, or because the logits are broken."""
        self._add(track, fresh, len(fresh))
        if not error:  # others may have found these blocks already; they end the same way
            self.pool.drop(track.blocks)
            self.cache.clear([block for block in track.blocks if self.pool.uses(block) == 1])
        name = track.owner.ticket.request.id
        return self._end(track, "error", fresh, f"request {name}: {error or _NOT_A_NUMBER}")

    def _end(self, track: Track[Sample], end: End, fresh: list[Choice], error: str = "") -> Completion:
        sample, cached = track.owner, track.cached or 0
        self.scheduler.finish(track)
        self._forget([track])
        self._counts["cached"] += cached
        rest = sample.text.close()
        completion = sample.completion(end, prompt_tokens=track.prompt_length, cached_tokens=cached, error=error)
        sample.ticket.open -= 1
        sample.ticket.completions.append(completion)
        sample.show(rest, fresh, cached, completion)
        return completion

    def _refuse(self, ticket: Ticket, error: str) -> None:
        completion = failed(ticket.request.id, 0, error)
        ticket.open -= 1
        ticket.completions.append(completion)
        if ticket.on_piece is not None:
            ticket.on_piece(Piece(ticket.request.id, 0, "", (), completion))

    def _forget(self, tracks: Iterable[Track[Sample]]) -> None:
        if self.drafter is not None:
            for track in tracks:
                self.drafter.forget(track.number)
