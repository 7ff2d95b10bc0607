"""What a model leaves in its process: memory that the C allocator keeps for it and gives back, and idle helper threads."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_OMP_PAUSE_HARD = 2  # of omp_pause_resource_t


def keep_freed_memory() -> None:
    """Let this process reuse big buffers instead of returning them to the kernel after every operation.

    On a CPU torch has no cache of its own: each logits-sized tensor would be mapped, faulted in page by page and
    unmapped again, which measured up to four times the cost of the arithmetic in it. Does nothing off glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, -1)  # never


def release_freed_memory() -> None:
    """Return what is free to the kernel: what one model has left behind must not count against the next."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def release_helpers() -> None:
    """End the OpenMP helper threads of the calling thread, so that another one computes at full speed.

    libgomp lets threads spin at a barrier only while all teams together fit the processors. With the loader's team still
    there, an engine's thread wrote 900 tokens a second instead of 1,345 (two cores). A thread that computes again gets new
    helpers. Does nothing where libgomp is not in use.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for path in {line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line}:
        pause = getattr(ctypes.CDLL(path), "omp_pause_resource_all", None)
        if pause is not None:
            pause(_OMP_PAUSE_HARD)
