"""From logits to tokens and their log-probabilities.

Shapes: B sequences, V vocabulary.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from codemill.core.contracts import Sampling
from codemill.core.errors import InputError
from codemill.models.native import kernels_for


def check_sampling(sampling: Sampling, where: str) -> None:
    """Raise `InputError` for values that make no sense."""
    for name, good in (
        ("max_tokens", sampling.max_tokens >= 1),
        ("temperature", 0.0 <= sampling.temperature < float("inf")),
        ("top_k", sampling.top_k >= 0),
        ("top_p", 0.0 < sampling.top_p <= 1.0),
        ("stop", all(sampling.stop)),
    ):
        if not good:
            raise InputError(f"{where}: sampling {name} = {getattr(sampling, name)!r} is not allowed")


def generator_for(sampling: Sampling, request_id: str) -> torch.Generator:
    """The random stream of one request: depends on its seed and id only, never on what else is in the batch."""
    digest = hashlib.blake2b(f"{sampling.seed}:{request_id}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def sample(
    logits_BV: Tensor, sampling: list[Sampling], generators: list[torch.Generator]
) -> tuple[list[int], list[float]]:
    """One token per row and its log-probability in the distribution it was drawn from (greedy: the raw distribution)."""
    native = kernels_for(logits_BV)
    if native is not None:
        token_B, logprob_B = native.greedy(logits_BV)
    else:  # one fused pass, then `max`, which on a CPU is three times as fast as argmax
        logprob_B, token_B = torch.log_softmax(logits_BV, -1, dtype=torch.float32).max(-1)
    tokens, logprobs = token_B.tolist(), logprob_B.tolist()
    for row, how in enumerate(sampling):
        if how.temperature > 0:
            tokens[row], logprobs[row] = _draw(logits_BV[row].float(), how, generators[row])
    return tokens, logprobs


def _draw(logits_V: Tensor, how: Sampling, generator: torch.Generator) -> tuple[int, float]:
    logprobs_V = truncated(logits_V / how.temperature, how).log_softmax(-1).cpu()
    token = int(torch.multinomial(logprobs_V.exp(), 1, generator=generator))
    return token, float(logprobs_V[token])


def truncated(logits_V: Tensor, how: Sampling) -> Tensor:
    """Logits with everything outside top-k, then outside the smallest set of mass top-p (arXiv 1904.09751), at -inf."""
    if 0 < how.top_k < logits_V.numel():
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(how.top_k).values[-1], float("-inf"))
    if how.top_p < 1.0:
        ordered, index = logits_V.sort(descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= how.top_p  # the token that crosses the border stays
        logits_V = logits_V.index_fill(0, index[outside], float("-inf"))
    return logits_V
