"""The block pool and its prefix tree, without any tensor."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.engine.prefix import NULL_BLOCK, BlockPool


def held(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks of a sequence with these tokens, full ones in the tree."""
    size = pool.block_tokens
    blocks = pool.match(tokens, len(tokens))
    pool.share(blocks)
    while len(blocks) < pool.blocks_for(len(tokens)):
        blocks.append(pool.allocate())
    for at in range(len(tokens) // size):
        blocks[at] = pool.keep(blocks[at - 1] if at else None, blocks[at], tokens[at * size : (at + 1) * size])
    return blocks


def test_equal_beginnings_share_blocks() -> None:
    pool = BlockPool(20, 4)
    first = held(pool, list(range(10)))
    second = held(pool, [*range(8), 99, 98, 97])
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert [pool.uses(block) for block in (*first, second[2])] == [2, 2, 1, 1]
    assert pool.match([*range(8), 1], 9) == first[:2]
    assert pool.match(list(range(8)), 7) == first[:1], "no more than asked for"
    assert pool.match([1, *range(8)], 9) == []
    assert pool.match([*range(4), 9, 9, 9, 9, *range(8, 12)], 12) == first[:1]


def test_released_blocks_stay_until_memory_is_needed() -> None:
    pool = BlockPool(6, 2)
    old, new = held(pool, [1, 2, 3, 4]), held(pool, [5, 6])
    pool.release(old)
    pool.release(new)
    assert (pool.available, pool.idle) == (5, 3)
    assert pool.match([1, 2, 3, 4], 4) == old
    taken = [pool.allocate() for _ in range(3)]  # two were free; the third is the oldest idle one, and not a parent
    assert pool.match([1, 2, 3, 4], 4) == old[:1]
    assert pool.match([5, 6], 2) == new
    pool.share(old[:1])  # used again: now the youngest
    pool.release(old[:1])
    assert pool.allocate() == new[0]
    assert pool.match([1, 2], 2) == old[:1]
    assert NULL_BLOCK not in taken


def test_a_block_computed_twice_is_kept_once() -> None:
    pool = BlockPool(6, 2)
    first, second = pool.allocate(), pool.allocate()
    assert pool.keep(None, first, [1, 2]) == first
    assert pool.keep(None, second, [1, 2]) == first
    assert (pool.uses(first), pool.uses(second)) == (2, 0)
    assert pool.available == 4


def test_dropped_blocks_are_not_found_again() -> None:
    pool = BlockPool(8, 2)
    used, idle = held(pool, [1, 2, 3, 4]), held(pool, [7, 8])
    pool.release(idle)
    pool.drop([used[0], idle[0]])
    assert pool.match([1, 2, 3, 4], 4) == []
    assert pool.match([7, 8], 2) == []
    child = pool.allocate()
    assert pool.keep(used[0], child, [9, 9]) == child, "below a dropped block nothing is kept"
    pool.release([*used, child])
    assert pool.available == pool.usable
    assert held(pool, [1, 2, 3, 4]) != []


def test_reset_forgets_everything() -> None:
    pool = BlockPool(8, 2)
    pool.release(held(pool, [1, 2, 3, 4]))
    running = held(pool, [5, 6])
    pool.reset()
    assert pool.match([1, 2, 3, 4], 4) == []
    assert pool.match([5, 6], 2) == []
    assert pool.idle == 0
    pool.release(running)
    assert pool.available == pool.usable


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 24))
def test_blocks_are_never_lost_or_given_twice(seed: int, blocks: int) -> None:
    """Sequences over a tiny alphabet come and go at random; a dictionary of contents says what each block must hold."""
    chance, pool = random.Random(seed), BlockPool(blocks, 2)
    alive: list[tuple[list[int], list[int]]] = []
    content: dict[int, tuple[int, ...]] = {}  # all tokens up to the end of a full block
    for _ in range(60):
        tokens = [chance.randint(0, 1) for _ in range(chance.randint(1, 9))]
        known = pool.match(tokens, len(tokens))
        for at, block in enumerate(known):
            assert content[block] == tuple(tokens[: 2 * at + 2])
        room = pool.available - pool.reclaimable(known)
        if pool.blocks_for(len(tokens)) - len(known) <= room and chance.random() < 0.6:
            mine = held(pool, tokens)
            for at in range(len(tokens) // 2):
                content[mine[at]] = tuple(tokens[: 2 * at + 2])
            alive.append((tokens, mine))
        elif alive:
            pool.release(alive.pop(chance.randrange(len(alive)))[1])
        uses = [0] * blocks
        for tokens, mine in alive:
            assert len(set(mine)) == len(mine)
            for at, block in enumerate(mine):
                uses[block] += 1
                assert 2 * at + 2 > len(tokens) or content[block] == tuple(tokens[: 2 * at + 2])
        assert uses == [pool.uses(block) for block in range(blocks)]
        assert pool.available == pool.usable - sum(map(bool, uses))
        assert uses[NULL_BLOCK] == 0
    for _, mine in alive:
        pool.release(mine)
    assert sorted(pool.allocate() for _ in range(pool.usable)) == list(range(1, blocks))
