"""Engines over tiny weights, and plain decoding to compare them with: a full forward for every token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from codemill.core.contracts import Completion, Request, Sampling
from codemill.engine.cache import block_bytes
from codemill.engine.engine import Engine
from codemill.models.config import read_config
from codemill.models.decoder import Decoder

PROMPTS = [
    "def f(x):\n",
    "a",
    "class Thing:\n    def method(self, value):\n        return",
    "x = [1, 2",
    "import os\n" * 5,
]

TEXT = "for item in things:\n    total = total + item\n    print(total)\n"


def asked(name: object, text: str, **sampling: Any) -> Request:
    return Request(id=str(name), prompt=text, sampling=Sampling(**sampling))


@torch.inference_mode()
def plain_greedy(decoder: Decoder, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """Greedy tokens and the smallest gap between the two likeliest ones on the way."""
    ids, gap = list(prompt), float("inf")
    for _ in range(count):
        best = decoder.packed_logits(torch.tensor(ids), [len(ids)])[-1].topk(2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], gap


def check_greedy(engine: Engine, prompt: Sequence[int], tokens: Sequence[int]) -> None:
    """Every token is the likeliest after those before it, ties under 1e-4 excepted: one full forward tells."""
    with torch.inference_mode():
        row = [*prompt, *tokens]
        logits = engine.decoder.packed_logits(torch.tensor(row), [len(row)])[len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert float((logits.max(-1).values - chosen).max()) < 1e-4


def answers(completions: Sequence[Completion]) -> dict[tuple[str, int], tuple[int, ...]]:
    """Token ids by request and sample; no two completions answer the same one."""
    found = {(c.request_id, c.index): c.token_ids for c in completions}
    assert len(found) == len(completions)
    return found


def check_empty(engine: Engine) -> None:
    """Nothing runs, and every block is free or kept for reuse only."""
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_used) == (0, 0, 0)
    assert not engine.busy
    assert not engine.scheduler.table_RM.any()


def tiny_engine(folder: Path, blocks: int, **options: Any) -> Engine:
    size = block_bytes(read_config(folder), torch.float32)
    return Engine.load(folder, dtype="fp32", device="cpu", kv_bytes=blocks * size, **options)


def spell(engine: Engine, tokens: list[int]) -> None:
    """Let the model write just these tokens after a prompt of one."""

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(len(hidden), engine.decoder.config.vocab_size)
        for row, position in enumerate(positions[-len(hidden) :]):
            rows[row, tokens[position]] = 50.0
        return rows

    positions: list[int] = []
    forward = engine.decoder.forward

    def recorded(ids: torch.Tensor, at: torch.Tensor, attend: Any) -> torch.Tensor:
        positions[:] = at.tolist()
        return forward(ids, at, attend)

    engine.decoder.forward, engine.decoder.logits = recorded, logits  # type: ignore[method-assign]
