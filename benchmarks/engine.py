"""Greedy generation: our engine against `transformers.generate` and, with `--llamacpp PYTHON`, against llama.cpp.

bf16 at batches of 1, 8 and 32, and 16 samples of one prompt of 512 tokens; int8 and int4 weights at batches of 1, 8 and 32.
Drafts are off: what is measured is a step.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any

from duel import Worker, duel, read_bandwidth, row, serve, timed, write
from llamacpp import gguf_file

MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b")
NEW_TOKENS = 64
PROMPT = '''def merge_sorted(first, second):
    """Merge two sorted lists into one sorted list (variant {number})."""
'''


GROUP = 16
BATCHES = (1, 8, 32)


def prompts(tokenizer: Any, batch: int, group: bool) -> list[list[int]]:
    """Token ids: as many different short prompts, or one long prompt as many times."""
    if group:
        text = "".join(PROMPT.format(number=i) + "    pass\n\n\n" for i in range(40))
        return [tokenizer.completion_prompt(text)[:512]] * batch
    return [tokenizer.completion_prompt(PROMPT.format(number=i)) for i in range(batch)]


def codemill_side(folder: Path, weights: Any) -> None:
    from codemill.core.contracts import Request, Sampling
    from codemill.engine.engine import Engine

    engine = Engine.load(folder, dtype="bf16", device="cpu", weights=weights, speculate=False)
    engine.tokenizer.stop_ids = frozenset()  # every side writes exactly NEW_TOKENS tokens

    def work(request: dict[str, Any]) -> dict[str, Any]:
        engine.reset_cache()  # nothing is known from the run before
        how = Sampling(max_tokens=request["new"])
        asked = [Request(id=str(i), prompt_ids=tuple(ids), sampling=how) for i, ids in enumerate(request["prompts"])]
        made: list[Any] = []
        seconds = timed(lambda: made.extend(engine.generate(asked)))
        return {"seconds": seconds, "work": sum(len(c.token_ids) for c in made)}

    serve(work)


def transformers_side(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def work(request: dict[str, Any]) -> dict[str, Any]:
        asked, new = request["prompts"], request["new"]
        longest = max(map(len, asked))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in asked])
        seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in asked])
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

        def generate() -> None:
            with torch.inference_mode():
                model.generate(ids, attention_mask=seen, **options)

        return {"seconds": timed(generate), "work": new * len(asked)}

    serve(work)


def rows_of(model: str, runs: int, llamacpp: str) -> list[dict[str, Any]]:
    from codemill.models.config import read_config
    from codemill.models.pull import pull
    from codemill.models.tokenizer import Tokenizer

    folder, rows = pull(model), []
    tokenizer, parameters = Tokenizer.load(folder), read_config(folder).active_parameters
    bits = {"bf16": 16, "int8": 8, "int4": 4.5}
    for kind in ("bf16", "int8", "int4"):
        ours = Worker(__file__, "codemill", "--model", model, "--weights", kind)
        peers: dict[str, tuple[Worker, str]] = {}
        if kind == "bf16":
            peers["transformers"] = Worker(__file__, "transformers", "--model", model), ""
        if llamacpp:
            code = "from importlib.metadata import version; print(version('llama-cpp-python'))"
            version = subprocess.run([llamacpp, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
            script = str(Path(__file__).with_name("llamacpp.py"))
            command = [llamacpp, script, str(gguf_file(model, kind)), "2"]
            peers["llama-cpp-python"] = Worker("", "", command=command), version
        works = [(f"generate-{kind}-b{batch}", batch, False) for batch in BATCHES]
        if kind == "bf16":
            works.append(("group16", GROUP, True))
        for name, batch, group in works:
            request = {"prompts": prompts(tokenizer, batch, group), "new": NEW_TOKENS}
            what = f"{model}, greedy, {NEW_TOKENS} new tokens, {kind}, " + (
                f"{GROUP} samples of one prompt of 512 tokens" if group else f"batch {batch}"
            )
            if not peers:
                ours.ask(request)
                alone = [a["work"] / a["seconds"] for a in (ours.ask(request) for _ in range(runs))]
                rows.append(row(f"{name}/{model}", what, "tokens/s", alone))
            for peer, (worker, version) in peers.items():
                speeds = duel(ours, worker, request, runs)
                # A step reads every weight once: the bound for a batch of one, by the memory as it is at that moment.
                limit = read_bandwidth() / (bits[kind] / 8 * parameters) if batch == 1 else None
                mark = "" if peer == "transformers" else "/llama.cpp"
                rows.append(
                    row(
                        f"{name}/{model}{mark}",
                        what,
                        "tokens/s",
                        *speeds,
                        peer_name=peer,
                        peer_version=version,
                        limit=limit,
                    )
                )
        for worker in (ours, *(worker for worker, _ in peers.values())):
            worker.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", choices=("codemill", "transformers"))
    parser.add_argument("--model", default="")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--llamacpp", default="", help="an interpreter with llama-cpp-python built for this machine")
    arguments = parser.parse_args()
    from codemill.models.pull import pull

    if arguments.worker == "codemill":
        codemill_side(pull(arguments.model), arguments.weights)
    elif arguments.worker == "transformers":
        transformers_side(pull(arguments.model))
    else:
        rows: list[dict[str, Any]] = []
        for model in MODELS:
            rows += rows_of(model, arguments.runs, arguments.llamacpp)
            write("engine", rows)


if __name__ == "__main__":
    main()
