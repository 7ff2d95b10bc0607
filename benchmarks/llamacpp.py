"""llama.cpp as a peer: weights of the same values and size in its own format, and a worker on its batch interface.

The worker runs in an interpreter of its own that has `llama-cpp-python` built for this machine, for instance:

    python -m venv llamacpp
    CMAKE_ARGS=-DGGML_NATIVE=ON llamacpp/bin/pip install --no-binary llama-cpp-python llama-cpp-python

`python benchmarks/engine.py --llamacpp llamacpp/bin/python` then asks it in turn with ours.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

# Kinds of ours and those of GGUF of (nearly) as many bits: bf16 16, Q8_0 8.5, Q4_0 4.5.
KINDS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}


def gguf_file(model: str, kind: str) -> Path:
    """The model's weights as GGUF, all matrices of `kind` (the head and the embedding never less than Q8_0, as with us)."""
    import gguf
    import numpy as np

    from codemill.core.paths import cache_dir
    from codemill.models.fetch import fetch
    from codemill.models.registry import find_model

    folder = cache_dir() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{model}-{kind}.gguf"
    if target.is_file():
        return target
    original = folder / f"{model}-original.gguf"
    if not original.is_file():
        variant = find_model(model).variants[0]
        fetch(variant, original)
    reader = gguf.GGUFReader(original)
    writer = gguf.GGUFWriter(target.with_suffix(".part"), str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        sub = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        large = tensor.name in ("output.weight", "token_embd.weight")
        wanted = gguf.GGMLQuantizationType["Q8_0" if kind == "int4" and large else KINDS[kind]]
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target.with_suffix(".part").rename(target)
    return target


def worker(path: str, threads: int) -> None:
    """Greedy generation: a request holds `prompts` (token ids) and `new`, the tokens to write for each."""
    import llama_cpp as api
    import numpy as np

    api.llama_backend_init()
    quiet = api.llama_log_callback(lambda *_: None)  # its log lines are not the answers that the other side waits for
    api.llama_log_set(quiet, None)
    model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def generate(prompts: list[list[int]], new: int) -> int:
        shared = len(prompts) > 1 and all(prompt == prompts[0] for prompt in prompts)
        how = api.llama_context_default_params()
        how.n_ctx = sum(len(prompt) + new for prompt in prompts) + 64
        how.n_batch = how.n_ubatch = 512
        how.n_seq_max, how.kv_unified = len(prompts), True
        how.n_threads = how.n_threads_batch = threads
        context = api.llama_init_from_model(model, how)
        batch = api.llama_batch_init(512, 0, len(prompts))

        def add(token: int, position: int, sequences: list[int], wanted: bool) -> None:
            at = batch.n_tokens
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at] = len(sequences)
            for i, sequence in enumerate(sequences):
                batch.seq_id[at][i] = sequence
            batch.n_tokens += 1

        def run() -> dict[int, int]:
            if api.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")
            found = {}
            for at in range(batch.n_tokens):
                if batch.logits[at]:
                    row = np.ctypeslib.as_array(api.llama_get_logits_ith(context, at), (vocabulary,))
                    found[batch.seq_id[at][0]] = int(row.argmax())
            batch.n_tokens = 0
            return found

        last: dict[int, int] = {}
        for sequence, prompt in enumerate(prompts[:1] if shared else prompts):
            everyone = list(range(len(prompts))) if shared else [sequence]
            for position, token in enumerate(prompt):
                if batch.n_tokens == 512:
                    last.update(run())
                add(token, position, everyone, position == len(prompt) - 1)
        last.update(run())
        if shared:
            last = dict.fromkeys(range(len(prompts)), last[0])
        lengths = [len(prompt) for prompt in prompts]
        for step in range(new - 1):
            for sequence in range(len(prompts)):
                add(last[sequence], lengths[sequence] + step, [sequence], True)
            last = run()
        api.llama_batch_free(batch)
        api.llama_free(context)
        return new * len(prompts)

    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        start = time.perf_counter()
        work = generate(request["prompts"], request["new"])
        print(json.dumps({"seconds": time.perf_counter() - start, "work": work}), flush=True)


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]))
