"""Estimates with their uncertainty.

pass@k is the unbiased estimator of arXiv 2107.03374. Intervals come from a bootstrap over clusters of tasks: tasks made
from one function are not independent, so they are drawn together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, nan

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval over `clusters` independent groups."""

    value: float
    low: float
    high: float
    clusters: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that one of k samples passes, of n samples of which c passed. NaN for n < k."""
    return 1 - comb(n - c, k) / comb(n, k) if n >= k else nan


def pass_hat_k(n: int, c: int, k: int) -> float:
    """Probability that all of k samples pass. NaN for n < k."""
    return comb(c, k) / comb(n, k) if n >= k else nan


def bootstrap(values: Sequence[float], clusters: Sequence[str], *, seed: int = 0, rounds: int = 10_000) -> Estimate:
    """Mean of `values` (one a task) and a percentile interval from resampling whole clusters."""
    if not values:
        return Estimate(nan, nan, nan, 0)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(member, weights=np.asarray(values, dtype=float), minlength=len(names))
    sizes = np.bincount(member, minlength=len(names))
    rng = np.random.default_rng(seed)
    means = np.empty(rounds)
    for start in range(0, rounds, 500):  # bounded memory for thousands of tasks
        drawn = rng.integers(0, len(names), (min(500, rounds - start), len(names)))
        means[start : start + len(drawn)] = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(np.mean(values)), float(low), float(high), len(names))


def exact_sign_test(better: int, worse: int) -> float:
    """Two-sided p-value of McNemar's exact test: as many tasks won as lost?"""
    n = better + worse
    if n == 0:
        return 1.0
    tail = sum(comb(n, i) for i in range(min(better, worse) + 1)) / 2**n
    return min(1.0, 2 * tail)
