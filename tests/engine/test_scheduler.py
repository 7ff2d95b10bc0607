"""Who runs when, and with whose memory: no model, tokens are numbers, a step is an assignment."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.engine.prefix import BlockPool
from codemill.engine.scheduler import Run, Scheduler, Track


def make(blocks: int = 40, *, max_batch: int = 4, step_tokens: int = 8, size: int = 2) -> Scheduler[str]:
    return Scheduler(BlockPool(blocks, size), max_batch=max_batch, step_tokens=step_tokens, longest=2 * blocks)


def step(scheduler: Scheduler[str], stops: set[str] = frozenset()) -> list[tuple[str, int, int]]:  # type: ignore[assignment]
    """Carry a plan out: who computed which tokens. A sequence's new token depends on its name and place."""
    seen = []
    for run in scheduler.plan():
        track = run.track
        seen.append((track.owner, run.past, run.count))
        scheduler.advance(track, run.count - len(track.drafts))
        ready = [track, *scheduler.follow(track)] if run.rows else []
        for one in ready:
            one.tokens.append(1000 + 100 * ord(one.owner[0]) + len(one.tokens))
            one.drafts = []
            if len(one.tokens) >= one.longest or one.owner in stops:
                scheduler.finish(one)
    return seen


def prompt(first: int, length: int) -> list[int]:
    return list(range(first, first + length))


def test_decoding_comes_first_and_prompts_in_chunks() -> None:
    scheduler = make()
    scheduler.add("a", prompt(0, 5), 30)
    assert step(scheduler) == [("a", 0, 5)]
    scheduler.add("b", prompt(100, 20), 30)
    scheduler.add("c", prompt(200, 3), 30)
    assert step(scheduler) == [("a", 5, 1), ("b", 0, 7)]
    assert step(scheduler) == [("a", 6, 1), ("b", 7, 7)]
    assert step(scheduler) == [("a", 7, 1), ("b", 14, 6), ("c", 0, 1)], "what is left of the budget goes to the next"
    assert step(scheduler) == [("a", 8, 1), ("b", 20, 1), ("c", 1, 2)]


def test_prompts_advance_even_when_decoding_takes_the_budget() -> None:
    scheduler = make(max_batch=12, step_tokens=2)
    for name in "abcdef":
        scheduler.add(name, prompt(ord(name) * 10, 2), 30)
    for _ in range(6):
        step(scheduler)
    assert len(scheduler.decoding()) == 6
    scheduler.add("z", prompt(5000, 4), 30)
    assert [seen for seen in step(scheduler) if seen[0] == "z"] == [("z", 0, 2)]


def test_equal_prompts_are_computed_once() -> None:
    scheduler = make(step_tokens=4)
    for name in "abc":
        scheduler.add(name, prompt(0, 7), 20)
    scheduler.add("d", prompt(50, 3), 20)
    assert step(scheduler) == [("a", 0, 4)]
    assert step(scheduler) == [("a", 4, 3), ("d", 0, 1)], "others may pass those that wait for a known beginning"
    assert {track.owner for track in scheduler.running} == {"a", "b", "c", "d"}
    lasts = {track.blocks[3] for track in scheduler.running if track.owner in "abc"}
    fulls = {tuple(track.blocks[:3]) for track in scheduler.running if track.owner in "abc"}
    assert (len(lasts), len(fulls)) == (3, 1), "full blocks are shared, the last one is each one's own"
    assert [track.cached for track in scheduler.running] == [0, 7, 7, 0]
    assert step(scheduler) == [("a", 7, 1), ("b", 7, 1), ("c", 7, 1), ("d", 1, 2)]


def test_a_beginning_that_another_is_computing_is_waited_for() -> None:
    scheduler = make(step_tokens=4)
    scheduler.add("a", [*prompt(0, 8), 90], 20)
    scheduler.add("b", [*prompt(0, 8), 91, 92], 20)
    assert step(scheduler) == [("a", 0, 4)]
    assert step(scheduler) == [("a", 4, 4)]
    assert step(scheduler) == [("a", 8, 1), ("b", 8, 2)]


def test_a_finished_sequence_leaves_its_beginning_behind() -> None:
    scheduler = make(step_tokens=100)
    scheduler.add("a", prompt(0, 7), 12)
    while scheduler.running or scheduler.waiting:
        step(scheduler)
    known = [*prompt(0, 7), *(1000 + 9700 + n for n in range(7, 11))]
    track = scheduler.add("b", [*known, 5], 20)
    assert step(scheduler) == [("b", 10, 2)], "prompt and answer, up to the last full block"
    assert track.cached == 10


def test_the_whole_of_a_known_prompt_still_has_its_last_token_computed() -> None:
    scheduler = make(step_tokens=100)
    scheduler.add("a", prompt(0, 8), 9)
    step(scheduler)
    scheduler.add("b", prompt(0, 8), 9)
    assert step(scheduler) == [("b", 6, 2)]


def test_the_youngest_gives_way_and_loses_nothing() -> None:
    scheduler = make(blocks=9, step_tokens=100)  # 8 blocks of 2
    first, second = scheduler.add("a", prompt(0, 4), 14), scheduler.add("b", prompt(50, 4), 14)
    while not scheduler.preemptions:
        step(scheduler)
    assert (scheduler.running, list(scheduler.waiting)) == ([first], [second])
    kept = second.tokens.copy()
    while scheduler.running or scheduler.waiting:
        step(scheduler)
    assert second.tokens[: len(kept)] == kept
    assert second.tokens == [*prompt(50, 4), *(1000 + 9800 + n for n in range(4, 14))]
    assert scheduler.pool.available == scheduler.pool.usable
    assert second.cached == 0, "what it computes again does not count as cached"


def test_whoever_gave_way_comes_before_those_that_never_ran() -> None:
    scheduler = make(blocks=9, step_tokens=100)
    scheduler.add("a", prompt(0, 4), 14)
    second = scheduler.add("b", prompt(50, 4), 14)
    scheduler.add("c", prompt(80, 9), 16)
    while not scheduler.preemptions:
        step(scheduler)
    assert scheduler.waiting[0] is second


def test_nobody_is_let_in_to_be_sent_back_at_once() -> None:
    """Those that run want a block each before long; a newcomer must fit besides."""
    scheduler = make(blocks=9, step_tokens=100)  # 8 blocks of 2
    scheduler.add("a", prompt(0, 4), 8)
    scheduler.add("b", prompt(50, 4), 8)
    step(scheduler)
    scheduler.add("c", prompt(80, 7), 10)
    step(scheduler)
    assert [track.owner for track in scheduler.waiting] == ["c"]
    while scheduler.running or scheduler.waiting:
        step(scheduler)
    assert scheduler.preemptions == 0


def test_memory_is_waited_for_in_order() -> None:
    """A short one behind one that does not fit yet does not overtake it."""
    scheduler = make(blocks=11, step_tokens=100)
    scheduler.add("a", prompt(0, 8), 16)
    step(scheduler)
    scheduler.add("b", prompt(50, 14), 16)
    scheduler.add("c", prompt(80, 2), 4)
    order: list[str] = []
    while scheduler.running or scheduler.waiting:
        order += [name for name, _, _ in step(scheduler) if name not in order]
    assert order == ["a", "b", "c"]


def test_drafts_take_memory_only_where_there_is_some() -> None:
    scheduler = make(blocks=5, step_tokens=100)  # 4 blocks of 2
    a = scheduler.add("a", prompt(0, 5), 8)
    step(scheduler)
    a.drafts = [7, 7]
    assert [(run.past, run.count) for run in scheduler.plan()] == [(5, 3)]
    assert len(a.blocks) == 4
    short = make(blocks=4, step_tokens=100)
    track = short.add("b", prompt(0, 3), 6)
    step(short)
    track.drafts = [7, 7, 7, 7]
    (run,) = short.plan()
    assert run.count == 3, "cut to the memory there is"
    assert track.drafts == [7, 7]
    assert short.preemptions == 0


def test_removing_from_anywhere() -> None:
    scheduler = make(max_batch=1)
    tracks = [scheduler.add(name, prompt(ord(name) * 10, 4), 10) for name in "abc"]
    step(scheduler)
    scheduler.remove([tracks[0], tracks[1]])
    scheduler.remove([tracks[0]])
    assert (scheduler.running, list(scheduler.waiting)) == ([], [tracks[2]])
    assert scheduler.pool.available == scheduler.pool.usable


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(8, 30), st.integers(1, 5), st.integers(1, 12))
def test_everybody_ends_with_the_right_tokens(seed: int, blocks: int, max_batch: int, step_tokens: int) -> None:
    """Random arrivals and cancellations in tiny memory: tokens as if alone, in bounded time, and no block is lost."""
    chance = random.Random(seed)
    scheduler = make(blocks, max_batch=max_batch, step_tokens=step_tokens)
    alive: list[Track[str]] = []
    for number in range(12):
        start = [1, 2, 3, 4, 5][: chance.randint(0, 5)]
        own = [chance.randint(0, 2) for _ in range(chance.randint(1, 5))]
        longest = min(len(start) + len(own) + chance.randint(1, 8), 2 * (blocks - 1))
        if len(start) + len(own) < longest:
            alive.append(scheduler.add(chr(97 + number), [*start, *own], longest))
        for _ in range(chance.randint(0, 3)):
            _checked_step(scheduler)
        if chance.random() < 0.2 and alive:
            scheduler.remove([alive.pop(chance.randrange(len(alive)))])
    for _ in range(4000):
        if not (scheduler.running or scheduler.waiting):
            break
        _checked_step(scheduler)
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.pool.available == scheduler.pool.usable
    assert not scheduler.table_RM.any()
    for track in alive:
        made = [1000 + 100 * ord(track.owner[0]) + n for n in range(track.prompt_length, track.longest)]
        assert track.tokens[track.prompt_length :] == made


def _checked_step(scheduler: Scheduler[str]) -> None:
    chance = random.Random(sum(len(track.tokens) for track in scheduler.running))
    for track in scheduler.decoding():
        track.drafts = [0] * chance.randint(0, max(0, min(3, track.longest - len(track.tokens) - 1)))
    step(scheduler)
    for track in scheduler.running:
        assert scheduler.table_RM[track.row, : len(track.blocks)].tolist() == track.blocks
        assert track.computed <= len(track.blocks) * scheduler.pool.block_tokens
        assert track.computed < len(track.tokens) or not track.begun
    assert scheduler.running == sorted(scheduler.running, key=lambda track: track.number)
    assert len(scheduler.running) <= scheduler.max_batch


def test_runs_say_which_logits_are_wanted() -> None:
    scheduler = make(step_tokens=4)
    track = scheduler.add("a", prompt(0, 6), 20)
    assert scheduler.plan() == [Run(track, 0, 4, 0)]
    scheduler.advance(track, 4)
    assert scheduler.plan() == [Run(track, 4, 2, 1)]
