"""Cross-entropy as a sum over tokens, scaled by a count that the caller knows globally.

Shapes: T tokens, N tokens of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE = -100
_CHUNK_BYTES = 256 * 2**20  # fp32 logits held at once


class _LinearCrossEntropy(torch.autograd.Function):
    """Head and cross-entropy in one: gradients are formed chunk by chunk while the logits are at hand, so the full
    (T, V) logits never exist and nothing is computed twice."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, scale: float) -> Tensor:
        wants_head = ctx.needs_input_grad[1]
        hidden_grad = torch.zeros_like(hidden_TD)
        head_grad = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_TD.device)
        kept_T = (labels_T != IGNORE).nonzero()[:, 0]
        for rows in kept_T.split(max(1, _CHUNK_BYTES // (4 * head_VD.shape[0]))):
            hidden_ND, labels_N1 = hidden_TD[rows], labels_T[rows, None]
            logprob_NV = torch.log_softmax(hidden_ND @ head_VD.t(), -1, dtype=torch.float32)
            total -= logprob_NV.gather(1, labels_N1).sum()
            grad_NV = logprob_NV.exp_()
            grad_NV.scatter_add_(1, labels_N1, grad_NV.new_full((len(rows), 1), -1.0))
            grad_NV = grad_NV.mul_(scale).to(hidden_TD.dtype)
            hidden_grad[rows] = grad_NV @ head_VD
            if head_grad is not None:
                head_grad += grad_NV.t() @ hidden_ND
        ctx.save_for_backward(hidden_grad, head_grad.to(head_VD.dtype) if head_grad is not None else None)
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_grad, head_grad = ctx.saved_tensors
        return hidden_grad * grads[0], None if head_grad is None else head_grad * grads[0], None, None


def linear_cross_entropy(hidden_TD: Tensor, head_VD: Tensor, labels_T: Tensor, scale: float = 1.0) -> Tensor:
    """`scale` times the sum of -log p(label) over the tokens whose label is not `IGNORE`; a scalar in fp32.

    Pass `scale` = 1 / (number of trained tokens in the whole step): then any split into micro-batches or ranks gives the
    same loss and gradient.
    """
    result: Tensor = _LinearCrossEntropy.apply(hidden_TD, head_VD, labels_T, scale)
    return result


def next_token_labels(ids_T: Tensor, lengths: list[int]) -> Tensor:
    """The label of a token is the one after it; the last of each document has none."""
    labels_T = torch.full_like(ids_T, IGNORE)
    labels_T[:-1] = ids_T[1:]
    ends = torch.tensor(lengths, device=ids_T.device).cumsum(0) - 1
    labels_T[ends] = IGNORE
    return labels_T
