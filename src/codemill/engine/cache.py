"""The key-value cache, and attention through it.

Shapes: B slots, T tokens, G key-value heads, H query heads, S cached positions, K head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.models.config import DecoderConfig
from codemill.models.decoder import PackedAttention, turned
from codemill.models.native import handles_heads, kernels_for


class KVCache:
    """Keys and values of `slots` sequences of up to `positions` tokens each; sequences in use fill the first slots."""

    def __init__(
        self, config: DecoderConfig, slots: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (2, config.layers, slots, positions, config.kv_heads, config.head_dim)
        self.store_2LBSGK = torch.zeros(shape, dtype=dtype, device=device)
        self.slots, self.positions = slots, positions
        # Views of the store by layer: with positions, and with slots and positions as one row index.
        self.layers_2BSGK = [(keys, values) for keys, values in zip(*self.store_2LBSGK, strict=True)]
        self.rows_2RGK = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in self.layers_2BSGK]
        self.lengths: list[int] = []  # tokens held by each slot in use

    def release(self, slot: int) -> int:
        """Free a slot; the last slot in use moves into it. Returns the slot that moved (`slot` itself if it was last)."""
        last = len(self.lengths) - 1
        if slot != last:
            length = self.lengths[last]
            self.store_2LBSGK[:, :, slot, :length] = self.store_2LBSGK[:, :, last, :length]
            self.lengths[slot] = length
        self.lengths.pop()
        return last


class Prefill(PackedAttention):
    """Attention over whole new prompts, packed one after the other; keys and values are kept in the given slots."""

    def __init__(self, cache: KVCache, slots: Sequence[int], lengths: Sequence[int]) -> None:
        super().__init__(lengths)
        self.cache, self.slots, self.lengths = cache, slots, lengths

    def __call__(self, layer: int, qkv_TXK: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> Tensor:
        q_THK, k_TGK, v_TGK = turned(qkv_TXK, tables, heads)
        keys_BSGK, values_BSGK = self.cache.layers_2BSGK[layer]
        start = 0
        for slot, length in zip(self.slots, self.lengths, strict=True):
            keys_BSGK[slot, :length] = k_TGK[start : start + length]
            values_BSGK[slot, :length] = v_TGK[start : start + length]
            start += length
        return self.mix(q_THK, k_TGK, v_TGK)


class Decode:
    """Attention of one new token per slot over everything its slot holds.

    The query heads that share a key-value head are handled as rows of one query, so keys and values are read once.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        lengths_B = torch.tensor(cache.lengths, device=cache.store_2LBSGK.device)
        self.rows_B = torch.arange(len(cache.lengths), device=lengths_B.device) * cache.positions + lengths_B
        self.positions_B = lengths_B  # the new token's position is the number of tokens before it
        self.used = int(lengths_B.max()) + 1
        seen = torch.arange(self.used, device=lengths_B.device) <= lengths_B[:, None]
        even = min(cache.lengths) == max(cache.lengths)
        # Added to the scores: a mask of booleans would be turned into one of numbers again in every layer.
        hidden = torch.zeros(seen.shape, dtype=cache.store_2LBSGK.dtype, device=seen.device).masked_fill_(
            ~seen, float("-inf")
        )
        self.mask_B11S = None if even else hidden[:, None, None, :]

    def __call__(self, layer: int, qkv_BXK: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> Tensor:
        groups = (qkv_BXK.shape[1] - heads) // 2
        native = kernels_for(qkv_BXK)
        if native is not None and handles_heads(heads, groups, qkv_BXK.shape[2]):
            keys, values = self.cache.layers_2BSGK[layer]
            return native.decode_attention(qkv_BXK, tables, keys, values, self.positions_B, heads)
        return self._mix(layer, *turned(qkv_BXK, tables, heads))

    def _mix(self, layer: int, q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor) -> Tensor:
        for rows_RGK, new_BGK in zip(self.cache.rows_2RGK[layer], (k_BGK, v_BGK), strict=True):
            rows_RGK.index_copy_(0, self.rows_B, new_BGK)
        batch, used = len(self.rows_B), self.used
        keys_BGSK, values_BGSK = (x[:batch, :used].transpose(1, 2) for x in self.cache.layers_2BSGK[layer])
        q_BGRK = q_BHK.unflatten(1, (k_BGK.shape[1], -1))
        out = F.scaled_dot_product_attention(q_BGRK, keys_BGSK, values_BGSK, self.mask_B11S)
        return out.flatten(1, 2)
