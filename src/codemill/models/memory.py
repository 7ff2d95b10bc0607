"""Making the C allocator keep what a model frees while it runs, and give it back when another is loaded."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


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
