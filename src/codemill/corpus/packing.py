"""Packing examples of many lengths into bins of equal token budgets, with as little waste as possible."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the indices of `lengths` in bins whose sums stay within `capacity`.

    Each item, longest first, goes to the fullest bin that still has room. Deterministic; a bin's items are in input
    order. Raises `ValueError` for an item longer than `capacity`.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"an item of {length} tokens does not fit into {capacity}")
        at = bisect_left(room, (length, -1))
        if at == len(room):
            bins.append([index])
            insort(room, (capacity - length, len(bins) - 1))
        else:
            left, chosen = room.pop(at)
            bins[chosen].append(index)
            insort(room, (left - length, chosen))
    return [sorted(chosen) for chosen in bins]
