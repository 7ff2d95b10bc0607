"""Inference on a CPU by our own kernels (`cpp/`), built once for the machine at hand.

The sources are compiled by the system's C++ compiler on first use (some ten seconds) and kept in the user's cache. Without
a compiler, off Linux, in fp32, in training, or for sizes that the kernels do not know, torch's operations do the same,
more slowly.

Shapes: T tokens, R runs of new tokens, M blocks of a run, D width, N outputs, K inputs or head size, V vocabulary.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from codemill.core.errors import CodemillError
from codemill.core.paths import cache_dir, locked
from codemill.models.config import DecoderConfig
from codemill.models.quantize import Weights, quantize_int4, quantize_int8

_SOURCES = Path(__file__).with_name("cpp")
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-freciprocal-math", "-w"),
)
_COMPILE_SECONDS = 180
_STRIP, _PAIR = 16, 32  # outputs that lie together, and those that are computed together
BLOCK_TOKENS = 32
_KINDS: dict[Weights, int] = {"bf16": 0, "int8": 1, "int4": 2}


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("data", "scales", "groups", "sums", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "kind")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm")),
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("layers", "norm")),
        *((name, ctypes.c_int64) for name in ("count", "width", "mlp", "queries", "groups", "size")),
        ("eps", ctypes.c_float),
    )


class _Runs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tables", "past", "starts")),
        *((name, ctypes.c_int64) for name in ("count", "width")),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        ("layer_stride", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Runs:
    """The new tokens of a step, run after run, and where their keys and values are and go.

    `tables_RM` (int32): the numbers of each run's blocks of 32 tokens. `past_R` (int64): tokens that a run already has.
    `starts_R1` (int64): where runs begin in the step, and where the last one ends. `keys`, `values`: (layers, blocks, 32,
    key-value heads, head size) each, bf16, of zeros at first; how a block is laid out inside is the kernel's own affair. A
    single layer stands for all of them: each overwrites what the one before it left, enough for runs without a past.
    """

    tables_RM: Tensor
    past_R: Tensor
    starts_R1: Tensor
    keys: Tensor
    values: Tensor


def fresh_runs(lengths: Sequence[int], config: DecoderConfig) -> Runs:
    """Whole documents without a past, whose keys and values nobody needs afterwards."""
    blocks = [-(-length // BLOCK_TOKENS) for length in lengths]
    tables, first = torch.zeros(len(lengths), max(blocks), dtype=torch.int32), 0
    for row, count in enumerate(blocks):
        tables[row, :count] = torch.arange(first, first + count)
        first += count
    store = torch.zeros(2, 1, first, BLOCK_TOKENS, config.kv_heads, config.head_dim, dtype=torch.bfloat16)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    return Runs(tables, torch.zeros(len(lengths), dtype=torch.int64), starts, store[0], store[1])


class NativeMatrix:
    """A weight (N, K) as the kernels read it. `paired`: its halves are two matrices whose outputs are used together."""

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None, kind: Weights, *, paired: bool = False) -> None:
        self.kind, self.paired = kind, paired
        self.outputs, self.inputs = weight_NK.shape
        self._tensors = self._packed(weight_NK, bias_N)
        addresses = {name: tensor.data_ptr() for name, tensor in self._tensors.items()}
        self.struct = _Matrix(outputs=self.outputs, inputs=self.inputs, kind=_KINDS[kind], **addresses)

    def replace(self, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        """Take other values, in the same memory."""
        for name, tensor in self._packed(weight_NK, bias_N).items():
            self._tensors[name].copy_(tensor)

    def _packed(self, weight_NK: Tensor, bias_N: Tensor | None) -> dict[str, Tensor]:
        weight, bias = (self._ordered(x.detach()) if x is not None else None for x in (weight_NK, bias_N))
        assert weight is not None
        packed: dict[str, Tensor] = {}
        if bias is not None:
            packed["bias"] = bias.bfloat16().contiguous()
        strips = weight.shape[0] // _STRIP
        if self.kind == "bf16":
            packed["data"] = weight.bfloat16().view(strips, _STRIP, -1, 2).transpose(1, 2).contiguous()
        elif self.kind == "int8":
            values, packed["scales"] = quantize_int8(weight)
            packed["sums"] = values.sum(1, dtype=torch.int32)
            packed["data"] = values.view(strips, _STRIP, -1, 4).transpose(1, 2).contiguous()
        else:
            codes, scales = quantize_int4(weight)
            packed["groups"] = scales.bfloat16().view(strips, _STRIP, -1).transpose(1, 2).contiguous()
            rows = codes.view(strips, _STRIP, -1, 4).transpose(1, 2).reshape(strips, -1, 2, _STRIP * 4)
            packed["data"] = rows[:, :, 0] | (rows[:, :, 1] << 4)
        return packed

    def _ordered(self, x: Tensor) -> Tensor:
        if self.paired:
            return x.unflatten(0, (2, -1, _STRIP)).transpose(0, 1).flatten(0, 2)
        missing = -len(x) % _PAIR
        return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x


class NativeDecoder:
    """The layers and the head of a decoder, their matrices stored as `weights` says; the head never as less than int8."""

    def __init__(self, kernels: NativeKernels, config: DecoderConfig, tensors: Mapping[str, Tensor], weights: Weights):
        self.kernels, self.config = kernels, config
        self.matrices: dict[str, NativeMatrix] = {}
        self._norms: dict[str, Tensor] = {}
        for name, kind, paired in _matrices(config, weights):
            weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
            self.matrices[name] = NativeMatrix(weight, bias, kind, paired=paired)
        for name in _norms(config):
            self._norms[name] = tensors[name].detach().bfloat16().clone()
        layers = (_Layer * config.layers)()
        for index, layer in enumerate(layers):
            for part in ("attention_norm", "mlp_norm"):
                setattr(layer, part, self._norms[f"blocks.{index}.{part}"].data_ptr())
            for part in ("qkv", "out", "gate_up", "down"):
                setattr(layer, part, self.matrices[f"blocks.{index}.{part}"].struct)
        self._layers = layers  # must live as long as the struct that points to it
        self._model = _Model(
            layers=ctypes.addressof(layers),
            norm=self._norms["norm"].data_ptr(),
            count=config.layers,
            width=config.hidden_size,
            mlp=config.mlp_size,
            queries=config.heads,
            groups=config.kv_heads,
            size=config.head_dim,
            eps=config.norm_eps,
        )

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights of another decoder of the same configuration, in place."""
        for name, matrix in self.matrices.items():
            matrix.replace(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
        for name, norm in self._norms.items():
            norm.copy_(tensors[name].detach())

    def forward(self, x_TD: Tensor, tables: tuple[Tensor, Tensor], runs: Runs) -> Tensor:
        """Hidden states (T, D) after the final norm; `x_TD` is written over."""
        x_TD = x_TD.contiguous()
        cosines, sines = (table.contiguous() for table in tables)
        self.kernels.forward(self._model, x_TD, cosines, sines, runs)
        return x_TD

    def logits(self, hidden_TD: Tensor) -> Tensor:
        return self.kernels.linear(self.matrices["head"], hidden_TD)


def _matrices(config: DecoderConfig, weights: Weights) -> list[tuple[str, Weights, bool]]:
    parts = [(part, part == "gate_up") for part in ("qkv", "out", "gate_up", "down")]
    inner: list[tuple[str, Weights, bool]] = [
        (f"blocks.{index}.{part}", weights, paired) for index in range(config.layers) for part, paired in parts
    ]
    return [*inner, ("head", "int8" if weights == "int4" else weights, False)]


def _norms(config: DecoderConfig) -> list[str]:
    inner = [f"blocks.{i}.{part}" for i in range(config.layers) for part in ("attention_norm", "mlp_norm")]
    return [*inner, "norm"]


class NativeKernels:
    """The functions of the built library, on contiguous tensors in the CPU's memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, integer, small = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        self._forward, self._linear, self._greedy = library.forward, library.linear, library.greedy
        self._forward.argtypes = [ctypes.POINTER(_Model), ctypes.POINTER(_Runs), *[pointer] * 3, small]
        self._linear.argtypes = [ctypes.POINTER(_Matrix), pointer, pointer, integer, small]
        self._greedy.argtypes = [*[pointer] * 3, integer, integer, small]
        for function in (self._forward, self._linear, self._greedy):
            function.restype = None

    def forward(self, model: _Model, x_TD: Tensor, cosines: Tensor, sines: Tensor, runs: Runs) -> None:
        layers = runs.keys.shape[0]
        struct = _Runs(
            tables=runs.tables_RM.data_ptr(),
            past=runs.past_R.data_ptr(),
            starts=runs.starts_R1.data_ptr(),
            count=len(runs.past_R),
            width=runs.tables_RM.shape[1],
            keys=runs.keys.data_ptr(),
            values=runs.values.data_ptr(),
            layer_stride=runs.keys.stride(0) if layers > 1 else 0,
        )
        self._forward(model, struct, x_TD.data_ptr(), cosines.data_ptr(), sines.data_ptr(), torch.get_num_threads())

    def linear(self, matrix: NativeMatrix, x_TK: Tensor) -> Tensor:
        """x (T, K) times the weight: (T, N)."""
        x_TK = x_TK.contiguous()
        out = x_TK.new_empty(len(x_TK), matrix.outputs)
        self._linear(matrix.struct, x_TK.data_ptr(), out.data_ptr(), len(x_TK), torch.get_num_threads())
        return out

    def greedy(self, logits_TV: Tensor) -> tuple[Tensor, Tensor]:
        """The likeliest token of each row and its log-probability."""
        logits_TV = logits_TV.contiguous()
        rows, vocabulary = logits_TV.shape
        ids, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
        self._greedy(
            logits_TV.data_ptr(), ids.data_ptr(), logprobs.data_ptr(), rows, vocabulary, torch.get_num_threads()
        )
        return ids, logprobs


def native_decoder(config: DecoderConfig, tensors: Mapping[str, Tensor], weights: Weights) -> NativeDecoder | None:
    """The decoder for our kernels; None where they, or its sizes, are not to be had."""
    kernels = native_kernels()
    even = 32 if weights == "bf16" else 64  # inputs of a tile
    fits = (
        config.head_dim in (64, 128)
        and config.heads % config.kv_heads == 0
        and all(size % even == 0 for size in (config.hidden_size, config.mlp_size, config.heads * config.head_dim))
    )
    return NativeDecoder(kernels, config, tensors, weights) if kernels and fits else None


def kernels_for(x: Tensor) -> NativeKernels | None:
    """The kernels for a tensor like `x`; None where torch has to do it."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or torch.is_grad_enabled():
        return None
    return native_kernels()


@lru_cache(maxsize=1)
def native_kernels() -> NativeKernels | None:
    """Build, or take from the cache, and load; None where that cannot be done. Never raises."""
    if sys.platform != "linux" or sys.byteorder != "little":
        return None
    compiler = shutil.which("g++") or shutil.which("c++")
    try:
        library = _library(compiler) if compiler else None
        return NativeKernels(ctypes.CDLL(str(library))) if library else None
    except (OSError, AttributeError, CodemillError, subprocess.SubprocessError):
        return None


def _library(compiler: str) -> Path:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_COMPILE_SECONDS).stdout
    sources = [path.read_bytes() for path in sorted(_SOURCES.iterdir())]
    parts = (*sources, version, " ".join(_FLAGS).encode(), platform.machine().encode(), _processor())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
    path = cache_dir() / "native" / f"{digest}.so"
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                command = [compiler, *_FLAGS, "-o", f"{folder}/built.so", os.fspath(_SOURCES / "decoder.cpp")]
                subprocess.run(command, capture_output=True, check=True, timeout=_COMPILE_SECONDS)
                os.replace(f"{folder}/built.so", path)
    return path


def _processor() -> bytes:
    """What `-march=native` depends on: a cache may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"Features"))}))
