"""What a training run will cost, before it starts."""

from __future__ import annotations

from typing import Literal

from codemill.models.config import DecoderConfig


def training_flops(active_parameters: int, tokens: int, method: Literal["lora", "full"]) -> float:
    """Floating-point operations: 6 N T when all weights are trained, 4 N T when frozen ones get no gradient.

    The attention products, which grow with the length of a document, are left out (arXiv 2001.08361, section 2.1).
    """
    return (6.0 if method == "full" else 4.0) * active_parameters * tokens


def adapter_parameters(sizes: DecoderConfig, rank: int) -> int:
    """Parameters of adapters of that rank on every projection of every block."""
    heads = sizes.heads * sizes.head_dim
    widths = (
        (sizes.hidden_size, sizes.qkv_size),
        (heads, sizes.hidden_size),
        (sizes.hidden_size, 2 * sizes.mlp_size),
        (sizes.mlp_size, sizes.hidden_size),
    )
    return sizes.layers * rank * sum(inputs + outputs for inputs, outputs in widths)


def training_bytes(sizes: DecoderConfig, trained: int, micro_tokens: int) -> int:
    """A rough peak of memory: bf16 weights; gradient, fp32 master and two moments of what is trained; the activations of
    a micro-batch; the logits held at once; the interpreter and torch."""
    activations = micro_tokens * sizes.layers * (10 * sizes.hidden_size + 2 * sizes.qkv_size + 5 * sizes.mlp_size) * 2
    return 2 * sizes.parameters + 16 * trained + activations + 3 * 256 * 2**20 + 2**30
