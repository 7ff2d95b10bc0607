"""Low-rank adapters (arXiv 2106.09685): W x becomes W x + (alpha / rank) B A x, with W frozen."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemill.models.decoder import Decoder, Linear

TARGETS = ("qkv", "out", "gate_up", "down")


class LoRALinear(nn.Module):
    """A frozen linear map with a trained low-rank correction. `a` is (rank, inputs), `b` (outputs, rank), both fp32."""

    def __init__(self, base: Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        bound = 1 / math.sqrt(base.in_features)
        a = (torch.rand(rank, base.in_features, generator=generator) * 2 - 1) * bound
        self.a = nn.Parameter(a.to(base.weight.device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))  # starts as no change

    def forward(self, x: Tensor) -> Tensor:
        down = F.linear(x, self.a.to(x.dtype))
        out: Tensor = self.base(x) + F.linear(down, (self.b * self.scale).to(x.dtype))
        return out

    def add_to(self, x: Tensor, inputs: Tensor) -> Tensor:
        """x + self(inputs)."""
        out: Tensor = x + self(inputs)
        return out

    @torch.no_grad()
    def merged(self) -> Linear:
        """The base map with the correction added in fp32 and rounded once."""
        delta = (self.b * self.scale) @ self.a
        self.base.weight.copy_(self.base.weight.float() + delta)
        return self.base


def add_lora(decoder: Decoder, *, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Freeze the decoder, put an adapter on every projection of every block, and return what is to be trained."""
    decoder.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    trained: list[nn.Parameter] = []
    for block in decoder.blocks:
        for name in TARGETS:
            adapter = LoRALinear(getattr(block, name), rank, alpha, generator)
            setattr(block, name, adapter)
            trained += [adapter.a, adapter.b]
    return trained


def merge_lora(decoder: Decoder) -> Decoder:
    """Fold every adapter into its base weight and remove it."""
    for block in decoder.blocks:
        for name in TARGETS:
            layer = getattr(block, name)
            if isinstance(layer, LoRALinear):
                setattr(block, name, layer.merged())
    return decoder
