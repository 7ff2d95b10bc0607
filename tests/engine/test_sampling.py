"""From logits to tokens: against `transformers`' processors, against chance, and against bad values."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from codemill.core.contracts import Constraint, Sampling
from codemill.core.errors import InputError
from codemill.engine import draw as drawing
from codemill.engine.draw import Row, draw, keep
from codemill.engine.sampling import Sampler, check_sampling, choose
from codemill.models.tokenizer import Tokenizer
from tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def sampler(tokenizer: Tokenizer, vocab: int, name: str = "a", prompt: tuple[int, ...] = (1,), **how: Any) -> Sampler:
    return Sampler(Sampling(**how), name, prompt, tokenizer, vocab, frozenset({vocab - 1}))


def theirs(logits_V: Tensor, prompt: tuple[int, ...], how: Sampling) -> Tensor:
    chain = LogitsProcessorList()
    if how.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(how.repetition_penalty))
    chain.append(TemperatureLogitsWarper(how.temperature))
    if how.top_k:
        chain.append(TopKLogitsWarper(how.top_k))
    if how.top_p < 1:
        chain.append(TopPLogitsWarper(how.top_p))
    if how.min_p:
        chain.append(MinPLogitsWarper(how.min_p))
    scores = logits_V.float()[None].clone()
    for token, bias in how.logit_bias.items():
        scores[0, token] += bias
    return chain(torch.tensor([prompt]), scores)[0].log_softmax(-1)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from([40, 3000]),
    st.sampled_from([0.5, 2.0, 6.0]),
    st.sampled_from([0.3, 0.8, 1.0, 1.7]),
    st.sampled_from([0, 1, 7, 50, 5000]),
    st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    st.sampled_from([0.0, 0.05, 0.3]),
    st.sampled_from([1.0, 1.2, 0.8]),
    st.booleans(),
)
def test_distributions_equal_transformers(
    tokenizer: Tokenizer, seed: int, vocab: int, spread: float, t: float, k: int, p: float, m: float, penalty: float, ties: bool
) -> None:  # fmt: skip
    """Order of the steps, what is kept at a border, and ties, of which bf16 has many."""
    torch.manual_seed(seed)
    logits = torch.randn(vocab) * spread
    logits = logits.bfloat16() if ties else logits
    how = Sampling(
        temperature=t, top_k=k, top_p=p, min_p=m, repetition_penalty=penalty, logit_bias={3: 2.5, 5: -30.0} if seed % 2 else {}
    )  # fmt: skip
    prompt = (1, 2, 3, 3, vocab - 1)
    mine = Sampler(how, "a", prompt, tokenizer, vocab, frozenset()).distribution(logits)
    expected = theirs(logits, prompt, how)
    if p == 1:  # which of equal tokens at the border of top-p stay, their unstable sort leaves to chance
        assert torch.isfinite(mine).equal(torch.isfinite(expected))
    mine, expected = mine.sort(descending=True).values, expected.sort(descending=True).values
    inside = torch.isfinite(expected)
    assert torch.isfinite(mine).equal(inside)
    assert (mine[inside] - expected[inside]).abs().max() < 1e-4


def test_of_ties_at_the_border_of_top_p_the_highest_ids_stay(tokenizer: Tokenizer) -> None:
    logits = torch.zeros(10)
    logits[2] = 3.0
    kept = torch.isfinite(sampler(tokenizer, 10, temperature=1.0, top_p=0.75).distribution(logits))
    assert kept.nonzero().flatten().tolist() == [2, 8, 9]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 20), st.sampled_from([1.0, 3.0, 9.0]), st.sampled_from([0.5, 0.8, 1.0, 1.5]), st.sampled_from([1.0, 0.9]), st.sampled_from([0, 20]), st.sampled_from([0.0, 1e-7, 0.1]))  # fmt: skip
def test_a_look_at_the_likeliest_alone_decides_the_same(
    seed: int, spread: float, t: float, p: float, k: int, m: float
) -> None:
    """The short way either gives what the long way gives, or says that it cannot tell."""
    x = np.random.default_rng(seed).normal(0, spread, 2000).astype(np.float32)
    how = Sampling(temperature=t, top_p=p, top_k=k, min_p=m)
    short, long = keep(Row.of(x), how), keep(Row.of(x), how, everything=True)
    assert short.values_C.tolist() == long.values_C[: len(short.values_C)].tolist()
    assert len(short.values_C) == len(long.values_C) or not short.whole
    assert abs(short.total / long.total - 1) < 1e-4


@pytest.mark.parametrize(
    "how",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=1.3),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=1.0, top_k=6),
    ],
)
@pytest.mark.parametrize("near", [12.0, 0.5])
def test_the_draw_follows_the_distribution(how: Sampling, near: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers spread evenly over [0, 1) give every token its share, those far below the likeliest as well."""
    monkeypatch.setattr(drawing, "_NEAR", near)
    x = (np.random.default_rng(1).normal(0, 1.0, 40)).astype(np.float32)
    x[7] = x[9] = x[11]  # ties are tokens like others
    x[13] = -np.inf
    row, count = Row.of(x), 10_000
    drawn = Counter(draw(row, how, (i + 0.5) / count) for i in range(count))
    expected = drawing.distribution(row, how)
    for token in range(40):
        share = sum(n for (t, _), n in drawn.items() if t == token) / count
        assert abs(share - math.exp(expected[token])) < 1.01 / count + 1e-5
    for token, logprob in drawn:
        assert abs(logprob - expected[token]) < 1e-5


def test_the_ends_of_the_uniform_number_are_possible_tokens() -> None:
    x = np.full(50, -np.inf, np.float32)
    x[[3, 30]] = 1.0, -40.0
    for uniform in (0.0, 1 - 2.0**-53):
        for t in (0.5, 1.0, 4.0):
            assert draw(Row.of(x), Sampling(temperature=t), uniform)[0] in (3, 30)


# Batches


def test_greedy_is_the_likeliest_with_the_raw_logprob_twice(tokenizer: Tokenizer) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = (torch.randn(4, 300, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
        with torch.inference_mode():
            found = choose(logits, [(sampler(tokenizer, 300, top_logprobs=3), ()) for _ in range(4)])
        expected = logits.float().log_softmax(-1)
        for row, (choice,) in enumerate(found):
            assert choice.logprob == choice.raw_logprob == pytest.approx(float(expected[row].max()), abs=1e-5)
            assert expected[row, choice.token] == expected[row].max()
            assert [t for t, _ in choice.top] == expected[row].topk(3).indices.tolist()
            assert [p for _, p in choice.top] == pytest.approx(expected[row].topk(3).values.tolist(), abs=1e-5)


def test_both_logprobs_of_a_sampled_token(tokenizer: Tokenizer) -> None:
    logits = torch.randn(60, 300, generator=torch.Generator().manual_seed(1)) * 3
    how = {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.3, "logit_bias": {5: 3.0}}
    found = choose(logits, [(sampler(tokenizer, 300, str(i), **how), ()) for i in range(60)])
    for row, (choice,) in enumerate(found):
        own = sampler(tokenizer, 300, **how).distribution(logits[row])
        assert choice.logprob == pytest.approx(float(own[choice.token]), abs=1e-5)
        assert choice.raw_logprob == pytest.approx(float(logits[row].log_softmax(-1)[choice.token]), abs=1e-5)


def test_greedy_with_a_bias_or_a_penalty(tokenizer: Tokenizer) -> None:
    logits = torch.randn(300, generator=torch.Generator().manual_seed(2))
    changed = logits.clone()
    changed[17] += 9
    ((choice,),) = choose(logits[None], [(sampler(tokenizer, 300, logit_bias={17: 9.0}, top_p=0.1), ())])
    assert choice.token == 17
    assert choice.logprob == pytest.approx(float(changed.log_softmax(-1)[17]), abs=1e-5)
    assert choice.raw_logprob == pytest.approx(float(logits.log_softmax(-1)[17]), abs=1e-5)
    one = sampler(tokenizer, 300, logit_bias={17: 9.0})
    assert one.distribution(logits)[17] == pytest.approx(choice.logprob, abs=1e-5)


def test_the_penalty_counts_prompt_and_answer(tokenizer: Tokenizer) -> None:
    logits = torch.zeros(1, 300)
    logits[0, :4] = torch.tensor([4.0, 3.9, 3.8, 3.7])
    one = sampler(tokenizer, 300, prompt=(0,), repetition_penalty=2.0)
    assert [choose(logits, [(one, ())])[0][0].token for _ in range(4)] == [1, 2, 3, 0]
    assert logits[0, 0] == 4.0, "the logits are not written to"


def test_a_draw_depends_on_seed_id_and_place_only(tokenizer: Tokenizer) -> None:
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(3))

    def tokens(name: str, beside: int, **how: Any) -> list[int]:
        batch = [sampler(tokenizer, 300, f"{name}{n or ''}", temperature=1.0, **how) for n in range(beside + 1)]
        return [choose(logits.repeat(len(batch), 1), [(one, ()) for one in batch])[0][0].token for _ in range(30)]

    alone = tokens("x", 0)
    assert alone == tokens("x", 5)
    assert len(set(alone)) > 10, "each place has its own number"
    assert alone != tokens("y", 0)
    assert alone != tokens("x", 0, seed=1)


# Drafts


def test_drafts_never_change_a_token(tokenizer: Tokenizer) -> None:
    """Greedy, sampled, penalised, constrained: with right, wrong and half-right drafts the same tokens as without."""
    rows = torch.randn(40, 262, generator=torch.Generator().manual_seed(4)) * 4
    regex = Constraint(kind="regex", text="[a-e]{40}")
    for how in ({}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9}, {"repetition_penalty": 1.5}, {"constraint": regex, "temperature": 1.0}):  # fmt: skip
        plain = sampler(tokenizer, 262, **how)
        expected = [choose(rows[i : i + 1], [(plain, ())])[0][0] for i in range(20)]
        drafted, got, step = sampler(tokenizer, 262, **how), [], 0
        while len(got) < 15:
            at, step = len(got), step + 1
            draft = tuple(c.token for c in expected[at : at + 3])
            if step % 2:
                draft = (*draft[:1], (draft[1] + 1) % 200, draft[2])
            (choices,) = choose(rows[at : at + 4], [(drafted, draft)])
            assert len(choices) == (2 if step % 2 else 4)
            got += choices
        for mine, one in zip(got, expected, strict=False):
            assert mine.token == one.token
            assert mine.logprob == pytest.approx(one.logprob, abs=1e-5)


@pytest.mark.parametrize("drafted", [0, 3, 5])
def test_sampled_drafts_keep_the_distribution(tokenizer: Tokenizer, drafted: int) -> None:
    """Chi-square over 8,000 drafts: the token that takes the draft's place is distributed as without one, and the draft is
    kept as often as it is likely."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -1e4]).repeat(2, 1)
    probability, count = logits[0].softmax(-1), 8_000
    first, second = torch.zeros(7), torch.zeros(7)
    spans = [(sampler(tokenizer, 7, f"s{i}", temperature=1.0), (drafted,)) for i in range(count)]
    for choices in choose(logits.repeat(count, 1), spans):
        first[choices[0].token] += 1
        assert len(choices) == (2 if choices[0].token == drafted else 1)
        if len(choices) == 2:
            second[choices[1].token] += 1
    for observed in (first, second):
        expected = probability * observed.sum()
        assert float(((observed - expected) ** 2 / expected)[:6].sum()) < 20.5, (
            "0.1 % of chi-square with 5 degrees of freedom"
        )


def test_nothing_is_chosen_behind_a_stop_token(tokenizer: Tokenizer) -> None:
    logits = torch.zeros(4, 10)
    logits[:, 9] = 5.0
    (choices,) = choose(logits, [(sampler(tokenizer, 10), (9, 9, 9))])
    assert [c.token for c in choices] == [9]


# What is broken or wrong


def test_broken_logits_end_their_own_sequence_only(tokenizer: Tokenizer) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(5)).to(dtype)
        logits[1, 7] = math.nan
        logits[3] = math.nan
        logits[4, 3] = math.inf
        logits[6] = -math.inf
        for how in ({}, {"temperature": 1.0, "top_p": 0.9}, {"logit_bias": {1: 1.0}}):
            with torch.inference_mode():
                found = choose(
                    logits, [(sampler(tokenizer, 300, **how), (2,) if i == 2 else ()) for i in (0, 1, 2, 4, 5, 6, 7)]
                )
            tokens = [choices[0].token for choices in found]
            assert [i for i, token in enumerate(tokens) if token < 0] == [1, 3, 5]
            assert math.isnan(found[1][0].logprob)


def test_a_broken_row_behind_a_draft(tokenizer: Tokenizer) -> None:
    logits = torch.zeros(2, 10)
    logits[0, 4], logits[1, 0] = 3.0, math.nan
    (choices,) = choose(logits, [(sampler(tokenizer, 10), (4,))])
    assert [c.token for c in choices] == [4, -1]


BAD: list[dict[str, Any]] = [
    {"max_tokens": 0}, {"max_tokens": 1.5}, {"max_tokens": True},
    {"temperature": math.nan}, {"temperature": -1.0}, {"temperature": math.inf}, {"temperature": 1e-300}, {"temperature": "1"},
    {"top_k": -1}, {"top_k": 2.5}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_p": math.nan}, {"min_p": -0.1}, {"min_p": 2.0},
    {"repetition_penalty": 0.0}, {"repetition_penalty": math.nan}, {"repetition_penalty": 1e30}, {"top_logprobs": -1},
    {"top_logprobs": 101}, {"seed": 0.5}, {"seed": None}, {"logit_bias": {3: math.nan}}, {"logit_bias": {3: 1e300}},
    {"logit_bias": {"3": 1.0}}, {"stop": ("",)}, {"stop": ("x" * (1 << 20),)}, {"stop": ("a",) * 65}, {"stop": ("\ud800",)},
    {"stop": (b"a",)},
]  # fmt: skip


@pytest.mark.parametrize("how", BAD, ids=lambda how: repr(how)[:40])
def test_values_without_sense(how: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        check_sampling(Sampling(**how), "request a")
    assert str(caught.value).startswith("request a: ")
    assert len(str(caught.value)) < 250
    assert next(iter(how)).split("_")[0] in str(caught.value)


def test_values_at_the_edge_of_sense() -> None:
    how = Sampling(
        temperature=1, top_k=10**6, top_p=1, min_p=1, seed=-(10**30), stop=("x" * 10_000,) * 64, top_logprobs=100
    )
    check_sampling(how, "a")
    check_sampling(replace(how, temperature=0, logit_bias={0: -100, 1: 100.0}, repetition_penalty=1), "a")


@pytest.mark.parametrize("how", [{"logit_bias": {300: 1.0}}, {"logit_bias": {-1: 1.0}}, {"stop_token_ids": (300,)}])
def test_token_ids_outside_the_vocabulary(tokenizer: Tokenizer, how: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"request a: .*outside 0\.\.299"):
        sampler(tokenizer, 300, **how)


def test_extremes_of_temperature(tokenizer: Tokenizer) -> None:
    logits = torch.tensor([[30.0, 29.0, -40.0]])
    ((cold,),) = choose(logits, [(sampler(tokenizer, 3, temperature=1e-6), ())])
    assert (cold.token, cold.logprob) == (0, 0.0)
    drawn = Counter(
        choose(logits, [(sampler(tokenizer, 3, str(i), temperature=1e6), ())])[0][0].token for i in range(900)
    )
    assert all(abs(n - 300) < 90 for n in drawn.values())
    assert len(drawn) == 3


def test_plain_is_said_truly(tokenizer: Tokenizer) -> None:
    assert sampler(tokenizer, 300, top_p=0.5, top_k=3).plain
    for how in ({"temperature": 0.1}, {"logit_bias": {1: 1.0}}, {"repetition_penalty": 1.1}, {"constraint": Constraint(kind="regex", text="a")}):  # fmt: skip
        assert not sampler(tokenizer, 300, **how).plain
