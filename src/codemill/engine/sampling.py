"""From logits to tokens and their log-probabilities.

Shapes: R rows of logits, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codemill.core.contracts import Sampling
from codemill.core.errors import InputError
from codemill.engine.constraint import Guide
from codemill.engine.draw import Floats, Row, distribution, draw
from codemill.models.native import kernels_for
from codemill.models.tokenizer import Tokenizer

_MOST_STOPS, _LONGEST_STOP = 64, 10_000
_MOST_TOP_LOGPROBS = 100
_LARGEST_BIAS = 1_000_000


@dataclass(frozen=True, slots=True)
class Choice:
    """A token with its log-probability in the sampling distribution and in the model's own, and, if asked for, the
    likeliest tokens of the latter. `token` -1: nothing can be chosen, for the reason in `error`, or because the logits
    hold NaN or infinity."""

    token: int
    logprob: float
    raw_logprob: float
    top: tuple[tuple[int, float], ...] = ()
    error: str = ""


def check_sampling(sampling: Sampling, where: str) -> None:
    """Raise `InputError` for values that make no sense, whatever the vocabulary (`Sampler` checks the rest)."""
    real, whole = _is_real, _is_whole
    for name, good, want in (
        ("max_tokens", whole(sampling.max_tokens) and sampling.max_tokens >= 1, "at least 1"),
        (
            "temperature",
            real(sampling.temperature) and (sampling.temperature == 0 or 1e-6 <= sampling.temperature <= 1e6),
            "0, or from 1e-6 to 1e6",
        ),
        ("top_k", whole(sampling.top_k) and sampling.top_k >= 0, "a whole number, 0 for off"),
        ("top_p", real(sampling.top_p) and 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("min_p", real(sampling.min_p) and 0 <= sampling.min_p <= 1, "from 0 to 1"),
        (
            "repetition_penalty",
            real(sampling.repetition_penalty) and 0.01 <= sampling.repetition_penalty <= 100,
            "from 0.01 to 100",
        ),
        (
            "top_logprobs",
            whole(sampling.top_logprobs) and 0 <= sampling.top_logprobs <= _MOST_TOP_LOGPROBS,
            f"from 0 to {_MOST_TOP_LOGPROBS}",
        ),
        ("seed", whole(sampling.seed), "a whole number"),
    ):
        if not good:
            raise InputError(
                f"{where}: sampling {name} = {_shown(getattr(sampling, name))} is not allowed; it must be {want}"
            )
    for token, bias in sampling.logit_bias.items():
        if not (whole(token) and real(bias) and abs(bias) <= _LARGEST_BIAS):
            given = f"{_shown(token)}: {_shown(bias)}"
            raise InputError(
                f"{where}: sampling logit_bias {given} is not a token id and a number within ±{_LARGEST_BIAS:,}"
            )
    _check_stops(sampling.stop, where)


def _check_stops(stops: tuple[str, ...], where: str) -> None:
    if len(stops) > _MOST_STOPS:
        raise InputError(f"{where}: {len(stops):,} stop strings are more than {_MOST_STOPS}")
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise InputError(f"{where}: stop string {_shown(stop)} is empty or no string")
        if len(stop) > _LONGEST_STOP:
            raise InputError(f"{where}: a stop string of {len(stop):,} characters is longer than {_LONGEST_STOP:,}")
        try:
            stop.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"{where}: stop string {_shown(stop)} holds a lone surrogate, which no text contains"
            ) from None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class Sampler:
    """How one sequence's tokens are chosen: its place in its random stream, the tokens it has seen, its constraint.

    The number that decides the token at a place of the answer depends on seed, request id and place only: not on the batch,
    and not on how many tokens speculation guessed. Raises `InputError` for token ids outside the vocabulary and for a
    constraint that cannot be used.
    """

    def __init__(
        self,
        how: Sampling,
        request_id: str,
        prompt_ids: Sequence[int],
        tokenizer: Tokenizer,
        vocab_size: int,
        stop_ids: frozenset[int],
    ) -> None:
        where = f"request {request_id}"
        for name, ids in (("logit_bias", how.logit_bias), ("stop_token_ids", how.stop_token_ids)):
            for token in ids:
                if not (_is_whole(token) and 0 <= token < vocab_size):
                    raise InputError(f"{where}: {name}: token id {_shown(token)} lies outside 0..{vocab_size - 1}")
        self.how = how
        self.stop_ids = frozenset(token for token in stop_ids if token < vocab_size)
        self._key = hashlib.blake2b(
            f"{how.seed}:{request_id}".encode("utf-8", "surrogatepass"), digest_size=32
        ).digest()
        self._place = 0
        self._bias = (np.fromiter(how.logit_bias, np.int64), np.fromiter(how.logit_bias.values(), np.float32))
        self._seen: set[int] = set()
        self._seen_ids = array("q")  # the same, as an index
        if how.repetition_penalty != 1.0:
            self._see(prompt_ids)
        self._guide = Guide.compile(how.constraint, tokenizer, vocab_size, where) if how.constraint else None
        self._changes = bool(self._guide or how.logit_bias or how.repetition_penalty != 1.0)
        self.plain = how.temperature == 0 and not self._changes

    def distribution(self, logits_V: Tensor) -> Tensor:
        """Log-probabilities (V,), fp32 on the CPU, of the distribution that the next token is drawn from.

        Greedy: the likeliest token is taken, and this is the distribution after constraint, bias and penalty, with
        temperature 1 and nothing cut off. Raises `InputError` if there is none (NaN, or nothing left).
        """
        row = self._row(_host(logits_V), None)
        if row.broken:
            raise InputError("the logits hold NaN or infinity, or the constraint leaves no token")
        if self.how.temperature == 0:
            return torch.from_numpy(row.x_V - np.float32(row.high + math.log(row.total)))
        return torch.from_numpy(distribution(row, self.how))

    def accept(self, token: int) -> None:
        """`token` was chosen. (`choose` has said so already for the tokens that it returns.)"""
        self._place += 1
        if self.how.repetition_penalty != 1.0:
            self._see((token,))
        if self._guide is not None and token not in self.stop_ids:
            self._guide.accept(token)

    def pick(self, raw: Row) -> tuple[int, float]:
        """The next token and its log-probability; -1 if there is none. Raises `InputError` if the constraint gives up."""
        row = self._row(raw.x_V, raw)
        if row.broken:
            return -1, math.nan
        if self.how.temperature == 0:
            return int(row.x_V.argmax()), -math.log(row.total)
        return draw(row, self.how, self._uniform())

    def _row(self, x_V: Floats, raw: Row | None) -> Row:
        """The logits after constraint, bias and penalty."""
        if not self._changes:
            return raw or Row.of(x_V)
        x_V = x_V.copy() if self._guide is None else np.where(self._guide.allowed(self.stop_ids), x_V, -np.inf)
        ids, values = self._bias
        x_V[ids] += values
        penalty = np.float32(self.how.repetition_penalty)
        if self._seen:  # arXiv 1909.05858, as `transformers` extends it to logits of both signs
            ids = np.frombuffer(self._seen_ids, np.int64)
            seen = x_V[ids]
            x_V[ids] = np.where(seen < 0, seen * penalty, seen / penalty)
        return Row.of(x_V)

    def _see(self, tokens: Sequence[int]) -> None:
        fresh = set(tokens) - self._seen
        self._seen |= fresh
        self._seen_ids.extend(fresh)

    def _uniform(self) -> float:
        """A number from [0, 1) with 53 random bits."""
        digest = hashlib.blake2b(self._place.to_bytes(8, "little"), key=self._key, digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def choose(logits_RV: Tensor, spans: Sequence[tuple[Sampler, tuple[int, ...]]]) -> list[list[Choice]]:
    """The next tokens of sequences: those of each one's draft that stand, and one more.

    A sequence has a row of logits for each drafted token and one behind them. The token of every row is chosen as if there
    were no draft, and the draft stands as long as it says the same. For a deterministic draft that is the rule of
    speculative sampling (arXiv 2211.17192): d is kept with probability p(d), and given that it is not, the token is
    distributed as p without d. So speculation changes no answer, sampled ones included. Nothing is chosen behind a stop token.
    The samplers have accepted what is returned.
    """
    tokens_R, logprobs_R, highs_R = _likeliest(logits_RV)
    chosen, start = [], 0
    for sampler, draft in spans:
        choices: list[Choice] = []
        for place in range(start, start + len(draft) + 1):
            choice = _choice(sampler, logits_RV[place], tokens_R[place], logprobs_R[place], highs_R[place])
            choices.append(choice)
            if choice.token < 0:
                break
            sampler.accept(choice.token)
            at = place - start
            if at == len(draft) or choice.token != draft[at] or choice.token in sampler.stop_ids:
                break
        chosen.append(choices)
        start += len(draft) + 1
    return chosen


def _choice(sampler: Sampler, logits_V: Tensor, likeliest: int, logprob: float, high: float) -> Choice:
    if not (math.isfinite(logprob) and math.isfinite(high)):
        return Choice(-1, math.nan, math.nan)
    top = _top(logits_V, sampler.how.top_logprobs, high - logprob) if sampler.how.top_logprobs else ()
    if sampler.plain:
        return Choice(likeliest, logprob, logprob, top)
    raw = Row(_host(logits_V), high, math.exp(-logprob))
    try:
        token, own = sampler.pick(raw)
    except InputError as error:
        return Choice(-1, math.nan, math.nan, error=str(error))
    if token < 0:
        return Choice(-1, math.nan, math.nan, error="the constraint leaves no token that the model can choose")
    return Choice(token, own, float(raw.x_V[token]) - high + logprob, top)


def _likeliest(logits_RV: Tensor) -> tuple[list[int], list[float], list[float]]:
    """Each row's likeliest token, its log-probability and its logit."""
    native = kernels_for(logits_RV)
    if native is not None:
        token_R, logprob_R = native.greedy(logits_RV)
    else:  # one fused pass, then `max`, which on a CPU is three times as fast as argmax
        logprob_R, token_R = torch.log_softmax(logits_RV, -1, dtype=torch.float32).max(-1)
    high_R = logits_RV.gather(1, token_R[:, None])[:, 0].float()
    return token_R.tolist(), logprob_R.tolist(), high_R.tolist()


def _top(logits_V: Tensor, count: int, log_total: float) -> tuple[tuple[int, float], ...]:
    """The `count` likeliest tokens with their log-probabilities."""
    best = logits_V.float().topk(min(count, len(logits_V)))
    return tuple(zip(best.indices.tolist(), (best.values - log_total).tolist(), strict=True))


def _host(logits_V: Tensor) -> Floats:
    """The row in fp32. Single-threaded on purpose: between two kernels torch's threads cost more to wake than they save."""
    row = logits_V.detach().cpu()
    if row.dtype == torch.bfloat16:
        halves = row.contiguous().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
        return np.left_shift(halves, 16, out=halves).view(np.float32)
    found: Floats = row.float().numpy()
    return found
