"""The key-value cache, and attention through it.

Shapes: B slots, T tokens, G key-value heads, H query heads, S cached positions, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.models.config import DecoderConfig
from codemill.models.decoder import PackedAttention


class KVCache:
    """Keys and values of `slots` sequences of up to `positions` tokens each; sequences in use fill the first slots."""

    def __init__(
        self, config: DecoderConfig, slots: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.layers, slots, positions, config.kv_heads, config.head_dim)
        self.keys_LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths: list[int] = []  # tokens held by each slot in use

    @property
    def positions(self) -> int:
        return self.keys_LBSGK.shape[2]

    def release(self, slot: int) -> int:
        """Free a slot; the last slot in use moves into it. Returns the slot that moved (`slot` itself if it was last)."""
        last = len(self.lengths) - 1
        if slot != last:
            length = self.lengths[last]
            self.keys_LBSGK[:, slot, :length] = self.keys_LBSGK[:, last, :length]
            self.values_LBSGK[:, slot, :length] = self.values_LBSGK[:, last, :length]
            self.lengths[slot] = length
        self.lengths.pop()
        return last


class Prefill(PackedAttention):
    """Attention over whole new prompts, packed one after the other; keys and values are kept in the given slots."""

    def __init__(self, cache: KVCache, slots: Sequence[int], lengths: Sequence[int]) -> None:
        super().__init__(lengths)
        self.cache, self.slots, self.lengths = cache, slots, lengths

    def __call__(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        start = 0
        for slot, length in zip(self.slots, self.lengths, strict=True):
            self.cache.keys_LBSGK[layer, slot, :length] = k_TGK[start : start + length]
            self.cache.values_LBSGK[layer, slot, :length] = v_TGK[start : start + length]
            start += length
        return super().__call__(layer, q_THK, k_TGK, v_TGK)


class Decode:
    """Attention of one new token per slot over everything its slot holds.

    The query heads that share a key-value head are handled as rows of one query, so keys and values are read once.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        lengths_B = torch.tensor(cache.lengths, device=cache.keys_LBSGK.device)
        self.rows_B = torch.arange(len(cache.lengths), device=lengths_B.device) * cache.positions + lengths_B
        self.positions_B = lengths_B  # the new token's position is the number of tokens before it
        self.used = int(lengths_B.max()) + 1
        seen = torch.arange(self.used, device=lengths_B.device) <= lengths_B[:, None]
        even = min(cache.lengths) == max(cache.lengths)
        # Added to the scores: a mask of booleans would be turned into one of numbers again in every layer.
        hidden = torch.zeros(seen.shape, dtype=cache.keys_LBSGK.dtype, device=seen.device).masked_fill_(
            ~seen, float("-inf")
        )
        self.mask_B11S = None if even else hidden[:, None, None, :]

    def __call__(self, layer: int, q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor) -> Tensor:
        batch, used = len(self.rows_B), self.used
        seen = []
        for store_BSGK, new_BGK in (
            (self.cache.keys_LBSGK[layer], k_BGK),
            (self.cache.values_LBSGK[layer], v_BGK),
        ):
            store_BSGK.flatten(0, 1).index_copy_(0, self.rows_B, new_BGK)
            seen.append(store_BSGK[:batch, :used].transpose(1, 2))
        q_BGRK = q_BHK.unflatten(1, (k_BGK.shape[1], -1))
        out = F.scaled_dot_product_attention(q_BGRK, seen[0], seen[1], self.mask_B11S)
        return out.flatten(1, 2)
