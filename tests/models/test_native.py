"""Our kernels against torch's operations in fp32, in every build: the machine's own, without its matrix unit, and plain C++."""

from __future__ import annotations

import ctypes
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codemill.models import native
from codemill.models.config import DecoderConfig, read_config
from codemill.models.decoder import Decoder, PackedAttention, packed_positions
from codemill.models.kernels import rope_tables
from codemill.models.native import BLOCK_TOKENS, NativeKernels, NativeMatrix, Runs
from codemill.models.quantize import CODES, GROUP, dequantize_int4, quantize_int4, quantize_int8
from tiny import tiny_checkpoint

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: torch's operations are used")

BUILDS = {
    "native": native._FLAGS,
    "vectors": (*native._FLAGS, "-mno-amx-tile", "-mno-amx-bf16", "-mno-amx-int8"),
    "plain": tuple("-mtune=generic" if flag == "-march=native" else flag for flag in native._FLAGS),
}
KINDS = ("bf16", "int8", "int4")
FIND_KERNELS = native.native_kernels  # as it is, whatever a fixture puts in its place


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=BUILDS)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeKernels]:
    """The kernels of one build, which decoders made meanwhile use as well."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "native":
            patch.setattr(native, "_FLAGS", BUILDS[request.param])
            patch.setenv("CODEMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
            compiler = shutil.which("g++")
            assert compiler is not None
            built = NativeKernels(ctypes.CDLL(str(native._library(compiler))))
            patch.setattr(native, "native_kernels", lambda: built)
        found = native.native_kernels()
        assert found is not None
        yield found


# Products -----------------------------------------------------------------------------------------------------------


def meaning(weight_NK: Tensor, kind: str) -> Tensor:
    """The numbers that a stored weight stands for."""
    if kind == "int8":
        values, scales = quantize_int8(weight_NK)
        return values.float() * scales[:, None]
    if kind == "int4":
        return dequantize_int4(*quantize_int4(weight_NK), torch.float32)
    return weight_NK.bfloat16().float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 64), (100, 128), (16, 576), (960, 192)])
def test_products(kernels: NativeKernels, kind: native.Weights, outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs).bfloat16()
    matrix = NativeMatrix(weight, bias, kind)
    for rows in (1, 2, 3, 4, 5, 7, 16, 17, 32, 33, 100):
        x = torch.randn(rows, inputs).bfloat16()
        expected = x.float() @ meaning(weight, kind).T + bias.float()
        slack = 0.05 * inputs**0.5 / 8 if kind == "int4" else 0.02  # many rows of int4 meet weights rounded to bf16
        torch.testing.assert_close(kernels.linear(matrix, x).float(), expected, rtol=8e-3, atol=slack)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_stays_in_its_row(kernels: NativeKernels, kind: native.Weights) -> None:
    matrix = NativeMatrix(torch.randn(32, 64), None, kind)
    for rows in (2, 20):
        x = torch.randn(rows, 64).bfloat16()
        x[1, 3] = float("nan")
        out = kernels.linear(matrix, x)
        assert out[1].isnan().all()
        assert out[0].isfinite().all()
        x[1, 3] = float("inf")
        assert not kernels.linear(matrix, x)[1].isfinite().any()
        assert kernels.linear(matrix, torch.zeros_like(x)).eq(0).all()


def test_rows_with_one_huge_value_keep_the_others(kernels: NativeKernels) -> None:
    """Rounding to 16 bits of the largest value leaves bfloat16's precision to values a hundred times smaller."""
    weight, x = torch.randn(32, 128), torch.randn(4, 128).bfloat16()
    x[:, 0] = 100.0
    weight[:, 0] = 0
    out = kernels.linear(NativeMatrix(weight, None, "int8"), x).float()
    expected = x.float() @ meaning(weight, "int8").T
    torch.testing.assert_close(out, expected, rtol=1e-2, atol=0.05)


def test_greedy_takes_the_first_of_equals_and_survives_nan(kernels: NativeKernels) -> None:
    logits = torch.randn(4, 1003).bfloat16()
    logits[1, 7] = logits[1, 900] = 9.0
    logits[2] = 0.0
    logits[3, 5] = float("nan")
    ids, logprobs = kernels.greedy(logits)
    expected = logits.float().log_softmax(-1)
    assert ids[:3].tolist() == [int(logits[0].float().argmax()), 7, 0]
    torch.testing.assert_close(logprobs[:3], expected[:3].max(-1).values, rtol=1e-5, atol=1e-5)
    assert 0 <= int(ids[3]) < 1003
    assert logprobs[3].isnan()


# Decoders -----------------------------------------------------------------------------------------------------------


def small(tmp_path: Path, heads: int = 4, groups: int = 2, size: int = 64, hidden: int = 128) -> DecoderConfig:
    config = read_config(tiny_checkpoint(tmp_path))
    return dataclasses.replace(
        config, heads=heads, kv_heads=groups, head_dim=size, hidden_size=hidden, mlp_size=192, layers=2
    )


def weights_of(config: DecoderConfig, seed: int = 0) -> Decoder:
    """Random weights, exact in bf16, in fp32."""
    torch.manual_seed(seed)
    decoder = Decoder(config).requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        parameter.copy_((0.08 * torch.randn_like(parameter) + ("norm" in name)).bfloat16())
    return decoder


def packed(config: DecoderConfig, kind: native.Weights = "bf16", seed: int = 0) -> Decoder:
    decoder = weights_of(config, seed).bfloat16().pack(kind)
    assert decoder.native is not None
    return decoder


def far(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("heads", "groups", "size"), [(4, 2, 64), (9, 3, 64), (14, 2, 64), (4, 4, 128), (20, 1, 64)])
def test_decoders(kernels: NativeKernels, tmp_path: Path, heads: int, groups: int, size: int) -> None:
    config = small(tmp_path, heads, groups, size, hidden=heads * size)
    exact, ours, torchs = weights_of(config), packed(config), weights_of(config).bfloat16()
    for lengths in ([1], [3], [4, 2], [70], [5, 40, 1, 33, 64]):
        ids = torch.randint(0, 256, (sum(lengths),))
        expected = exact.packed_logits(ids, lengths)
        assert far(ours.packed_logits(ids, lengths), expected) < 1.5 * far(torchs.packed_logits(ids, lengths), expected)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_decoders(kernels: NativeKernels, tmp_path: Path, kind: native.Weights) -> None:
    """Against fp32 with the numbers that the stored weights stand for."""
    config = small(tmp_path)
    exact, ours = weights_of(config), packed(config, kind)
    for name, parameter in exact.named_parameters():
        if parameter.ndim == 2 and name != "embed":
            parameter.copy_(meaning(parameter, "int8" if name.startswith("head") else kind))
    head = meaning(exact.embed, "int8")
    for lengths in ([1], [2, 3], [50, 4]):
        ids = torch.randint(0, 256, (sum(lengths),))
        hidden = exact(ids, packed_positions(lengths), PackedAttention(lengths))
        assert far(ours.packed_logits(ids, lengths), hidden @ head.T) < 0.05


class Cached:
    """Steps over sequences whose blocks lie about in any order."""

    def __init__(self, decoder: Decoder, sequences: int, blocks: int, fill: float = 0.0) -> None:
        c = decoder.config
        self.decoder, self.past = decoder, [0] * sequences
        shape = (2, c.layers, sequences * blocks, BLOCK_TOKENS, c.kv_heads, c.head_dim)
        self.store = torch.full(shape, fill, dtype=torch.bfloat16)
        self.tables = torch.randperm(sequences * blocks).int().view(sequences, blocks)

    def step(self, chunks: dict[int, Tensor]) -> Tensor:
        rows, counts = list(chunks), [len(ids) for ids in chunks.values()]
        past = torch.tensor([self.past[row] for row in rows])
        runs = Runs(self.tables[rows].contiguous(), past, torch.tensor([0, *counts]).cumsum(0), *self.store)
        ids = torch.cat(list(chunks.values()))
        positions = torch.cat([torch.arange(p, p + n) for p, n in zip(past.tolist(), counts, strict=True)])
        for row, count in zip(rows, counts, strict=True):
            self.past[row] += count
        c = self.decoder.config
        x = torch.nn.functional.embedding(ids, self.decoder.embed)
        assert self.decoder.native is not None
        hidden = self.decoder.native.forward(x, rope_tables(positions, c.head_dim, c.rope_theta, x.dtype), runs)
        return self.decoder.logits(hidden)


def test_steps_equal_one_forward(kernels: NativeKernels, tmp_path: Path) -> None:
    """Prompts in chunks, single tokens and drafts, sequences coming and going; the cache starts full of NaN."""
    config = small(tmp_path, heads=6, groups=2, hidden=192)
    exact, ours = weights_of(config), packed(config)
    lengths = [100, 37, 5, 64]
    ids = [torch.randint(0, 256, (length,)) for length in lengths]
    found: list[list[Tensor]] = [[] for _ in lengths]
    cached = Cached(ours, len(lengths), 4, fill=float("nan"))
    generator = torch.Generator().manual_seed(1)
    while True:
        chunks: dict[int, Tensor] = {}
        for row in range(len(lengths)):
            count = int(torch.tensor([0, 1, 1, 3, 33])[torch.randint(0, 5, (), generator=generator)])
            piece = ids[row][cached.past[row] : cached.past[row] + count]
            if len(piece):
                chunks[row] = piece
        if chunks:
            logits = cached.step(chunks).split([len(piece) for piece in chunks.values()])
            for row, part in zip(chunks, logits, strict=True):
                found[row].append(part)
        if cached.past == lengths:
            break
    for row, length in enumerate(lengths):
        assert far(torch.cat(found[row]), exact.packed_logits(ids[row], [length])) < 0.03


def test_new_weights_in_place(kernels: NativeKernels, tmp_path: Path) -> None:
    config = small(tmp_path)
    ids = torch.randint(0, 256, (9,))
    for kind in KINDS:
        ours = packed(config, kind)
        ours.take(weights_of(config, seed=5))
        assert torch.equal(ours.packed_logits(ids, [9]), packed(config, kind, seed=5).packed_logits(ids, [9]))


# Where torch has to do it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_torch_does_it_where_the_kernels_cannot(
    kernels: NativeKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: native.Weights
) -> None:
    config, ids = small(tmp_path), torch.randint(0, 256, (40,))
    ours = packed(config, kind)
    monkeypatch.setattr(native, "native_kernels", lambda: None)
    theirs = weights_of(config).bfloat16().pack(kind)
    assert theirs.native is None
    assert far(theirs.packed_logits(ids, [40]), ours.packed_logits(ids, [40]).float()) < 0.03
    theirs.take(weights_of(config, seed=5))
    assert torch.equal(
        theirs.packed_logits(ids, [40]), weights_of(config, 5).bfloat16().pack(kind).packed_logits(ids, [40])
    )


def test_sizes_without_a_kernel(tmp_path: Path) -> None:
    assert weights_of(read_config(tiny_checkpoint(tmp_path))).bfloat16().pack().native is None
    assert weights_of(small(tmp_path, heads=3, groups=1, hidden=224)).bfloat16().pack("int8").native is None
    assert weights_of(small(tmp_path)).pack().native is None  # fp32


def test_a_broken_compiler_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert FIND_KERNELS.__wrapped__() is None


# Quantisation -------------------------------------------------------------------------------------------------------


def test_quantisation_errors_are_bounded() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 4 * GROUP)
    weight[3] = 0
    values, scales = quantize_int8(weight)
    assert ((values.float() * scales[:, None] - weight).abs() <= scales[:, None] * 0.501).all()
    codes, groups = quantize_int4(weight)
    restored = dequantize_int4(codes, groups, torch.float32)
    steps = torch.tensor(CODES).diff().max() / 2
    plain = (weight.unflatten(1, (-1, GROUP)).abs().amax(-1) / 127)[..., None]
    error = (restored - weight).unflatten(1, (-1, GROUP))
    assert error.square().sum() < (plain * steps).square().expand_as(error).sum() / 3
    assert restored[3].eq(0).all()
    relative = float((restored - weight).norm() / weight.norm())
    assert relative < 0.09  # a uniform grid of 16 values leaves 0.11 here
