"""Constrained answers: always inside the constraint, ended by a stop token, whatever the model would rather say."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codemill.core.contracts import Constraint, Sampling
from codemill.core.errors import InputError
from codemill.engine.constraint import Guide
from codemill.engine.sampling import Sampler, choose
from codemill.models.tokenizer import Tokenizer
from tiny import tiny_checkpoint

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ab", "ü🦊"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["name", "n", "ok"],
    "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def write(tokenizer: Tokenizer, kind: Any, text: str, seed: int, *, most: int = 200, **how: Any) -> tuple[str, bool]:
    """An answer of a model that says anything; whether it ended itself."""
    vocab = tokenizer.vocab_size + 10  # rows of padding behind the tokens
    sampling = Sampling(constraint=Constraint(kind=kind, text=text), seed=seed, **{"temperature": 1.0, **how})
    one = Sampler(sampling, "a", (1,), tokenizer, vocab, tokenizer.stop_ids)
    chance, ids = torch.Generator().manual_seed(seed), []
    while len(ids) < most:
        ((choice,),) = choose(torch.randn(1, vocab, generator=chance) * 3, [(one, ())])
        assert choice.token >= 0, choice.error
        if choice.token in tokenizer.stop_ids:
            return tokenizer.decode(ids), True
        ids.append(choice.token)
    return tokenizer.decode(ids, skip_special=False), False


@pytest.mark.parametrize("seed", range(8))
def test_json_schema(tokenizer: Tokenizer, seed: int) -> None:
    text, ended = write(tokenizer, "json_schema", json.dumps(SCHEMA), seed, most=2000, top_p=0.9, top_k=40)
    found = json.loads(text)
    assert ended
    assert set(found) == {"name", "n", "ok"}
    assert found["name"] in ("ab", "ü🦊")
    assert 0 <= found["n"] <= 99


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pattern", ["[a-f]{2,5}", "(é|🦊){3}x?", "", "a+b|c"])
def test_regex(tokenizer: Tokenizer, pattern: str, seed: int) -> None:
    text, ended = write(tokenizer, "regex", pattern, seed, temperature=0.0 if seed == 0 else 1.0)
    assert ended
    assert re.fullmatch(pattern, text)


def test_grammar(tokenizer: Tokenizer) -> None:
    for seed in range(6):
        text, ended = write(tokenizer, "lark", 'start: "(" start ")" | "x"\n', seed)
        assert ended
        assert re.fullmatch(r"\(*x\)*", text)
        assert text.count("(") == text.count(")")


def test_the_end_forces_a_stop_token_and_nothing_else_allows_one(tokenizer: Tokenizer) -> None:
    guide = Guide.compile(Constraint(kind="regex", text="ab"), tokenizer, 300, "a")
    stops = frozenset({256, 258})
    for token in b"ab":
        assert np.flatnonzero(guide.allowed(stops)).tolist() == [token]
        guide.accept(token)
    assert np.flatnonzero(guide.allowed(stops)).tolist() == [256, 258]


def test_control_tokens_and_padding_are_never_inside(tokenizer: Tokenizer) -> None:
    guide = Guide.compile(Constraint(kind="regex", text=r"(?s).{5}<\|im_start\|>"), tokenizer, 300, "a")
    for token in b"a<|im":
        allowed = guide.allowed(tokenizer.stop_ids)
        assert not allowed[255:].any()
        assert allowed[:128].all()
        guide.accept(token)
    for token in b"<|im_start|>":
        assert np.flatnonzero(guide.allowed(tokenizer.stop_ids)).tolist() == [token]
        guide.accept(token)


def test_the_logprob_is_that_of_what_is_allowed(tokenizer: Tokenizer) -> None:
    how = Sampling(constraint=Constraint(kind="regex", text="[ab]"), temperature=0.5)
    one = Sampler(how, "a", (), tokenizer, 262, frozenset())
    logits = torch.zeros(262)
    logits[97], logits[120] = 1.0, 50.0
    expected = torch.tensor([2.0, 0.0]).log_softmax(0)
    assert one.distribution(logits)[[97, 98]].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert torch.isfinite(one.distribution(logits)).sum() == 2
    ((choice,),) = choose(logits[None], [(one, ())])
    assert choice.logprob == pytest.approx(float(expected[choice.token - 97]), abs=1e-6)
    assert choice.raw_logprob == pytest.approx(float(logits.log_softmax(0)[choice.token]), abs=1e-5)


def test_what_the_constraint_leaves_but_the_model_cannot_say(tokenizer: Tokenizer) -> None:
    one = Sampler(Sampling(constraint=Constraint(kind="regex", text="a")), "a", (), tokenizer, 262, frozenset())
    logits = torch.zeros(1, 262)
    logits[0, 97] = -torch.inf
    ((choice,),) = choose(logits, [(one, ())])
    assert choice.token == -1
    assert "constraint" in choice.error


def test_samples_and_threads_do_not_disturb_each_other(tokenizer: Tokenizer) -> None:
    def answers(seed: int) -> list[tuple[str, bool]]:
        return [write(tokenizer, "regex", "[a-f]{2,9}", seed + n) for n in range(4)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answers, range(12))) == [answers(seed) for seed in range(12)]


BAD = [
    ("json_schema", "nonsense", "not readable"),
    ("json_schema", "[1]", "must be a JSON object"),
    ("json_schema", '{"enum": []}', "nsatisfiable"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "nsatisfiable"),
    ("json_schema", '{"$ref": "#"}', "no text can meet it"),
    ("json_schema", '{"type": "objekt"}', "objekt"),
    ("json_schema", '{"uniqueItems": true, "type": "array"}', "uniqueItems"),
    ("json_schema", '{"$ref": "http://127.0.0.1:9/x"}', "does not fetch"),
    ("json_schema", '{"enum": ["' + "a" * 100_000 + '"]}', "make it smaller"),
    ("json_schema", '{"a":' * 70 + "1" + "}" * 70, "nested"),
    ("json_schema", json.dumps({"$defs": {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}, {}]} for i in range(1000)}}), "references"),
    ("regex", "(", "invalid regex"),
    ("regex", r"[^\s\S]", "no text can meet it"),
    ("regex", "a" * 20_000, "make it smaller"),
    ("regex", "\ud800", "surrogate"),
    ("lark", "start: x", "unknown name"),
    ("lark", "start: start", "no text can meet it"),
    ("lark", "start: a0\n" + "".join(f"a{i}: a{i + 1} a{i + 1}\n" for i in range(2000)), "lines"),
    ("xml", "a", "unknown kind"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "reason"), BAD, ids=lambda value: repr(value)[:30])
def test_constraints_that_cannot_be_used(tokenizer: Tokenizer, kind: Any, text: str, reason: str) -> None:
    """Said on one short line, which names the request; a second time as well."""
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            Sampler(Sampling(constraint=Constraint(kind=kind, text=text)), "r", (), tokenizer, 262, frozenset())
        message = str(caught.value)
        assert message.startswith("request r: ")
        assert reason in message
        assert len(message) < 600
        assert "\n" not in message


def test_a_constraint_that_becomes_too_complex_ends_its_own_sequence(tokenizer: Tokenizer) -> None:
    text = "(?:(?:a?){100}){100}a{100}"
    how = Sampling(constraint=Constraint(kind="regex", text=text), temperature=1.0)
    hard, other = (Sampler(how if i == 0 else Sampling(), "r", (), tokenizer, 262, frozenset()) for i in range(2))
    logits = torch.zeros(2, 262)
    for _ in range(50):
        (mine,), (its,) = choose(logits, [(hard, ()), (other, ())])
        assert its.token >= 0
        if mine.token < 0:
            assert "too complex" in mine.error
            return
    pytest.fail("it was not too complex: find another example")


@pytest.mark.models
def test_a_real_vocabulary(tmp_path: Path) -> None:
    from codemill.models.pull import pull

    real = Tokenizer.load(pull("qwen2.5-coder-0.5b"))
    text, ended = write(real, "json_schema", json.dumps(SCHEMA), 1, most=4000, top_k=200)
    assert ended
    assert set(json.loads(text)) == {"name", "n", "ok"}
