"""Attention through blocks against attention over the whole sequence."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from codemill.core.errors import ConfigError
from codemill.engine.cache import KVCache, Paged, block_bytes, blocks_for_memory
from codemill.models.config import DecoderConfig
from codemill.models.decoder import PackedAttention
from codemill.models.kernels import rope_tables

CONFIG = DecoderConfig(
    family="llama", vocab_size=10, hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_size=8,
    rope_theta=1e4, norm_eps=1e-5, max_positions=64, tied_head=True, qkv_bias=False,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(12))
@torch.inference_mode()
def test_any_cut_into_runs_gives_what_whole_sequences_give(seed: int) -> None:
    """Random sequences, cut at random, every cut of several sequences in one call, blocks in random places."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    lengths = [chance.randint(1, 60) for _ in range(4)]
    streams = [torch.randn(length, 8, 8) for length in lengths]
    expected = [PackedAttention([n])(0, s, tables_of(np.arange(n)), 4) for n, s in zip(lengths, streams, strict=True)]
    cache = KVCache(CONFIG, 80, torch.float32, CPU, block_tokens=4)
    table = np.zeros((4, 17), np.int32)
    free = chance.sample(range(1, 80), 79)
    done = [0] * 4
    for row, length in enumerate(lengths):
        used = -(-length // 4)
        table[row, :used] = [free.pop() for _ in range(used)]
    while any(a < b for a, b in zip(done, lengths, strict=True)):
        rows = [r for r in range(4) if done[r] < lengths[r] and chance.random() < 0.7]
        if not rows:
            continue
        counts = [min(chance.choice([1, 1, 2, 3, 40]), lengths[r] - done[r]) for r in rows]
        attend = Paged(cache, table[rows], np.array([done[r] for r in rows]), np.array(counts))
        new = torch.cat([streams[r][done[r] : done[r] + n] for r, n in zip(rows, counts, strict=True)])
        positions = np.concatenate([np.arange(done[r], done[r] + n) for r, n in zip(rows, counts, strict=True)])
        assert attend.positions_T.tolist() == positions.tolist()
        got = attend(1, new, tables_of(positions), 4)
        for r, out, n in zip(rows, got.split(counts), counts, strict=True):
            torch.testing.assert_close(out, expected[r][done[r] : done[r] + n], rtol=1e-5, atol=1e-5)
            done[r] += n
    assert not cache.store_2LNCGK[:, :, 0].any(), "the null block stays zero"
    assert not cache.store_2LNCGK[:, 0].any(), "nor are other layers touched"


def tables_of(positions: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return rope_tables(torch.from_numpy(positions), 8, 1e4, torch.float32)


@torch.inference_mode()
def test_copies_and_clears_whole_blocks() -> None:
    cache = KVCache(CONFIG, 6, torch.float32, CPU, block_tokens=4)
    cache.store_2LNCGK[:, :, 2] = torch.randn(2, 2, 4, 2, 8)
    cache.copy(2, [3, 5])
    for block in (3, 5):
        assert torch.equal(cache.store_2LNCGK[:, :, block], cache.store_2LNCGK[:, :, 2])
    cache.clear([2, 5])
    assert cache.store_2LNCGK[:, :, 3].any()
    assert not cache.store_2LNCGK[:, :, [0, 1, 2, 4, 5]].any()


def test_memory_is_bounded() -> None:
    size = block_bytes(CONFIG, torch.float32, 4)
    assert size == 2 * 2 * 4 * 2 * 8 * 4
    for bytes_given, blocks in ((10 * size, 10), (1 << 40, 4 * 16 + 1), (0, 4 * 16 + 1)):
        found = blocks_for_memory(CONFIG, torch.float32, CPU, max_batch=4, kv_bytes=bytes_given, block_tokens=4)
        assert found == blocks
    big = replace(CONFIG, max_positions=1 << 30)
    assert 1 < blocks_for_memory(big, torch.float32, CPU, max_batch=4) <= (2 << 30) // block_bytes(big, torch.float32)
    with pytest.raises(ConfigError, match="kv_bytes 100"):
        blocks_for_memory(CONFIG, torch.float32, CPU, max_batch=4, kv_bytes=100)
