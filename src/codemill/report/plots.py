"""Plots as inline SVG. Colours come from the page's style sheet, so they follow light and dark.

Each builder takes its width in CSS pixels; text keeps its size when a plot is built for a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from markupsafe import Markup, escape

from codemill.core.text import visible
from codemill.report.text import clip

MAX_POINTS = 400  # of one curve: more cannot be told apart on a screen


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval. `style` is "before", "after" or "difference"."""

    value: float
    low: float
    high: float
    style: str
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    low: float
    high: float
    unit: str

    def place(self, value: float, start: float, end: float) -> float:
        span = self.high - self.low
        return start + (end - start) * ((value - self.low) / span if span else 0.5)


def _text(x: float, y: float, words: str, anchor: str = "start", style: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, style, escape(visible(words))
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, style)


def _figure(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}" role="img" aria-label="{}">{}</svg>').format(
        width, height, width, visible(title), Markup("").join(parts)
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about as many as wanted."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / max(1, wanted)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Labels of an axis's ticks, all with as many decimals as the finest needs."""
    digits = max((len(f"{value:.6f}".rstrip("0").partition(".")[2]) for value in values), default=0)
    return [f"{value:,.{digits}f}".replace("-", "−") for value in values]


def rate_label(value: float) -> str:
    """A learning rate, short."""
    return f"{value:.2g}".replace("e-0", "e-").replace("-", "−") if value else "0"


def interval_plot(rows: Sequence[tuple[str, Sequence[Mark]]], axis: Axis, *, width: float, title: str) -> Markup:
    """Values with their intervals along one axis: a row for each suite, a line in it for each mark."""
    left, right, lane, gap = 8.0, width - 8.0, 20.0, 26.0
    parts: list[Markup] = []
    y = 4.0
    height = y + sum(gap + lane * len(marks) for _, marks in rows) + 34
    bottom = height - 32
    places = ticks(axis.low, axis.high)
    for tick, label in zip(places, tick_labels(places), strict=True):
        x = axis.place(tick, left, right)
        parts.append(_line(x, y, x, bottom, "zero" if tick == 0 and axis.low < 0 else "grid"))
        anchor = "start" if x < left + 12 else "end" if x > right - 12 else "middle"
        sign = "+" if axis.low < 0 < tick else ""
        parts.append(_text(x, bottom + 14, sign + label, anchor, "tick"))
    parts.append(_text((left + right) / 2, bottom + 29, axis.unit, "middle", "axis"))
    for name, marks in rows:
        parts.append(_text(left, y + 16, clip(name, 40), style="row"))
        y += gap
        for mark in marks:
            parts += _interval(mark, axis, left, right, y + lane / 2 - 3)
            y += lane
    return _figure(width, height, title, parts)


def _interval(mark: Mark, axis: Axis, left: float, right: float, y: float) -> list[Markup]:
    low, value, high = (axis.place(v, left, right) for v in (mark.low, mark.value, mark.high))
    beside_right = high + 8 + 7 * len(mark.label) < right
    style = f"mark {mark.style}"
    return [
        _line(low, y, high, y, style),
        _line(low, y - 4, low, y + 4, style),
        _line(high, y - 4, high, y + 4, style),
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4.5" class="{}"/>').format(value, y, style),
        _text(high + 8 if beside_right else low - 8, y + 4, mark.label, "start" if beside_right else "end", "value"),
    ]


def difference_axis(marks: Sequence[Mark], unit: str) -> Axis:
    """An axis symmetrical about 0, with room for a label beside the widest interval."""
    widest = max((abs(v) for mark in marks for v in (mark.low, mark.high)), default=0)
    reach = max(5.0, math.ceil(widest * 1.3 / 5) * 5)
    return Axis(-reach, reach, unit)


def loss_plot(
    steps: Sequence[int], losses: Sequence[float | None], rates: Sequence[float | None], *, width: float
) -> Markup:
    """Loss of each step, its smoothed course, and the learning rate on a second axis."""
    points = [(s, v) for s, v in zip(steps, losses, strict=True) if _drawable(v)]
    if not points:
        return Markup("")
    schedule = [(s, r) for s, r in zip(steps, rates, strict=True) if _drawable(r)]
    left, right, top, bottom, height = 46.0, width - 52.0, 26.0, 250.0, 290.0
    x_axis = Axis(min(steps), max(steps), "optimiser step")
    values = [v for _, v in points]
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or 0.5
    y_axis = Axis(max(0.0, low - room), high + room, "loss")
    peak = max((r for _, r in schedule), default=0.0)
    parts: list[Markup] = []
    levels = ticks(y_axis.low, y_axis.high, 6)
    for tick, label in zip(levels, tick_labels(levels), strict=True):
        y = y_axis.place(tick, bottom, top)
        parts += [_line(left, y, right, y, "grid"), _text(left - 6, y + 4, label, "end", "tick")]
    for tick in ticks(x_axis.low, x_axis.high, 6 if width > 450 else 4):
        if tick == int(tick):
            parts.append(_text(x_axis.place(tick, left, right), bottom + 16, f"{tick:,.0f}", "middle", "tick"))

    def curve(series: Sequence[tuple[float, float]], axis: Axis, style: str) -> Markup:
        placed = (f"{x_axis.place(s, left, right):.1f},{axis.place(v, bottom, top):.1f}" for s, v in series)
        return Markup('<polyline points="{}" class="{}"/>').format(" ".join(placed), style)

    if peak > 0:
        rate_axis = Axis(0.0, peak * 1.1, "learning rate")
        parts.append(curve(thinned(schedule), rate_axis, "rate"))
        for tick in (0.0, peak):
            parts.append(
                _text(right + 6, rate_axis.place(tick, bottom, top) + 4, rate_label(tick), "start", "tick rate")
            )
        parts.append(_text(width - 2, 13, "learning rate", "end", "axis rate"))
    parts += [curve(thinned(points), y_axis, "raw"), curve(thinned(smoothed(points)), y_axis, "smooth")]
    if len(points) == 1:
        parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" class="mark after"/>').format(
                (left + right) / 2, y_axis.place(low, bottom, top)
            )
        )
    parts.append(_text((left + right) / 2, bottom + 34, x_axis.unit, "middle", "axis"))
    parts.append(_text(2, 13, "loss (nats a token)", style="axis"))
    return _figure(width, height, "Training loss and learning rate by step", parts)


def _drawable(value: float | None) -> TypeGuard[float]:
    """Whether a number has a place on an axis: there, finite, and not a loss that has run away to absurdity."""
    return value is not None and abs(value) < 1e12


def smoothing_window(count: int) -> int:
    """Steps on either side that `smoothed` takes in."""
    return max(1, count // 20)


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean over a window that is centred, and narrower at the ends."""
    reach = smoothing_window(len(points))
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result = []
    for i, (step, _) in enumerate(points):
        side = min(reach, i, len(points) - 1 - i)
        result.append((step, (sums[i + side + 1] - sums[i - side]) / (2 * side + 1)))
    return result


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MAX_POINTS` points that keep each stretch's lowest and highest."""
    if len(points) <= MAX_POINTS:
        return list(points)
    buckets = MAX_POINTS // 2
    result = []
    for i in range(buckets):
        part = points[i * len(points) // buckets : (i + 1) * len(points) // buckets]
        result += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return result


def share_bar(shares: Sequence[tuple[str, float]], styles: Sequence[str]) -> Markup:
    """A bar of named shares that add up to 1, one style for each."""
    at, parts = 0.0, []
    for (name, share), style in zip(shares, styles, strict=True):
        parts.append(
            Markup('<rect x="{:.2f}" y="0" width="{:.2f}" height="10" class="{}"><title>{}</title></rect>').format(
                at, 100 * share, style, f"{visible(name)} {100 * share:.1f} %"
            )
        )
        at += 100 * share
    return Markup(
        '<svg viewBox="0 0 100 10" class="bar" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(", ".join(f"{visible(name)} {100 * share:.0f} %" for name, share in shares), Markup("").join(parts))
