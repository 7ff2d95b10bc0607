"""Greedy generation in bf16: our engine against `transformers.generate`, batches of 1, 8 and 32, both models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from duel import Worker, duel, read_bandwidth, row, serve, timed, write

MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")
NEW_TOKENS = 64
PROMPT = '''def merge_sorted(first, second):
    """Merge two sorted lists into one sorted list (variant {number})."""
'''


def codemill_side(folder: Path) -> None:
    from codemill.core.contracts import Request, Sampling
    from codemill.engine.engine import Engine

    engine = Engine.load(folder, dtype="bf16", device="cpu")
    engine.tokenizer.stop_ids = frozenset()  # both sides write exactly NEW_TOKENS tokens

    def work(request: dict[str, Any]) -> dict[str, Any]:
        how = Sampling(max_tokens=NEW_TOKENS)
        asked = [Request(id=str(i), prompt=PROMPT.format(number=i), sampling=how) for i in range(request["batch"])]
        made: list[Any] = []
        seconds = timed(lambda: made.extend(engine.generate(asked)))
        return {"seconds": seconds, "work": sum(len(c.token_ids) for c in made)}

    serve(work)


def transformers_side(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def work(request: dict[str, Any]) -> dict[str, Any]:
        texts = [PROMPT.format(number=i) for i in range(request["batch"])]
        options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}

        def generate() -> None:
            inputs = tokenizer(texts, return_tensors="pt", padding=True)
            with torch.inference_mode():
                model.generate(**inputs, **options, pad_token_id=tokenizer.pad_token_id)

        return {"seconds": timed(generate), "work": NEW_TOKENS * len(texts)}

    serve(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("codemill", "transformers"))
    parser.add_argument("--model", default="")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    from codemill.models.pull import pull

    if arguments.worker:
        side = codemill_side if arguments.worker == "codemill" else transformers_side
        side(pull(arguments.model))
        return
    from codemill.models.config import read_config

    bandwidth = read_bandwidth()
    rows = []
    for model in MODELS:
        sizes = read_config(pull(model))
        ours, peer = (Worker(__file__, side, "--model", model) for side in ("codemill", "transformers"))
        for batch in (1, 8, 32):
            speeds = duel(ours, peer, {"batch": batch}, arguments.runs)
            # A step reads every weight once: the bound for a batch of one.
            limit = bandwidth / (2 * sizes.active_parameters) * batch if batch == 1 else None
            work = f"{model}, greedy, {NEW_TOKENS} new tokens, bf16, batch {batch}"
            rows.append(
                row(f"generate-bf16-b{batch}/{model}", work, "tokens/s", *speeds, peer_name="transformers", limit=limit)
            )
        ours.close()
        peer.close()
    write("engine", rows)


if __name__ == "__main__":
    main()
