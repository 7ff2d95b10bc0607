"""Our kernels against torch's operations in fp32, on sizes of both models and on awkward ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from codemill.engine.cache import Decode, KVCache
from codemill.models import native
from codemill.models.config import read_config
from codemill.models.kernels import rms_norm, rope_tables, swiglu
from tiny import tiny_checkpoint

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: torch's operations are used")


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def kernels() -> native.NativeKernels:
    found = native.native_kernels()
    assert found is not None
    return found


@pytest.mark.parametrize(("rows", "width"), [(1, 576), (32, 896), (3, 7), (700, 576)])
def test_rms_norm(rows: int, width: int) -> None:
    x, weight = torch.randn(rows, width).bfloat16(), torch.randn(width).bfloat16()
    expected = torch.nn.functional.rms_norm(x.float(), (width,), None, 1e-5) * weight.float()
    torch.testing.assert_close(kernels().rms_norm(x, weight, 1e-5).float(), expected, rtol=1.2e-2, atol=1e-6)


@pytest.mark.parametrize(("rows", "width"), [(1, 1536), (32, 4864), (5, 3)])
def test_swiglu(rows: int, width: int) -> None:
    x = 30 * torch.randn(rows, 2 * width).bfloat16()
    gate, up = x.float().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(kernels().swiglu(x).float(), expected, rtol=4e-3, atol=1e-30)


@pytest.mark.parametrize(("heads", "groups", "size"), [(9, 3, 64), (14, 2, 64), (4, 4, 128), (16, 1, 64)])
def test_decode_attention(heads: int, groups: int, size: int) -> None:
    batch, positions = 5, 40
    lengths = torch.tensor([0, 3, 39, 17, 1])
    keys, values = (torch.randn(batch, positions, groups, size).bfloat16() for _ in range(2))
    qkv = torch.randn(batch, heads + 2 * groups, size).bfloat16()
    cosines, sines = rope_tables(lengths, size, 10_000.0, torch.bfloat16)
    old = keys.clone(), values.clone()
    out = kernels().decode_attention(qkv, (cosines, sines), keys, values, lengths, heads)

    half = size // 2
    c, s, q_k = cosines.float()[..., :half], sines.float(), qkv[:, : heads + groups].float()
    first, second = q_k[..., :half], q_k[..., half:]
    turned = torch.cat((first * c - second * s, second * c + first * s), -1)
    for b, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(keys[b, length].float(), turned[b, heads:], rtol=4e-3, atol=1e-6)
        assert torch.equal(values[b, length], qkv[b, heads + groups :])
        untouched = torch.arange(positions) != length
        assert torch.equal(keys[b, untouched], old[0][b, untouched])
        assert torch.equal(values[b, untouched], old[1][b, untouched])
        seen_k, seen_v = (x[b, : length + 1].float().repeat_interleave(heads // groups, 1) for x in (keys, values))
        weights = (torch.einsum("hk,shk->hs", turned[b, :heads], seen_k) / size**0.5).softmax(-1)
        expected = torch.einsum("hs,shk->hk", weights, seen_v)
        torch.testing.assert_close(out[b].float(), expected, rtol=1e-2, atol=5e-3)


def test_greedy_takes_the_first_of_equals_and_survives_nan() -> None:
    logits = torch.randn(4, 1003).bfloat16()
    logits[1, 7] = logits[1, 900] = 9.0
    logits[2] = 0.0
    logits[3, 5] = float("nan")
    ids, logprobs = kernels().greedy(logits)
    expected = logits.float().log_softmax(-1)
    assert ids[:3].tolist() == [int(logits[0].float().argmax()), 7, 0]
    torch.testing.assert_close(logprobs[:3], expected[:3].max(-1).values, rtol=1e-5, atol=1e-5)
    assert 0 <= int(ids[3]) < 1003
    assert logprobs[3].isnan()


def test_extremes() -> None:
    x = torch.tensor([[3e38, -3e38, 1e-40, 0.0, float("inf"), float("nan"), -100.0, 2.0]]).bfloat16()
    ones = torch.ones_like(x)
    mine, theirs = kernels().swiglu(torch.cat((x, ones), -1)).float(), torch.nn.functional.silu(x.float())
    torch.testing.assert_close(mine, theirs, rtol=4e-3, atol=1e-38, equal_nan=True)


def test_torch_does_it_where_the_kernels_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same results with and without a compiler, up to rounding."""
    x, weight = torch.randn(4, 64).bfloat16(), torch.ones(64).bfloat16()
    mine = rms_norm(x, weight, 1e-5), swiglu(x)
    monkeypatch.setattr(native, "native_kernels", lambda: None)
    for ours, theirs in zip(mine, (rms_norm(x, weight, 1e-5), swiglu(x)), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2e-2, atol=1e-2)


def test_sizes_without_a_kernel_use_torch(tmp_path: Path) -> None:
    config = read_config(tiny_checkpoint(tmp_path))
    assert not native.handles_heads(config.heads, config.kv_heads, config.head_dim)
    cache = KVCache(config, 2, 8, torch.bfloat16, torch.device("cpu"))
    cache.lengths = [0, 2]
    attend = Decode(cache)
    qkv = torch.randn(2, config.heads + 2 * config.kv_heads, config.head_dim).bfloat16()
    tables = rope_tables(attend.positions_B, config.head_dim, 10_000.0, torch.bfloat16)
    assert attend(0, qkv, tables, config.heads).isfinite().all()


def test_a_broken_compiler_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert native.native_kernels.__wrapped__() is None
