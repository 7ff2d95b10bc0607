"""What is drafted, and how much."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.engine.drafts import LONGEST_DRAFT, Ask, Pace, PromptLookup


def draft(tokens: Sequence[int], most: int = 4) -> list[int]:
    (found,) = PromptLookup().propose([Ask(0, tokens, most)])
    return found


def test_the_longest_match_goes_on() -> None:
    assert draft([1, 2, 3, 4, 5, 6, 9, 1, 2, 3]) == [4, 5, 6, 9]
    # 7 1 2 3 stands behind the second 1 2 3, which matches further back than the later third one
    assert draft([1, 2, 3, 50, 7, 1, 2, 3, 60, 8, 1, 2, 3, 70, 7, 1, 2, 3], 1) == [60]
    assert draft([1, 2, 3, 50, 1, 2, 3, 60, 1, 2, 3], 1) == [60], "of equals the latest"


def test_no_match_no_draft() -> None:
    assert draft([1, 2, 3, 4, 5]) == []
    assert draft([1, 2, 9, 1, 2]) == [], "two tokens are chance"
    assert draft([1]) == []
    assert draft([]) == []
    assert draft([1, 2, 3, 1, 2, 3], 0) == []


def test_a_rhythm_goes_on_beyond_the_end() -> None:
    assert draft([1, 2, 3, 1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]
    assert draft([5, 5, 5, 5], 3) == [5, 5, 5]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=60), st.integers(1, 8))
def test_an_index_that_grows_equals_a_search(tokens: list[int], most: int) -> None:
    """Asked at every length, one index says what a search over all earlier places would."""
    lookup = PromptLookup()
    for length in range(1, len(tokens) + 1):
        seen = tokens[:length]
        (found,) = lookup.propose([Ask(7, seen, most)])
        ends = [end for end in range(2, length - 1) if seen[end - 2 : end + 1] == seen[-3:]] if length > 3 else []
        assert bool(found) == bool(ends)
        if found:
            assert len(found) == most
            continuations = []
            for end in ends[-8:]:
                whole = seen.copy()
                while len(whole) < length + most:
                    whole.append(whole[len(whole) - (length - 1 - end)])
                back = next((n for n in range(3, 36) if end - n < 0 or seen[end - n] != seen[-1 - n]), 35)
                continuations.append((back, end, whole[length:]))
            assert found == max(continuations)[2]
    lookup.forget(7)
    lookup.forget(7)


def test_pace_follows_success() -> None:
    pace = Pace()
    start = pace.most()
    for _ in range(6):
        pace.learn(pace.most(), pace.most())
    assert pace.most() == LONGEST_DRAFT > start
    pace.learn(16, 5)
    assert pace.most() == 6


def test_pace_rests_longer_and_longer_without_success() -> None:
    pace, drafted = Pace(), 0
    for _ in range(1000):
        most = pace.most()
        drafted += most
        if most:
            pace.learn(most, 0)
    assert drafted < 100
    while not (most := pace.most()):
        pass
    pace.learn(most, most)
    assert pace.most() > 2, "one success ends the rests"
