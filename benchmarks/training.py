"""A full fine-tuning step of smollm2-135m, 2 x 1024 tokens: ours in bf16 against `transformers` with bf16 autocast.

Both sides keep fp32 master weights, clip the gradient and step AdamW.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from duel import Worker, duel, matrix_peak, row, serve, timed, write

MODEL, ROWS, LENGTH = "smollm2-135m", 2, 1024


def codemill_side(folder: Path) -> None:
    import torch

    from codemill.models.checkpoint import load_decoder
    from codemill.models.decoder import PackedAttention, packed_positions
    from codemill.training.loss import linear_cross_entropy, next_token_labels
    from codemill.training.optimizer import MasterAdamW

    decoder = load_decoder(folder, dtype="bf16", device="cpu")
    optimizer = MasterAdamW(decoder.named_parameters())
    lengths = [LENGTH] * ROWS
    ids = torch.randint(0, decoder.config.vocab_size, (ROWS * LENGTH,), generator=torch.Generator().manual_seed(0))
    labels = next_token_labels(ids, lengths)

    def step() -> None:
        hidden = decoder(ids, packed_positions(lengths), PackedAttention(lengths))
        linear_cross_entropy(hidden, decoder.head.weight, labels, 1 / (ROWS * (LENGTH - 1))).backward()
        optimizer.gather()
        optimizer.step(1e-5, 1.0)

    serve(lambda request: {"seconds": timed(step), "work": ROWS * LENGTH})


def transformers_side(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    serve(lambda request: {"seconds": timed(step), "work": ROWS * LENGTH})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("codemill", "transformers"))
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    from codemill.models.pull import pull

    folder = pull(MODEL)
    if arguments.worker:
        (codemill_side if arguments.worker == "codemill" else transformers_side)(folder)
        return
    from codemill.models.config import read_config

    peak = matrix_peak()
    ours, peer = (Worker(__file__, side) for side in ("codemill", "transformers"))
    request: dict[str, Any] = {}
    speeds = duel(ours, peer, request, arguments.runs)
    ours.close()
    peer.close()
    limit = peak / (6 * read_config(folder).active_parameters)
    work = f"{MODEL}, full fine-tuning step, {ROWS} x {LENGTH} tokens, bf16"
    write("training", [row("train-step-full", work, "tokens/s", *speeds, peer_name="transformers", limit=limit)])


if __name__ == "__main__":
    main()
