"""Plots, and the small helpers that put numbers and outside text into words."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.core.text import visible
from codemill.report import text
from codemill.report.plots import (
    MAX_POINTS,
    Axis,
    Mark,
    difference_axis,
    interval_plot,
    loss_plot,
    share_bar,
    smoothed,
    thinned,
    tick_labels,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0.72, 1.9, [0.75, 1.0, 1.25, 1.5, 1.75]),
        (-30, 30, [-20, 0, 20]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(low: float, high: float, wanted: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(wanted)


def test_tick_labels_have_the_same_decimals() -> None:
    assert tick_labels([-0.5, 0.0, 0.25]) == ["−0.50", "0.00", "0.25"]
    assert tick_labels([0, 500, 1000]) == ["0", "500", "1,000"]


def test_an_interval_is_drawn_to_scale() -> None:
    mark = Mark(50, 25, 75, "after", "50.0 %")
    plot = ElementTree.fromstring(str(interval_plot([("suite", [mark])], Axis(0, 100, "%"), width=216, title="t")))
    lines = [e for e in plot if e.tag == "line" and e.get("class") == "mark after"]
    assert (lines[0].get("x1"), lines[0].get("x2")) == ("58.0", "158.0")  # 8 + 200 / 4, 8 + 3 * 200 / 4
    assert next(e for e in plot if e.tag == "circle").get("cx") == "108.0"


def test_the_difference_axis_is_symmetrical_and_wide_enough() -> None:
    axis = difference_axis([Mark(1, -3, 12, "difference", "")], "points")
    assert axis.low == -axis.high
    assert axis.high >= 12


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), max_size=40), st.floats(0, 1))
def test_a_loss_plot_is_well_formed_whatever_the_losses(losses: list[float | None], rate: float) -> None:
    plot = str(loss_plot(list(range(len(losses))), losses, [rate] * len(losses), width=640))
    if plot:
        ElementTree.fromstring(plot)
        assert "nan" not in plot
        assert "inf" not in plot


def test_names_in_plots_are_escaped_and_visible() -> None:
    mark = Mark(1, 0, 2, "after", "<x>\u202e")
    for plot in (
        interval_plot([("<b>\x1b", [mark])], Axis(0, 2, "&"), width=300, title='"<'),
        share_bar([("<i>\x00", 1.0)], ["l0"]),
    ):
        ElementTree.fromstring(str(plot))
        assert not re.search("<[bix]>|[\x00\x1b\u202e]", str(plot))


def test_smoothing_keeps_a_straight_line_and_takes_out_noise() -> None:
    line = [(i, 2.0 - i / 100) for i in range(100)]
    assert [v for _, v in smoothed(line)] == pytest.approx([v for _, v in line])
    zigzag = [(i, float(i % 2)) for i in range(100)]
    middle = [v for _, v in smoothed(zigzag)][10:90]
    assert max(middle) - min(middle) < 0.2


def test_thinning_keeps_the_extremes() -> None:
    points = [(i, 1.0) for i in range(10_000)]
    points[3333], points[7777] = (3333, 9.0), (7777, -9.0)
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS
    assert {(3333, 9.0), (7777, -9.0)} <= set(kept)
    assert kept == sorted(kept)


@given(st.text(st.characters(exclude_categories=())))
def test_visible_leaves_nothing_unseen(words: str) -> None:
    shown = visible(words)
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]", shown
    )
    shown.encode()
    assert visible(shown) == shown


def test_visible_leaves_ordinary_text_alone() -> None:
    words = "naïve 世界 🙂\n\tindented “quotes” é ع"
    assert visible(words) == words
    assert visible("a\r\nb\rc") == "a\nb␍c"


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (text.signed(14.06), "+14.1"),
        (text.signed(-0.04), "0.0"),
        (text.points(-0.125), "−12.5"),
        (text.percent(None), "—"),
        (text.percent(float("nan")), "—"),
        (text.size(999), "999 B"),
        (text.size(52_110), "52.1 kB"),
        (text.size(2.5e12), "2,500.0 GB"),
        (text.duration(1944), "32 min 24 s"),
        (text.duration(3 * 3600 + 59.7), "3 h 01 min"),
        (text.duration(59.9), "1 min 00 s"),
        (text.counted(1, "copy"), "1 copy"),
        (text.counted(1200, "copy"), "1,200 copies"),
        (text.moment("2031-05-06T07:08:09Z"), "2031-05-06 07:08 UTC"),
        (text.moment("<now>"), "<now>"),
        (text.tight("+3.1 to +25.0, 95 % of 4 tasks"), "+3.1\u00a0to\u00a0+25.0, 95\u00a0% of 4 tasks"),
        (text.head("a\nb\nc", 2), "a\nb\n… 1 more line"),
        (text.head("a\nb\n", 2), "a\nb"),
        (text.tail("a\nb\nc", 2), "b\nc"),
        (text.clip("abcdef", 4), "abc…"),
    ],
)
def test_words(found: str, wanted: str) -> None:
    assert found == wanted
