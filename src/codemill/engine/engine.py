"""Our generator: continuous batching over a key-value cache, on the trainer's own decoder.

New prompts are packed without padding and run through the same forward as a training batch; then every sequence in the
batch advances one token a step. A sequence that ends gives its place to the next request at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from codemill.core.contracts import Completion, Request
from codemill.core.errors import CodemillError, InputError
from codemill.engine.cache import Decode, KVCache, Prefill
from codemill.engine.sampling import check_sampling, generator_for, sample
from codemill.models.checkpoint import load_decoder
from codemill.models.decoder import Decoder, packed_positions
from codemill.models.tokenizer import Tokenizer


@dataclass
class _Sequence:
    """A request on its way."""

    request: Request
    prompt: list[int]
    stop_ids: frozenset[int]
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)  # the text so far, as bytes: a character may span tokens

    @property
    def room(self) -> int:
        return len(self.prompt) + self.request.sampling.max_tokens


class Engine:
    """Completes requests with a decoder. Not thread-safe: one `generate` at a time.

    `max_batch` sequences run at once; a step prefills at most `prefill_tokens` new prompt tokens (one prompt at least).
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str = "",
        max_batch: int = 32,
        prefill_tokens: int = 2048,
    ) -> None:
        self.decoder, self.tokenizer = decoder.eval(), tokenizer
        self.max_batch, self.prefill_tokens = max_batch, prefill_tokens
        self._name = name

    @classmethod
    def load(cls, folder: Path, *, dtype: str = "auto", device: str = "auto", max_batch: int = 32) -> Engine:
        """An engine for a checkpoint folder, its weights packed for inference."""
        decoder = load_decoder(folder, dtype=dtype, device=device).pack()
        return cls(decoder, Tokenizer.load(folder), name=folder.name, max_batch=max_batch)

    @property
    def name(self) -> str:
        return self._name

    @property
    def infills(self) -> bool:
        return self.tokenizer.fim is not None

    def encode(self, request: Request) -> tuple[list[int], frozenset[int]]:
        """The prompt's token ids and the ids that end its answer. Raises a `CodemillError` for a bad request."""
        tokenizer, limit = self.tokenizer, request.max_prompt_tokens
        check_sampling(request.sampling, f"request {request.id}")
        stop_ids = tokenizer.stop_ids
        if request.prompt_ids:
            ids = list(request.prompt_ids)
            if not 0 <= min(ids) <= max(ids) < self.decoder.config.vocab_size:
                raise InputError(
                    f"request {request.id}: a token id lies outside 0..{self.decoder.config.vocab_size - 1}"
                )
        elif request.messages:
            ids = tokenizer.chat_prompt(request.messages, max_tokens=limit)
        elif request.suffix is not None:
            ids = tokenizer.fim_prompt(request.prompt, request.suffix, context=request.context, max_tokens=limit)
            stop_ids = stop_ids | tokenizer.fim.stop_ids if tokenizer.fim else stop_ids
        else:
            ids = tokenizer.completion_prompt(request.prompt, max_tokens=limit)
        longest = self.decoder.config.max_positions
        if not ids:
            raise InputError(f"request {request.id}: the prompt is empty")
        if len(ids) + request.sampling.max_tokens > longest:
            raise InputError(
                f"request {request.id}: {len(ids)} prompt tokens and {request.sampling.max_tokens} new ones do not fit "
                f"into the model's {longest} positions; lower max_tokens or set max_prompt_tokens"
            )
        return ids, stop_ids

    @torch.inference_mode()
    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield completions as they finish. A bad request yields one with `finish_reason` "error"; the others go on."""
        waiting: deque[_Sequence] = deque()
        for request in requests:
            try:
                ids, stop_ids = self.encode(request)
            except CodemillError as error:
                yield Completion(
                    request_id=request.id,
                    text="",
                    token_ids=(),
                    logprobs=(),
                    finish_reason="error",
                    error=str(error),
                )
                continue
            waiting.append(_Sequence(request, ids, stop_ids, generator_for(request.sampling, request.id)))
        if not waiting:
            return
        # Long ones first: the batch then drains with short ones, and its tail is short.
        waiting = deque(sorted(waiting, key=lambda sequence: -sequence.room))
        cache = KVCache(
            self.decoder.config,
            min(self.max_batch, len(waiting)),
            max(sequence.room for sequence in waiting),
            self.decoder.dtype,
            self.decoder.device,
        )
        running: list[_Sequence] = []
        while waiting or running:
            fresh = self._admit(waiting, running, cache)
            if fresh:
                logits = self._prefill(fresh, len(running), cache)
                running += fresh
                yield from self._advance(running, range(len(running) - len(fresh), len(running)), logits, cache)
            else:
                yield from self._advance(running, range(len(running)), self._decode(running, cache), cache)

    def _admit(self, waiting: deque[_Sequence], running: list[_Sequence], cache: KVCache) -> list[_Sequence]:
        """Take requests that fit into the batch and into this step's budget of prompt tokens."""
        fresh: list[_Sequence] = []
        tokens = 0
        while waiting and len(running) + len(fresh) < cache.slots:
            if fresh and tokens + len(waiting[0].prompt) > self.prefill_tokens:
                break
            tokens += len(waiting[0].prompt)
            fresh.append(waiting.popleft())
        return fresh

    def _prefill(self, fresh: list[_Sequence], first_slot: int, cache: KVCache) -> Tensor:
        lengths = [len(sequence.prompt) for sequence in fresh]
        ids = torch.tensor([token for sequence in fresh for token in sequence.prompt], device=self.decoder.device)
        slots = range(first_slot, first_slot + len(fresh))
        hidden = self.decoder(ids, packed_positions(lengths, ids.device), Prefill(cache, slots, lengths))
        cache.lengths += lengths
        last = torch.tensor(lengths, device=ids.device).cumsum(0) - 1
        return self.decoder.logits(hidden[last])

    def _decode(self, running: list[_Sequence], cache: KVCache) -> Tensor:
        ids = torch.tensor([sequence.tokens[-1] for sequence in running], device=self.decoder.device)
        attend = Decode(cache)
        hidden = self.decoder(ids, attend.positions_B, attend)
        cache.lengths = [length + 1 for length in cache.lengths]
        return self.decoder.logits(hidden)

    def _advance(
        self, running: list[_Sequence], slots: range, logits_BV: Tensor, cache: KVCache
    ) -> Iterator[Completion]:
        """Draw a token for each of the slots; sequences that end leave the batch."""
        rows = [running[slot] for slot in slots]
        tokens, logprobs = sample(logits_BV, [r.request.sampling for r in rows], [r.generator for r in rows])
        done: list[Completion] = []
        for slot, token, logprob in sorted(zip(slots, tokens, logprobs, strict=True), reverse=True):
            sequence = running[slot]
            completion = self._append(sequence, token, logprob)
            if completion is not None:
                done.append(completion)
                moved = cache.release(slot)
                running[slot] = running[moved]
                running.pop()
        yield from done

    def _append(self, sequence: _Sequence, token: int, logprob: float) -> Completion | None:
        """Add a token; the completion if that ends the sequence."""
        sequence.tokens.append(token)
        sequence.logprobs.append(logprob)
        how = sequence.request.sampling
        end: Literal["stop", "length"] | None = None
        if token in sequence.stop_ids:
            end = "stop"
        else:
            piece = self.tokenizer.decode_bytes([token])
            sequence.data += piece
            for stop in (stop.encode() for stop in how.stop):
                at = sequence.data.find(stop, max(0, len(sequence.data) - len(piece) - len(stop) + 1))
                if at >= 0:
                    del sequence.data[at:]
                    end = "stop"
        if end is None and len(sequence.tokens) >= how.max_tokens:
            end = "length"
        if end is None:
            return None
        return Completion(
            request_id=sequence.request.id,
            text=sequence.data.decode("utf-8", "replace"),
            token_ids=tuple(sequence.tokens),
            logprobs=tuple(sequence.logprobs),
            finish_reason=end,
            prompt_tokens=len(sequence.prompt),
        )
