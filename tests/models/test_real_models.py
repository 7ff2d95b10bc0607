"""Both registry models against `transformers` on the same checkpoint, in fp32: logits, greedy tokens, log-probabilities."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from codemill.core.contracts import Request, Sampling
from codemill.engine.engine import Engine
from codemill.models.pull import pull

pytestmark = [pytest.mark.models, pytest.mark.network]

TEXTS = [
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "# Größe: 100 km², naïve\nimport os\nx = {'a': [1, 2, 3]}\n",
]


@pytest.fixture(scope="module", params=["smollm2-135m", "qwen2.5-coder-0.5b"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, torch.nn.Module]]:
    folder: Path = pull(request.param)
    engine = Engine.load(folder, dtype="fp32", device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yield engine, reference
    del engine, reference
    gc.collect()


@torch.inference_mode()
def test_logits_equal_transformers(pair: tuple[Engine, torch.nn.Module]) -> None:
    engine, reference = pair
    rows = [engine.tokenizer.completion_prompt(text) for text in TEXTS]
    ours = engine.decoder.packed_logits(torch.tensor([t for row in rows for t in row]), [len(r) for r in rows])
    for row, got in zip(rows, ours.split([len(r) for r in rows]), strict=True):
        theirs = reference(torch.tensor([row])).logits[0]
        assert float((got - theirs).abs().max()) < 1e-4 * max(1.0, float(theirs.abs().max()))


@torch.inference_mode()
def test_greedy_tokens_and_logprobs(pair: tuple[Engine, torch.nn.Module]) -> None:
    """64 greedy tokens in one batch equal `transformers` one by one, ties under 1e-4 excepted; and each recorded
    log-probability is that of a full forward (vector V10)."""
    engine, reference = pair
    asked = [Request(id=str(i), prompt=text, sampling=Sampling(max_tokens=64)) for i, text in enumerate(TEXTS)]
    for completion in engine.generate(asked):
        prompt = engine.tokenizer.completion_prompt(TEXTS[int(completion.request_id)])
        row = [*prompt, *completion.token_ids]
        logits = reference(torch.tensor([row])).logits[0, len(prompt) - 1 : -1]
        chosen = torch.tensor(completion.token_ids)
        behind = logits.max(-1).values - logits.gather(1, chosen[:, None])[:, 0]
        assert float(behind.max()) < 1e-4  # the best token at every step, given the same tokens before
        expected = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
        assert float((expected - torch.tensor(completion.logprobs)).abs().max()) < 1e-4
