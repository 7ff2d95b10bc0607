"""Our own kernels for the small operations of decoding, built once for the machine at hand.

`native.cpp` is compiled by the system's C++ compiler on first use (a few seconds) and kept in the user's cache. Without a
compiler, off Linux, or for anything but bfloat16 on a CPU, torch's operations do the same, more slowly.

Shapes: T tokens, B sequences, D width, F mlp width, V vocabulary, H query heads, G key-value heads, K head size.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from codemill.core.errors import CodemillError
from codemill.core.paths import cache_dir, locked

_SOURCE = Path(__file__).with_name("native.cpp")
# Sums may be reordered, which is what lets them be vectorised; not -ffast-math, which would switch off denormal numbers
# in the whole process.
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)
_COMPILE_SECONDS = 120


class NativeKernels:
    """The functions of the built library, on contiguous bfloat16 tensors in the CPU's memory. Inference only."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, integer, small, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
        self._rms_norm, self._swiglu = library.rms_norm, library.swiglu
        self._decode_attention, self._greedy = library.decode_attention, library.greedy
        self._rms_norm.argtypes = [*[pointer] * 3, integer, integer, real, small]
        self._swiglu.argtypes = [*[pointer] * 2, integer, integer, small]
        self._decode_attention.argtypes = [*[pointer] * 7, integer, small, small, small, integer, real, small]
        self._greedy.argtypes = [*[pointer] * 3, integer, integer, small]
        for function in (self._rms_norm, self._swiglu, self._greedy):
            function.restype = None

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x_TD, out = x_TD.contiguous(), torch.empty_like(x_TD)
        rows, width = x_TD.shape
        self._rms_norm(x_TD.data_ptr(), weight_D.data_ptr(), out.data_ptr(), rows, width, eps, torch.get_num_threads())
        return out

    def swiglu(self, gate_up_TF2: Tensor) -> Tensor:
        gate_up_TF2 = gate_up_TF2.contiguous()
        rows, width = gate_up_TF2.shape[0], gate_up_TF2.shape[1] // 2
        out = gate_up_TF2.new_empty(rows, width)
        self._swiglu(gate_up_TF2.data_ptr(), out.data_ptr(), rows, width, torch.get_num_threads())
        return out

    def decode_attention(
        self,
        qkv_BXK: Tensor,
        tables: tuple[Tensor, Tensor],
        keys_BSGK: Tensor,
        values_BSGK: Tensor,
        lengths_B: Tensor,
        heads: int,
    ) -> Tensor:
        """Turn queries and keys by `tables`, append to the cache at `lengths_B`, attend: (B, H, K). `X` is H + 2 G."""
        cosines, sines = (table.contiguous() for table in tables)
        qkv_BXK = qkv_BXK.contiguous()
        batch, _, size = qkv_BXK.shape
        positions, groups = keys_BSGK.shape[1:3]
        out = qkv_BXK.new_empty(batch, heads, size)
        self._decode_attention(
            *(x.data_ptr() for x in (qkv_BXK, cosines, sines, keys_BSGK, values_BSGK, lengths_B, out)),
            batch,
            heads,
            groups,
            size,
            positions,
            1 / math.sqrt(size),
            torch.get_num_threads(),
        )
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


def handles_heads(heads: int, kv_heads: int, head_dim: int) -> bool:
    """Whether `decode_attention` knows these sizes."""
    return head_dim in (64, 128) and heads // kv_heads <= 16


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
    parts = (_SOURCE.read_bytes(), version, " ".join(_FLAGS).encode(), platform.machine().encode(), _processor())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]
    path = cache_dir() / "native" / f"{digest}.so"
    with locked(path.with_suffix(".lock")):
        if not path.is_file():
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                command = [compiler, *_FLAGS, "-o", f"{folder}/built.so", os.fspath(_SOURCE)]
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
