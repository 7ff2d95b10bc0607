"""The engine on tiny random weights: against `transformers`, against the trainer's forward, and against itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from codemill.core.contracts import Message, Request, Sampling
from codemill.engine.engine import Engine
from codemill.engine.sampling import truncated
from tiny import tiny_checkpoint

PROMPTS = [
    "def f(x):\n",
    "a",
    "class Thing:\n    def method(self, value):\n        return",
    "x = [1, 2",
    "import os\n" * 5,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


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


def test_truncation() -> None:
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    assert torch.isfinite(truncated(logits, Sampling(top_k=2))).tolist() == [True, True, False, False]
    # probabilities .644 .237 .087 .032: the token that crosses the border stays
    assert torch.isfinite(truncated(logits, Sampling(top_p=0.7))).tolist() == [True, True, False, False]
    assert torch.isfinite(truncated(logits, Sampling(top_p=0.6))).tolist() == [True, False, False, False]
    assert torch.isfinite(truncated(logits, Sampling(top_p=1.0, top_k=9))).all()


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


def test_closing_the_iterator_cancels(engine: Engine) -> None:
    iterator = engine.generate(requests(max_tokens=50))
    next(iterator)
    iterator.close()
    assert len(list(engine.generate(requests(max_tokens=2)))) == len(PROMPTS)
