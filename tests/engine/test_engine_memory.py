"""Little memory, known beginnings, drafts: whatever happens inside the engine, its answers stay the same."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import TEXT, answers, asked, check_empty, check_greedy, plain_greedy, tiny_engine
from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.core.contracts import Request, Sampling
from codemill.engine.cache import block_bytes
from codemill.engine.drafts import Ask
from codemill.engine.engine import Engine
from codemill.models.decoder import Decoder
from codemill.models.native import BLOCK_TOKENS
from tiny import tiny_checkpoint


def mixed(count: int, seed: int) -> list[Request]:
    """Requests of unlike lengths, some with a common beginning, greedy and sampled, one or several answers."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        text = TEXT[: chance.choice([0, 40, 64])] + "".join(
            chance.choice("ab(\n") for _ in range(chance.randint(1, 60))
        )
        how = Sampling(max_tokens=chance.randint(1, 30), temperature=chance.choice([0.0, 0.8]), seed=seed)
        made.append(Request(id=f"{seed}-{number}", prompt=text, sampling=how, n=chance.choice([1, 1, 3])))
    return made


@pytest.mark.parametrize("speculate", [False, True])
def test_greedy_equals_plain_decoding(folder: Path, speculate: bool) -> None:
    engine = tiny_engine(folder, 60, max_batch=4, step_tokens=24, speculate=speculate)
    texts = [TEXT * 2, TEXT[:50], TEXT * 2 + "x", "ab" * 30, "q"]
    for completion in engine.generate([asked(i, text, max_tokens=40) for i, text in enumerate(texts)]):
        prompt = engine.tokenizer.completion_prompt(texts[int(completion.request_id)])
        expected, gap = plain_greedy(engine.decoder, prompt, len(completion.token_ids))
        assert gap < 1e-4 or list(completion.token_ids) == expected
        check_greedy(engine, prompt, completion.token_ids)
    assert (engine.stats().accepted_tokens > 0) == speculate


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(8, 16), st.integers(1, 5), st.sampled_from([8, 40, 512]))
def test_tiny_memory_changes_no_answer(crowded: list[Engine], seed: int, blocks: int, batch: int, tokens: int) -> None:
    """Random arrivals and cancellations with hardly any memory, against an ample engine without any cache to reuse."""
    ample = crowded[0]
    small = Engine(
        ample.decoder, ample.tokenizer, max_batch=batch, step_tokens=tokens, kv_bytes=blocks * crowded_block(ample)
    )
    chance, wanted = random.Random(seed), mixed(6, seed)
    tickets = []
    for request in wanted:
        tickets.append(small.submit(request))
        for _ in range(chance.randint(0, 4)):
            small.step()
    gone = chance.choice(tickets)
    small.cancel(gone)
    while small.busy:
        small.step()
    check_empty(small)
    for ticket in tickets:
        if ticket is not gone:
            ample.reset_cache()
            assert answers(ticket.completions) == answers(list(ample.generate([ticket.request])))


@pytest.fixture(scope="module")
def crowded(folder: Path) -> list[Engine]:
    return [Engine.load(folder, dtype="fp32", device="cpu", speculate=False)]


def crowded_block(engine: Engine) -> int:
    return block_bytes(engine.decoder.config, torch.float32)


def test_preempted_samples_keep_their_random_stream(folder: Path) -> None:
    small, ample = tiny_engine(folder, 9, max_batch=4), tiny_engine(folder, 200, max_batch=1)
    wanted = [asked(i, "xyz"[i] * 40, max_tokens=80, temperature=1.0, seed=1) for i in range(3)]
    got = list(small.generate(wanted))
    assert small.stats().preemptions > 0
    assert answers(got) == answers(list(ample.generate(wanted)))
    assert all(completion.cached_tokens == 0 for completion in got)
    check_empty(small)


def test_samples_of_one_prompt_prefill_once(folder: Path) -> None:
    engine = tiny_engine(folder, 200, max_batch=32, speculate=False)
    widths = record_widths(engine)
    how = Sampling(max_tokens=5, temperature=1.0)
    text = TEXT * 2 + "x = "
    prompt = len(engine.tokenizer.completion_prompt(text))
    together = list(engine.generate([Request(id="a", prompt=text, sampling=how, n=16)]))
    assert widths[0] == prompt
    assert max(widths[1:]) <= 16
    assert sorted(c.index for c in together) == list(range(16))
    assert sorted(c.cached_tokens for c in together) == [0] + [prompt] * 15
    assert len({c.token_ids for c in together}) > 8, "they are different samples"
    engine.reset_cache()
    widths.clear()
    separate = list(engine.generate([Request(id=str(i), prompt=text, sampling=how) for i in range(16)]))
    assert (widths[0], max(widths[1:])) == (prompt, 16)
    assert len(separate) == 16
    (first,) = engine.generate([Request(id="a", prompt=text, sampling=how)])
    assert first.token_ids == next(c.token_ids for c in together if c.index == 0), "index 0 is what n = 1 gives"


@pytest.mark.parametrize("rest", [1, 2, 3, 4, 31])
def test_followers_begin_where_their_leader_ends(folder: Path, rest: int) -> None:
    """Whatever length the last chunk has: as many tokens as there are samples, among others."""
    engine = tiny_engine(folder, 100, step_tokens=BLOCK_TOKENS, speculate=False)
    text = (TEXT * 2)[: 2 * BLOCK_TOKENS + rest]
    prompt = engine.tokenizer.completion_prompt(text)
    for count in (2, 3, 4):
        engine.reset_cache()
        done = list(engine.generate([Request(id="a", prompt=text, sampling=Sampling(max_tokens=6), n=count)]))
        assert [completion.cached_tokens for completion in done[1:]] == [len(prompt)] * (count - 1)
        for completion in done:
            check_greedy(engine, prompt, completion.token_ids)


def test_logprobs_of_long_prompts_are_the_trainers(folder: Path) -> None:
    """Vector V10 again: in chunks, behind reused blocks, with drafts, after losing memory."""
    engine = tiny_engine(folder, 8, max_batch=4, step_tokens=24)
    wanted = [
        Request(id=str(i), prompt=(TEXT * 2)[: 40 + 17 * i], n=2, sampling=Sampling(max_tokens=60)) for i in range(5)
    ]
    done = list(engine.generate(wanted))
    assert engine.stats().preemptions > 0
    assert engine.stats().accepted_tokens > 0
    assert any(completion.cached_tokens % BLOCK_TOKENS == 0 < completion.cached_tokens for completion in done)
    for completion in done:
        prompt = engine.tokenizer.completion_prompt(wanted[int(completion.request_id)].prompt)
        row = [*prompt, *completion.token_ids]
        logits = engine.decoder.packed_logits(torch.tensor(row), [len(row)])[len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        for told in (completion.logprobs, completion.raw_logprobs):
            assert float((expected - torch.tensor(told)).abs().max()) < 1e-5


def record_widths(engine: Engine) -> list[int]:
    """The number of tokens of every forward from now on."""
    widths: list[int] = []
    forward = engine.decoder.forward

    def recorded(ids: torch.Tensor, positions: torch.Tensor, attend: Any) -> torch.Tensor:
        widths.append(len(ids))
        return forward(ids, positions, attend)

    engine.decoder.forward = recorded  # type: ignore[method-assign]
    return widths


def test_prefixes_are_reused_over_calls(folder: Path) -> None:
    engine = tiny_engine(folder, 100)
    (first,) = engine.generate([asked("a", TEXT * 2, max_tokens=40)])
    assert first.cached_tokens == 0
    whole = [*engine.tokenizer.completion_prompt(TEXT * 2), *first.token_ids]
    (turn,) = engine.generate([Request(id="b", prompt_ids=(*whole, 65), sampling=Sampling(max_tokens=8))])
    assert turn.cached_tokens == (len(whole) - 1) // BLOCK_TOKENS * BLOCK_TOKENS, "the answer is known as well"
    check_greedy(engine, [*whole, 65], turn.token_ids)
    engine.reset_cache()
    (again,) = engine.generate([asked("a", TEXT * 2, max_tokens=40)])
    assert (again.cached_tokens, again.token_ids) == (0, first.token_ids)


def test_an_edit_keeps_the_unchanged_part_of_the_prefix(folder: Path) -> None:
    engine = tiny_engine(folder, 100)
    how = Sampling(max_tokens=4)
    before = TEXT * 2
    list(engine.generate([Request(id="a", prompt=before, suffix="return total\n", sampling=how)]))
    (typed,) = engine.generate([Request(id="b", prompt=before + "re", suffix="return total\n", sampling=how)])
    assert typed.cached_tokens == (1 + len(before)) // BLOCK_TOKENS * BLOCK_TOKENS
    ids, _ = engine.encode(Request(id="b", prompt=before + "re", suffix="return total\n", sampling=how))
    check_greedy(engine, ids, typed.token_ids)


def test_changed_weights_reach_what_is_running(folder: Path, tmp_path: Path) -> None:
    """`reset_cache` in the middle: what was sampled stays, the rest is what the new weights say after it."""
    engine = tiny_engine(folder, 100, speculate=False)
    ticket = engine.submit(asked("a", TEXT, max_tokens=30))
    for _ in range(10):
        engine.step()
    other = tiny_engine(tiny_checkpoint(tmp_path, seed=5), 100)
    engine.take_weights(other.decoder)
    while engine.busy:
        engine.step()
    (done,) = ticket.completions
    prompt = engine.tokenizer.completion_prompt(TEXT)
    check_greedy(other, [*prompt, *done.token_ids[:10]], done.token_ids[10:])
    assert len(done.token_ids) == 30
    row = [*prompt, *done.token_ids]
    with torch.inference_mode():
        expected = other.decoder.packed_logits(torch.tensor(row), [len(row)])[len(prompt) - 1 : -1].log_softmax(-1)
    for place in range(10, 30):
        assert abs(float(expected[place, done.token_ids[place]]) - done.logprobs[place]) < 1e-5


class Wrong:
    """A drafter that is never right, or always, and reads the hidden state as a model's own heads would."""

    reads_hidden = True

    def __init__(self, decoder: Decoder, right: bool) -> None:
        self.decoder, self.right = decoder, right
        self.alive: set[int] = set()

    def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
        drafts = []
        for ask in asks:
            self.alive.add(ask.sequence)
            assert ask.hidden_D is not None
            assert int(self.decoder.logits(ask.hidden_D[None]).argmax()) == ask.tokens[-1]
            (token, *more), _ = plain_greedy(self.decoder, ask.tokens, ask.most)
            drafts.append([token, *more] if self.right else [(token + 1) % 256, *more])
        return drafts

    def forget(self, sequence: int) -> None:
        self.alive.discard(sequence)


@pytest.mark.parametrize("right", [True, False])
def test_drafts_change_speed_only(folder: Path, right: bool) -> None:
    plain = tiny_engine(folder, 100, speculate=False)
    drafter = Wrong(plain.decoder, right)
    engine = Engine(plain.decoder, plain.tokenizer, drafter=drafter)
    wanted = [asked(i, text, max_tokens=30) for i, text in enumerate(["ab", TEXT, "zz" * 20])]
    expected, got = answers(list(plain.generate(wanted))), list(engine.generate(wanted))
    assert answers(got) == expected
    assert not drafter.alive
    drafted, accepted = (sum(getattr(c, name) for c in got) for name in ("drafted_tokens", "accepted_tokens"))
    assert drafted > 0
    assert accepted == (drafted if right else 0)
    assert engine.stats().steps < 20 if right else engine.stats().steps >= 30
    assert (engine.stats().drafted_tokens, engine.stats().accepted_tokens) == (drafted, accepted)


def test_drafts_keep_the_sampling_distribution(folder: Path) -> None:
    """The second token of many samples, its draft always the same: drawn as from the model itself."""
    engine = tiny_engine(folder, 400, max_batch=8)

    class Always:
        reads_hidden = False

        def propose(self, asks: Sequence[Ask]) -> list[list[int]]:
            return [[97] for _ in asks]

        def forget(self, sequence: int) -> None: ...

    count, ids = 3000, (100, 101)
    how = Sampling(max_tokens=3, temperature=0.7, top_k=4, seed=3)
    drafting = Engine(engine.decoder, engine.tokenizer, drafter=Always(), max_batch=8)
    done = list(drafting.generate([Request(id="s", prompt_ids=ids, sampling=how, n=1000)] * 3))
    pairs = Counter(c.token_ids[:2] for c in done if len(c.token_ids) >= 2)
    assert drafting.stats().drafted_tokens >= 900
    for first in {pair[0] for pair, seen in pairs.items() if seen > 250}:
        logits = engine.decoder.packed_logits(torch.tensor([*ids, first]), [3])[-1] / 0.7
        kept = torch.full_like(logits, -torch.inf).scatter(0, logits.topk(4).indices, logits.topk(4).values).softmax(-1)
        total = sum(seen for pair, seen in pairs.items() if pair[0] == first)
        for token in kept.nonzero()[:, 0].tolist():
            assert abs(pairs[first, token] / total - float(kept[token])) < 4.5 * (0.25 / total) ** 0.5
    assert len(done) == count
