"""The key-value cache in blocks, and attention through it.

A sequence's keys and values lie in blocks of `block_tokens` positions anywhere in one store; its row of the block table says
where ("PagedAttention", arXiv 2309.06180). One forward takes any mix of runs: a run is the next few tokens of a sequence
that has so many already in the cache.

Shapes: T tokens, R runs, N blocks, C tokens of a block, M blocks of a table row, L layers, G key-value heads, H query heads,
K head size, S positions, D new tokens of each run of a group.
"""

from __future__ import annotations

import mmap
import os
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codemill.core.errors import ConfigError
from codemill.models.config import DecoderConfig
from codemill.models.decoder import PackedAttention, turned
from codemill.models.native import BLOCK_TOKENS, Runs

_MOST_BYTES = 2 << 30
_GROUPED_TOKENS = 32  # runs of up to so many new tokens share one kernel call with others of their length


class KVCache:
    """Keys and values of `blocks` blocks, of zeros at first. On a CPU memory is taken from the system when a block is first
    written. How a block is laid out inside is up to whoever runs the forward, our own kernels or torch; never both."""

    def __init__(
        self,
        config: DecoderConfig,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        block_tokens: int = BLOCK_TOKENS,
    ) -> None:
        shape = (2, config.layers, blocks, block_tokens, config.kv_heads, config.head_dim)
        self.store_2LNCGK = _zeros(shape, dtype, device)
        self.blocks, self.block_tokens = blocks, block_tokens
        self.layers_2NCGK = list(zip(*self.store_2LNCGK, strict=True))
        self._rows_2SGK = [(keys.flatten(0, 1), values.flatten(0, 1)) for keys, values in self.layers_2NCGK]

    def write(self, layer: int, at_T: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> None:
        """Put keys and values of T tokens at their places, counted in positions over the whole store."""
        for rows_SGK, new_TGK in zip(self._rows_2SGK[layer], (k_TGK, v_TGK), strict=True):
            rows_SGK.index_copy_(0, at_T, new_TGK)

    def copy(self, source: int, targets: list[int]) -> None:
        """Copy one block into others."""
        self.store_2LNCGK[:, :, targets] = self.store_2LNCGK[:, :, source, None]

    def clear(self, blocks: list[int]) -> None:
        """Fill blocks with zeros: a NaN left behind would reach others through masked positions."""
        self.store_2LNCGK[:, :, blocks] = 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Anonymous memory is zero and costs nothing until it is touched; `torch.zeros` would write all of it.
    memory = mmap.mmap(-1, int(np.prod(shape)) * dtype.itemsize)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def block_bytes(config: DecoderConfig, dtype: torch.dtype, block_tokens: int = BLOCK_TOKENS) -> int:
    """Bytes of one block over all layers."""
    return block_tokens * config.layers * 2 * config.kv_heads * config.head_dim * dtype.itemsize


def blocks_for_memory(
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_batch: int,
    kv_bytes: int = 0,
    block_tokens: int = BLOCK_TOKENS,
) -> int:
    """How many blocks a cache of `kv_bytes` has, the null block among them.

    0 bytes: what `max_batch` sequences of full length need, but at most 2 GiB and half of the memory that is free now.
    Raises `ConfigError` if not one block fits.
    """
    size = block_bytes(config, dtype, block_tokens)
    needed = max_batch * -(-config.max_positions // block_tokens) + 1
    if kv_bytes:
        blocks = min(kv_bytes // size, needed)
    else:
        blocks = min(needed, min(_MOST_BYTES, _free_bytes(device) // 2) // size)
    if blocks < 2:
        raise ConfigError(
            f"kv_bytes {kv_bytes:,} is too little: a block of the key-value cache takes {size:,}, give two"
        )
    return blocks


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


class Paged:
    """Attention of one forward over runs: run r is `counts` new tokens behind `past` cached ones, R of them in the stream.

    `table_RM` names each run's blocks, those of its new tokens among them; behind them stands the null block. New keys and
    values are written first, then each token sees all of its past and its run up to itself.
    """

    def __init__(self, cache: KVCache, table_RM: np.ndarray, past_R: np.ndarray, counts_R: np.ndarray) -> None:
        self.cache = cache
        self._table_RM, self._past_R, self._counts_R = np.ascontiguousarray(table_RM), past_R, counts_R
        self._starts_R1 = np.concatenate((np.zeros(1, np.int64), counts_R.cumsum()))
        self._positions_T = past_R
        if self._starts_R1[-1] != len(counts_R):
            offsets_R = past_R - self._starts_R1[:-1]
            self._positions_T = np.arange(self._starts_R1[-1]) + offsets_R.repeat(counts_R)
        self.positions_T = torch.from_numpy(self._positions_T).to(cache.store_2LNCGK.device)

    def runs(self, config: DecoderConfig) -> Runs:
        """The same for our own kernels, which do all layers in one call."""
        tables, past, starts = map(torch.from_numpy, (self._table_RM, self._past_R, self._starts_R1))
        return Runs(tables, past, starts, *self.cache.store_2LNCGK)

    def __call__(self, layer: int, qkv_TXK: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> Tensor:
        q_THK, k_TGK, v_TGK = turned(qkv_TXK, tables, heads)
        self.cache.write(layer, self._places_T, k_TGK, v_TGK)
        outputs = [part.mix(layer, q_THK, k_TGK, v_TGK) for part in self._parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @cached_property
    def _places_T(self) -> Tensor:
        """Where in the store each new token goes."""
        run_T = np.arange(len(self._counts_R)).repeat(self._counts_R)
        size = self.cache.block_tokens
        blocks_T = self._table_RM[run_T, self._positions_T // size].astype(np.int64)
        return torch.from_numpy(blocks_T * size + self._positions_T % size).to(self.positions_T.device)

    @cached_property
    def _parts(self) -> list[_Fresh | _Grouped]:
        """The stream cut into stretches that one kernel call each can do: whole beginnings, and runs of one length."""
        parts: list[_Fresh | _Grouped] = []
        first, runs = 0, len(self._counts_R)
        while first < runs:
            fresh, count = self._past_R[first] == 0, self._counts_R[first]
            last = first + 1
            while (
                last < runs
                and (self._past_R[last] == 0) == fresh
                and (fresh or self._counts_R[last] == count <= _GROUPED_TOKENS)
            ):
                last += 1
            rows = slice(int(self._starts_R1[first]), int(self._starts_R1[last]))
            if fresh:
                parts.append(_Fresh(rows, self._counts_R[first:last].tolist()))
            else:
                parts.append(
                    _Grouped(self.cache, rows, self._table_RM[first:last], self._past_R[first:last], int(count))
                )
            first = last
        return parts


class _Fresh:
    """Runs that begin their sequences: nothing is read from the cache."""

    def __init__(self, rows: slice, lengths: list[int]) -> None:
        self._rows, self._attention = rows, PackedAttention(lengths)

    def mix(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        return self._attention.mix(q_THK[self._rows], k_TGK[self._rows], v_TGK[self._rows])


class _Grouped:
    """Runs of one length with a past, padded to the longest past; their blocks are gathered and masked."""

    def __init__(self, cache: KVCache, rows: slice, table_RM: np.ndarray, past_R: np.ndarray, count: int) -> None:
        self._cache, self._rows, self._count = cache, rows, count
        device, dtype = cache.store_2LNCGK.device, cache.store_2LNCGK.dtype
        used = -(-int(past_R.max() + count) // cache.block_tokens)
        self._blocks_RM = torch.from_numpy(table_RM[:, :used].astype(np.int64)).to(device)
        ends_RD = torch.from_numpy(past_R[:, None] + np.arange(count)).to(device)
        hidden_RDS = torch.arange(used * cache.block_tokens, device=device) > ends_RD[..., None]
        self._mask_R1DS = torch.zeros(hidden_RDS.shape, dtype=dtype, device=device).masked_fill_(
            hidden_RDS, -torch.inf
        )[:, None]

    def mix(self, layer: int, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        keys, values = (x[self._blocks_RM].flatten(1, 2).transpose(1, 2) for x in self._cache.layers_2NCGK[layer])
        q_RDHK = q_THK[self._rows].unflatten(0, (-1, self._count))
        if self._count > 1:
            out = F.scaled_dot_product_attention(
                q_RDHK.transpose(1, 2), keys, values, self._mask_R1DS, enable_gqa=keys.shape[1] != q_RDHK.shape[2]
            )
            return out.transpose(1, 2).flatten(0, 1)
        # The query heads that share a key-value head are rows of one query, so keys and values are read once.
        q_RGxK = q_RDHK[:, 0].unflatten(1, (keys.shape[1], -1))
        return F.scaled_dot_product_attention(q_RGxK, keys, values, self._mask_R1DS).flatten(1, 2)
