"""The engine on tiny random weights: against `transformers`, against the trainer's forward, and against plain decoding."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_support import PROMPTS, TEXT, asked, check_empty, check_greedy, tiny_engine
from transformers import AutoModelForCausalLM

from codemill.core.contracts import Constraint, Message, Request, Sampling
from codemill.core.errors import ConfigError
from codemill.engine.engine import Engine, Piece
from codemill.models.native import BLOCK_TOKENS
from tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder, dtype="fp32", device="cpu", max_batch=3)


def requests(**sampling: object) -> list[Request]:
    return [Request(id=str(i), prompt=p, sampling=Sampling(**sampling)) for i, p in enumerate(PROMPTS)]  # type: ignore[arg-type]


def test_greedy_tokens_equal_transformers(folder: Path, engine: Engine) -> None:
    """Batch of 3 slots for 5 prompts of different lengths: sequences join and leave while others run."""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for completion in engine.generate(requests(max_tokens=20)):
        ids = torch.tensor([engine.tokenizer.completion_prompt(PROMPTS[int(completion.request_id)])])
        made = reference.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
        assert list(completion.token_ids) == made[: len(completion.token_ids)]
        assert len(completion.token_ids) == 20 or completion.token_ids[-1] in engine.tokenizer.stop_ids


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_equal_the_trainers_forward(engine: Engine, temperature: float) -> None:
    """Vector V10: what the sampler says a token's log-probability was, the trainer's full forward says too."""
    done = list(engine.generate(requests(max_tokens=24, temperature=temperature, seed=3)))
    rows = [engine.tokenizer.completion_prompt(PROMPTS[int(c.request_id)]) + list(c.token_ids) for c in done]
    logits = engine.decoder.packed_logits(torch.tensor(sum(rows, [])), [len(r) for r in rows])
    start = 0
    for row, completion in zip(rows, done, strict=True):
        scaled = logits[start : start + len(row)] / (temperature or 1.0)
        expected = scaled.log_softmax(-1)
        first = len(row) - len(completion.token_ids)
        for i, (token, logprob) in enumerate(zip(completion.token_ids, completion.logprobs, strict=True)):
            assert abs(float(expected[first + i - 1, token]) - logprob) < 1e-5
        start += len(row)


def test_a_sample_depends_on_its_seed_and_id_only(engine: Engine) -> None:
    together = {c.request_id: c.token_ids for c in engine.generate(requests(max_tokens=12, temperature=1.0, seed=7))}
    for request in requests(max_tokens=12, temperature=1.0, seed=7):
        (alone,) = engine.generate([request])
        assert alone.token_ids == together[request.id]
    other = {c.request_id: c.token_ids for c in engine.generate(requests(max_tokens=12, temperature=1.0, seed=8))}
    assert other != together


def test_sampling_follows_the_distribution(engine: Engine) -> None:
    count = 600
    many = [Request(id=str(i), prompt="ab", sampling=Sampling(max_tokens=1, temperature=1.0)) for i in range(count)]
    drawn = torch.bincount(torch.tensor([c.token_ids[0] for c in engine.generate(many)]), minlength=262) / count
    expected = engine.decoder.packed_logits(torch.tensor(engine.tokenizer.encode("ab")), [2])[-1].softmax(-1)
    assert (drawn - expected).abs().max() < 0.06


def test_stop_strings_are_found_across_tokens_and_cut_exactly(engine: Engine) -> None:
    (whole,) = engine.generate([Request(id="a", prompt="def", sampling=Sampling(max_tokens=30))])
    text = engine.tokenizer.decode_bytes(whole.token_ids)
    at = next(i for i in range(6, len(text) - 3) if text.find(text[i : i + 3]) == i and text[i : i + 3].isascii())
    stop = text[at : at + 3].decode()
    (cut,) = engine.generate([Request(id="a", prompt="def", sampling=Sampling(max_tokens=30, stop=("zzzz", stop)))])
    assert cut.finish_reason == "stop"
    assert cut.text.encode() == text[:at].decode("utf-8", "replace").encode()
    assert cut.token_ids == whole.token_ids[: at + 3]


def test_bad_requests_fail_alone(engine: Engine) -> None:
    bad = [
        Request(id="empty", prompt=""),
        Request(id="long", prompt="x" * 600),
        Request(id="ids", prompt_ids=(5, 10_000)),
        Request(id="temperature", prompt="a", sampling=Sampling(temperature=float("nan"))),
        Request(id="none", prompt="a", sampling=Sampling(max_tokens=0)),
        Request(id="stop", prompt="a", sampling=Sampling(stop=("",))),
    ]
    good = Request(id="good", prompt="a", sampling=Sampling(max_tokens=3))
    done = {c.request_id: c for c in engine.generate([*bad, good])}
    assert done["good"].finish_reason in ("length", "stop")
    for request in bad:
        assert done[request.id].finish_reason == "error", request.id
        assert request.id in done[request.id].error or "prompt" in done[request.id].error


def test_prompt_forms(engine: Engine, tmp_path: Path) -> None:
    infill, _ = engine.encode(Request(id="i", prompt="ab", suffix="cd"))
    assert infill == [259, 97, 98, 261, 99, 100, 260]
    chat, stops = engine.encode(Request(id="c", messages=(Message(role="user", content="hi"),)))
    assert engine.tokenizer.decode(chat, skip_special=False).startswith("<|im_start|>user\nhi<|im_end|>")
    assert 256 in stops
    short, _ = engine.encode(Request(id="s", prompt="abcdef", max_prompt_tokens=3))
    assert short == [100, 101, 102]
    plain = Engine.load(tiny_checkpoint(tmp_path, infills=False), dtype="fp32", device="cpu")
    assert not plain.infills
    (refused,) = plain.generate([Request(id="i", prompt="a", suffix="b")])
    assert "fill-in-the-middle" in refused.error


def test_packed_weights_give_the_same_tokens_in_bf16(folder: Path) -> None:
    from codemill.models.checkpoint import load_decoder
    from codemill.models.tokenizer import Tokenizer

    packed = Engine.load(folder, dtype="bf16", device="cpu")
    plain = Engine(load_decoder(folder, dtype="bf16", device="cpu"), Tokenizer.load(folder))
    asked = requests(max_tokens=6)
    ours = {c.request_id: c for c in packed.generate(asked)}
    for completion in plain.generate(asked):
        for a, b in zip(completion.logprobs, ours[completion.request_id].logprobs, strict=True):
            assert abs(a - b) < 0.05


def test_our_kernels_and_the_block_cache_agree_in_bf16(tmp_path: Path) -> None:
    """Sizes that the kernels know: chunks, followers, reused blocks and drafts give the log-probabilities of a whole forward
    by the same kernels, up to the rounding of bf16."""
    folder = tiny_checkpoint(tmp_path, hidden=256)
    engine = Engine.load(folder, dtype="bf16", device="cpu", max_batch=4, step_tokens=40)
    if engine.decoder.native is None:
        pytest.skip("no C++ compiler: torch's operations are used")
    texts = [(TEXT * 3)[: 30 + 37 * i] for i in range(5)]
    wanted = [Request(id=str(i), prompt=text, n=3, sampling=Sampling(max_tokens=40)) for i, text in enumerate(texts)]
    for turn in range(2):  # the second time the prompts are known
        done = list(engine.generate(wanted))
        assert any(completion.cached_tokens for completion in done)
        for completion in done:
            prompt = engine.tokenizer.completion_prompt(texts[int(completion.request_id)])
            row = [*prompt, *completion.token_ids]
            with torch.inference_mode():
                logits = engine.decoder.packed_logits(torch.tensor(row), [len(row)])[len(prompt) - 1 : -1].float()
            expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
            assert float((expected - torch.tensor(completion.logprobs)).abs().max()) < 0.06, turn
    assert engine.stats().accepted_tokens > 0
    check_empty(engine)


def test_closing_the_iterator_cancels(engine: Engine) -> None:
    iterator = engine.generate(requests(max_tokens=50))
    next(iterator)
    iterator.close()
    check_empty(engine)
    assert len(list(engine.generate(requests(max_tokens=2)))) == len(PROMPTS)


# Bad input


def test_a_request_that_can_never_fit_is_an_error_to_itself(folder: Path) -> None:
    engine = tiny_engine(folder, 5)
    big, good = asked("big", "x" * 100, max_tokens=100), asked("good", "x" * 100, max_tokens=20)
    done = {c.request_id: c for c in engine.generate([big, good])}
    assert "kv_bytes" in done["big"].error
    assert done["good"].finish_reason != "error"


def test_options_without_sense_are_refused(engine: Engine) -> None:
    for options in ({"max_batch": 0}, {"step_tokens": 0}, {"kv_bytes": 10}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            Engine(engine.decoder, engine.tokenizer, **options)  # type: ignore[arg-type]


def test_prompts_of_any_text_do_no_harm(engine: Engine) -> None:
    texts = ["\ud800 lone", "\x00\x01", "🏳️‍🌈" * 20, "\r\n" * 50, "<|endoftext|>"]
    done = list(engine.generate([asked(i, text, max_tokens=3) for i, text in enumerate(texts)]))
    assert all(completion.finish_reason != "error" for completion in done)
    assert len(done) == len(texts)


def test_nan_ends_one_sequence_alone(folder: Path) -> None:
    """A token whose embedding is NaN poisons the sequences that hold it, and nothing that runs beside or after them, though
    the same blocks are used again."""
    engine = tiny_engine(folder, 24, max_batch=4)
    decoder = engine.decoder
    decoder.head.weight = torch.nn.Parameter(decoder.head.weight.detach().clone())
    with torch.no_grad():
        decoder.embed[ord("!")] = float("nan")
    bad, good = "a" * 40 + "!" + "b" * 30, "a" * 40 + "?" + "b" * 30
    wanted = [
        asked(f"{kind}{i}", text, max_tokens=25) for i in range(3) for kind, text in (("bad", bad), ("good", good))
    ]
    done = {c.request_id: c for c in engine.generate(wanted)}
    for name, completion in done.items():
        if name.startswith("bad"):
            assert completion.finish_reason == "error"
            assert name in completion.error
            assert "NaN" in completion.error
        else:
            check_greedy(engine, engine.tokenizer.completion_prompt(good), completion.token_ids)
            assert len(completion.token_ids) == 25
    (broken,) = engine.generate([asked("bad", bad, max_tokens=5)])
    assert (broken.finish_reason, broken.cached_tokens) == ("error", BLOCK_TOKENS), "the good part of it is still known"
    assert not engine.cache.store_2LNCGK.isnan().any()
    for text in ("c" * 90, "d" * 90, good):
        (after,) = engine.generate([asked("after", text, max_tokens=25)])
        check_greedy(engine, engine.tokenizer.completion_prompt(text), after.token_ids)
    check_empty(engine)


def test_a_constraint_that_no_token_meets_ends_one_sequence_alone(folder: Path) -> None:
    """The reason is the constraint, not the weights; and what is known of the prompt stays known."""
    engine = tiny_engine(folder, 100)
    regex = Constraint(kind="regex", text="(ab){1,4}")
    met = Request(id="met", prompt=TEXT, sampling=Sampling(max_tokens=30, constraint=regex, logit_bias={97: -5.0}))
    unmet = replace(met, id="unmet", sampling=replace(met.sampling, logit_bias={97: -1e6}))
    done = {c.request_id: c for c in engine.generate([unmet, met, asked("free", TEXT, max_tokens=5)])}
    assert re.fullmatch("(ab){1,4}", done["met"].text)
    assert done["met"].finish_reason == "stop"
    assert done["free"].finish_reason == "length"
    assert done["unmet"].finish_reason in ("stop", "error")
    assert "NaN" not in done["unmet"].error
    check_empty(engine)


def test_submit_step_cancel(folder: Path) -> None:
    engine = tiny_engine(folder, 100, max_batch=2)
    assert engine.step() == []
    kept, gone, waits = (engine.submit(asked(name, name * 40, max_tokens=12)) for name in "abc")
    engine.step()
    assert (engine.stats().running, engine.stats().waiting) == (2, 1)
    engine.cancel(gone)
    engine.cancel(gone)
    finished = []
    while engine.busy:
        finished += engine.step()
    assert {c.request_id for c in finished} == {"a", "c"}
    assert [len(t.completions) for t in (kept, gone, waits)] == [1, 0, 1]
    engine.cancel(kept)
    check_empty(engine)


def test_a_bad_request_for_many_samples_is_one_error(engine: Engine) -> None:
    pieces: list[Piece] = []
    engine.submit(Request(id="none", prompt="", n=16), pieces.append)
    (done,) = engine.step()
    assert done.finish_reason == "error"
    assert [piece.completion for piece in pieces] == [done]
    (many,) = engine.generate([Request(id="many", prompt="a", n=10_000)])
    assert many.finish_reason == "error"
    (zero,) = engine.generate([Request(id="zero", prompt="a", n=0)])
    assert zero.finish_reason == "error"
