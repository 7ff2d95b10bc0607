"""Stop strings: the cut is where a search over the whole text says, however the text falls into pieces."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.engine.stops import Stops

# few letters, so that strings overlap themselves and each other, and a character of two bytes and one of four
TEXTS = st.text(alphabet="abé🦊", max_size=40)


def fed(strings: Sequence[str], pieces: Sequence[bytes]) -> tuple[bytes, bool]:
    stops, out = Stops(tuple(strings)), b""
    for piece in pieces:
        safe, found = stops.feed(piece)
        out += safe
        if found:
            assert stops.rest() == b""
            assert stops.feed(b"more") == (b"", True)
            return out, True
    return out + stops.rest(), False


def split(data: bytes, borders: Sequence[int]) -> list[bytes]:
    places = [0, *sorted(border % (len(data) + 1) for border in borders), len(data)]
    return [data[a:b] for a, b in zip(places, places[1:], strict=False)]


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.text(alphabet="abé🦊", min_size=1, max_size=8), st.lists(st.integers(0, 200), max_size=30))
def test_one_string_is_found_where_find_finds_it(text: str, stop: str, borders: list[int]) -> None:
    place = text.find(stop)
    expected = (text.encode(), False) if place < 0 else (text[:place].encode(), True)
    assert fed([stop], split(text.encode(), borders)) == expected


@settings(max_examples=300, deadline=None)
@given(
    TEXTS,
    st.lists(st.text(alphabet="abé", min_size=1, max_size=6), min_size=1, max_size=5),
    st.lists(st.integers(0, 200), max_size=30),
)
def test_of_many_the_one_that_is_complete_first(text: str, strings: list[str], borders: list[int]) -> None:
    data = text.encode()
    found = [(at + len(s.encode()), -len(s.encode())) for s in strings if (at := data.find(s.encode())) >= 0]
    expected = (data[: sum(min(found))], True) if found else (data, False)
    assert fed(strings, split(data, borders)) == expected


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.text(alphabet="abé🦊", min_size=1, max_size=8))
def test_no_more_is_held_back_than_may_become_a_stop(text: str, stop: str) -> None:
    stops, seen, shown = Stops((stop,)), b"", b""
    for byte in text.encode():
        safe, found = stops.feed(bytes([byte]))
        seen, shown = seen + bytes([byte]), shown + safe
        if found:
            return
        held = next(n for n in range(len(stop.encode()), -1, -1) if seen.endswith(stop.encode()[:n]))
        assert len(shown) == len(seen) - held


def test_long_strings_that_nearly_match_take_linear_time() -> None:
    """Quadratic work would take minutes here."""
    stops = Stops(("a" * 9_999 + "b", "a" * 10_000 + "c"))
    shown = sum(len(stops.feed(b"aaaa")[0]) for _ in range(25_000))
    assert shown == 100_000 - 10_000
    assert stops.feed(b"b") == (b"a", True)


def test_no_strings() -> None:
    assert Stops(()).feed(b"abc") == (b"abc", False)
