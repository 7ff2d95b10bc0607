"""One token out of one row of logits: temperature, top-k, top-p, min-p, and the draw itself.

What is kept and in which order follows the logits processors of `transformers`: top-k keeps all ties at its border, top-p
(arXiv 1904.09751) the token that crosses its border and of equals those with the highest ids, min-p (arXiv 2407.01082)
measures against the likeliest token. The draw inverts the cumulative distribution with one uniform number, likeliest token
first. Nearly always the few tokens close to the likeliest decide everything, so only they are sorted; when they do not, all
are.

NumPy on the host, since the work on few tokens is many small steps. V vocabulary, C candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codemill.core.contracts import Sampling

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

_NEAR = 12.0  # in units of the temperature: tokens below exp(-12) of the likeliest are looked at only when they must be
_BELOW_1 = 1.0 - 2.0**-50
_ROUNDING = 1e-5  # of a sum over the vocabulary in fp32


@dataclass(frozen=True, slots=True)
class Row:
    """Logits x_V, their largest one, and the sum of exp(x - high) over the vocabulary."""

    x_V: Floats
    high: float
    total: float

    @classmethod
    def of(cls, x_V: Floats) -> Row:
        high = float(x_V.max())
        return cls(x_V, high, _total(x_V, high, 1.0) if np.isfinite(high) else float("nan"))

    @property
    def broken(self) -> bool:
        """Whether there is no distribution: NaN, infinity, or nothing that may be chosen."""
        return not 0.0 < self.total < float("inf")


@dataclass(frozen=True, slots=True)
class Kept:
    """The tokens that may be drawn, by falling logit: `values_C`, their cumulative weights, and the weight of all."""

    values_C: Floats
    cumulative_C: Doubles
    total: float
    whole: bool  # False: some that may be drawn, too unlikely to matter nearly always, are not among them


def draw(row: Row, how: Sampling, uniform: float) -> tuple[int, float]:
    """A token and its log-probability, for a number drawn uniformly from [0, 1)."""
    kept = keep(row, how)
    near = float(kept.cumulative_C[-1])
    far = uniform * kept.total - near
    found = _far(row, how, kept.values_C[-1], far / (kept.total - near)) if far >= 0 and not kept.whole else None
    token = _near(row, kept, uniform) if found is None else found
    return token, (float(row.x_V[token]) - row.high) / how.temperature - math.log(kept.total)


def _near(row: Row, kept: Kept, uniform: float) -> int:
    values_C = kept.values_C
    place = min(int(np.searchsorted(kept.cumulative_C, uniform * kept.total, side="right")), len(values_C) - 1)
    equals = np.flatnonzero(row.x_V == values_C[place])
    rank = place - int(np.searchsorted(-values_C, -values_C[place], side="left"))
    return int(equals[-1 - rank])


def _far(row: Row, how: Sampling, lowest: np.float32, share: float) -> int | None:
    """The token that `share` of the mass below the logit `lowest` points to, by id; None if there is no mass."""
    ids = np.flatnonzero(row.x_V < lowest)
    cumulative = np.exp((row.x_V[ids] - row.high) / np.float32(how.temperature)).cumsum(dtype=np.float64)
    if not len(ids) or cumulative[-1] <= 0.0:
        return None
    place = int(np.searchsorted(cumulative, min(share, _BELOW_1) * cumulative[-1], side="right"))
    return int(ids[place])


def distribution(row: Row, how: Sampling) -> Floats:
    """Log-probabilities (V,) of what `draw` draws; -inf for what it cannot."""
    kept = keep(row, how, everything=True)
    border = kept.values_C[-1]
    inside_V = row.x_V > border
    equals = np.flatnonzero(row.x_V == border)
    inside_V[equals[len(equals) - np.count_nonzero(kept.values_C == border) :]] = True
    out_V = np.full(len(row.x_V), -np.inf, np.float32)
    out_V[inside_V] = (row.x_V[inside_V] - row.high) / how.temperature - math.log(kept.total)
    return out_V


def keep(row: Row, how: Sampling, *, everything: bool = False) -> Kept:
    """What top-k, top-p and min-p leave, looking only at the tokens near the likeliest if that is enough."""
    if not everything:
        edge = row.high - _NEAR * how.temperature
        near = row.x_V[row.x_V > edge]
        if how.top_k <= len(near):
            found = _cut(row, how, near, edge)
            if found is not None:
                return found
    lowest = -np.inf
    if 0 < how.top_k < len(row.x_V):
        lowest = np.partition(row.x_V, -how.top_k)[-how.top_k]
    found = _cut(row, how, row.x_V[(row.x_V >= lowest) & (row.x_V > -np.inf)], -np.inf)
    assert found is not None
    return found


def _cut(row: Row, how: Sampling, near_C: Floats, edge: float) -> Kept | None:
    """What is kept, if that can be told from `near_C`, which are all logits above `edge`; None if not."""
    near_C.sort()
    values_C, whole = near_C[::-1], edge == -np.inf
    weights_C = np.exp((values_C.astype(np.float64) - row.high) / how.temperature)
    cumulative_C = weights_C.cumsum()
    if how.top_k and how.top_k < len(values_C):
        count = int(np.searchsorted(-values_C, -values_C[how.top_k - 1], side="right"))
        values_C, weights_C, cumulative_C = values_C[:count], weights_C[:count], cumulative_C[:count]
    whole = whole or bool(how.top_k)
    least = float(cumulative_C[-1])  # how much all that may be drawn weighs lies between the two
    most = least if whole else least + _beyond(row, how.temperature, values_C, edge)
    count = len(values_C)
    if how.top_p < 1.0:
        count = _nucleus(cumulative_C, how.top_p * least)
        if count != _nucleus(cumulative_C, how.top_p * most):
            count = _nucleus(cumulative_C, how.top_p * _total(row.x_V, row.high, how.temperature))
        if count > len(values_C):
            if not whole:
                return None
            count = len(values_C)
        whole = True
    if how.min_p > 0.0:
        above = int(np.searchsorted(-weights_C, -how.min_p, side="right"))
        if above == len(values_C) and not whole:
            return None
        count, whole = min(count, above), True
    total = float(cumulative_C[count - 1]) if whole else _whole_total(row, how.temperature)
    return Kept(values_C[:count], cumulative_C[:count], total, whole)


def _nucleus(cumulative_C: Doubles, mass: float) -> int:
    """How many of the likeliest tokens it takes to weigh `mass`: the one that crosses the border counts."""
    return 1 + int(np.searchsorted(cumulative_C, mass, side="left"))


def _beyond(row: Row, temperature: float, values_C: Floats, edge: float) -> float:
    """The most that the tokens below `edge` can weigh, without looking at them.

    They weigh row.total less the others at temperature 1, and a lower temperature divides each by exp((1/t - 1)(high -
    edge)) at the least.
    """
    if temperature > 1.0:
        return float("inf")
    others = float(np.exp(values_C.astype(np.float64) - row.high).sum())
    rest = max(row.total - others, 0.0) + _ROUNDING * row.total
    return rest * math.exp((edge - row.high) * (1.0 / temperature - 1.0))


def _whole_total(row: Row, temperature: float) -> float:
    return row.total if temperature == 1.0 else _total(row.x_V, row.high, temperature)


def _total(x_V: Floats, high: float, temperature: float) -> float:
    """The sum of exp((x - high) / temperature)."""
    scaled_V = x_V - np.float32(high)
    if temperature != 1.0:
        scaled_V /= np.float32(temperature)
    return float(np.exp(scaled_V, out=scaled_V).sum())
