"""Evaluation end to end on tiny things: answers, verdicts, resume, bits per byte."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

from codemill.core.contracts import Answer, Completion, Request, Sampling, Task
from codemill.core.errors import InputError
from codemill.core.records import read_records
from codemill.evaluation.checkpoint import SuiteRun, evaluate_checkpoint
from codemill.evaluation.evaluate import evaluate
from codemill.evaluation.perplexity import bits_per_byte
from codemill.models.checkpoint import load_decoder
from codemill.models.tokenizer import Tokenizer
from codemill.sandbox import Sandbox
from tiny import document, tiny_checkpoint


def program(i: int, gold: str) -> Task:
    return Task(
        id=f"p/{i}",
        prefix=f"def f(x):\n    # {i}\n",
        gold=gold,
        verifier={
            "kind": "program",
            "test": "def check(f):\n    assert f(2) == 4\n",
            "call": "check(f)",
            "seconds": 5.0,
        },
        metadata={"language": "python"},
    )


TASKS = [program(i, "    return x + x\n") for i in range(4)]


class Fixed:
    """A generator that answers from a table and can be told to stop half-way."""

    def __init__(self, stop_after: int = 99, infills: bool = False) -> None:
        self.asked: list[Request] = []
        self.stop_after, self.infills, self.name = stop_after, infills, "fixed"

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for i, request in enumerate(requests):
            if i == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(request)
            text = "    return x + x\n" if "/0" in request.id or "/2" in request.id else "    return 5\n"
            yield Completion(
                request_id=request.id, text=text, token_ids=(1, 2), logprobs=(-1.0, -2.0), finish_reason="stop"
            )


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox()


def run(out: Path, generator: Fixed, sandbox: Sandbox, **changes: object) -> dict:
    settings = {"identity": "m1", "sampling": Sampling(max_tokens=9), **changes}
    return evaluate(TASKS, Path(), generator, sandbox, out, **settings)  # type: ignore[arg-type]


def test_answers_become_verdicts_and_numbers(tmp_path: Path, sandbox: Sandbox) -> None:
    summary = run(tmp_path, Fixed(), sandbox)
    assert summary["statuses"] == {"failed": 2, "passed": 2}
    assert summary["scores"]["pass@1"]["value"] == 0.5
    assert summary["valid"]
    assert summary["styles"] == ["prefix"]
    assert summary["isolation"]
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_an_interrupted_run_goes_on(tmp_path: Path, sandbox: Sandbox) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Fixed(stop_after=2), sandbox)
    with (tmp_path / "answers.jsonl").open("a") as torn:
        torn.write('{"task_id":"p/2","comp')
    second = Fixed()
    summary = run(tmp_path, second, sandbox)
    assert [request.id for request in second.asked] == ["p/2#0", "p/3#0"]
    assert summary["answers"] == 4
    assert len(list(read_records(tmp_path / "answers.jsonl", Answer))) == 4
    third = Fixed()
    assert run(tmp_path, third, sandbox)["scores"] == summary["scores"]
    assert third.asked == []


def test_answers_of_another_model_are_not_reused(tmp_path: Path, sandbox: Sandbox) -> None:
    run(tmp_path, Fixed(), sandbox)
    with pytest.raises(InputError, match="different model"):
        run(tmp_path, Fixed(), sandbox, identity="m2")
    with pytest.raises(InputError, match="different sampling"):
        run(tmp_path, Fixed(), sandbox, sampling=Sampling(max_tokens=10))
    with pytest.raises(InputError, match="temperature 0"):
        run(tmp_path / "x", Fixed(), sandbox, samples=3)


def test_a_checkpoint_is_measured_into_one_artifact(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    suite = SuiteRun(name="tiny", tasks=tuple(TASKS), folder=Path(), sampling=Sampling(max_tokens=4))
    text = [document("def f(x):\n    return x\n" * 8)]
    facts = evaluate_checkpoint(model, [suite], tmp_path / "out", documents=text, dtype="fp32", device="cpu")
    assert facts["suites"]["tiny"]["tasks"] == 4
    assert facts["bits_per_byte"]["bits_per_byte"] > 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {"tiny/tasks.jsonl", "tiny/answers.jsonl", "tiny/verdicts.jsonl", "bits_per_byte.json"} <= set(
        manifest["files"]
    )


def test_bits_per_byte_of_a_uniform_model_is_known(tmp_path: Path) -> None:
    """A model whose logits are all equal gives log2(262) bits for every token, and a token is a byte here."""
    folder = tiny_checkpoint(tmp_path)
    decoder, tokenizer = load_decoder(folder, dtype="fp32", device="cpu"), Tokenizer.load(folder)
    with torch.no_grad():
        decoder.norm.zero_()
    result = bits_per_byte(decoder, tokenizer, [document("abcdé" * 50), document("x" * 30)], max_tokens=64)
    assert result["bits_per_byte"] == pytest.approx(math.log2(262), rel=1e-5)
    assert result["bytes"] == result["tokens"] == 330 - result["windows"]


def test_bits_per_byte_does_not_depend_on_how_windows_are_packed(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    decoder, tokenizer = load_decoder(folder, dtype="fp32", device="cpu"), Tokenizer.load(folder)
    texts = [document("def f():\n    pass\n" * n, f"{n}.py") for n in (1, 3, 7)]
    whole = bits_per_byte(decoder, tokenizer, texts, max_tokens=64)
    parts = [bits_per_byte(decoder, tokenizer, [t], max_tokens=64) for t in texts]
    assert whole["bits_per_byte"] * whole["bytes"] == pytest.approx(
        sum(p["bits_per_byte"] * p["bytes"] for p in parts), rel=1e-5
    )
    assert bits_per_byte(decoder, tokenizer, texts, max_tokens=64, budget=70)["tokens"] < 70
