"""Small GGUF files, written with the `gguf` package's own writer, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from codemill.models.tokenizer import byte_symbols

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
MERGES = ["d e", "de f", "Ġ Ġ", "i n", "Ġ r", "e t", "Ġr et", "a b", "1 2"]

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 32, 64, 4, 2, 2
HEAD = HIDDEN // HEADS


def vocabulary(fim: bool = True) -> tuple[list[str], list[int]]:
    """Tokens and their types: bytes, merges, then control tokens, then two unused rows."""
    plain = [*byte_symbols(), *("".join(merge.split()) for merge in MERGES)]
    control = SPECIAL + (FIM if fim else [])
    return [*plain, *control, "<tool_call>", "[PAD0]", "[PAD1]"], [1] * len(plain) + [3] * len(control) + [4, 5, 5]


def weights(arch: str, vocab: int, seed: int = 0, tied: bool = True) -> dict[str, np.ndarray]:
    """Hugging Face names and order; values that bfloat16 can hold exactly. float32."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (random.integers(-100, 100, shape) / 256).astype(np.float32)

    found = {"model.embed_tokens.weight": draw(vocab, HIDDEN), "model.norm.weight": 1 + 2 * draw(HIDDEN)}
    if not tied:
        found["lm_head.weight"] = draw(vocab, HIDDEN)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        found[name + "input_layernorm.weight"] = 1 + 2 * draw(HIDDEN)
        found[name + "post_attention_layernorm.weight"] = 1 + 2 * draw(HIDDEN)
        for letter, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            found[name + f"self_attn.{letter}_proj.weight"] = draw(heads * HEAD, HIDDEN)
            if arch == "qwen2":
                found[name + f"self_attn.{letter}_proj.bias"] = draw(heads * HEAD)
        found[name + "self_attn.o_proj.weight"] = draw(HIDDEN, HIDDEN)
        found[name + "mlp.gate_proj.weight"] = draw(INNER, HIDDEN)
        found[name + "mlp.up_proj.weight"] = draw(INNER, HIDDEN)
        found[name + "mlp.down_proj.weight"] = draw(HIDDEN, INNER)
    return found


_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_PARTS[part]}.{kind}"


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """The row order ggml wants for `llama`: of each head, row 0 of the first half, row 0 of the second, row 1, ..."""
    rows = weight.shape[0] // heads
    order = [
        head * rows + half * rows // 2 + row for head in range(heads) for row in range(rows // 2) for half in (0, 1)
    ]
    return weight[order]


def write_gguf(
    path: Path,
    arch: str = "llama",
    *,
    tensors: dict[str, np.ndarray] | None = None,
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
    metadata: dict[str, Any] | None = None,
    tied: bool = True,
    fim: bool = True,
    permute: bool = True,
) -> dict[str, np.ndarray]:
    """Write a complete small model; `metadata` overrides fields (None leaves one out). Returns the weights."""
    tokens, kinds = vocabulary(fim)
    tensors = weights(arch, len(tokens), tied=tied) if tensors is None else tensors
    writer = gguf.GGUFWriter(path, arch)
    fields: dict[str, Any] = {
        f"{arch}.block_count": LAYERS,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.feed_forward_length": INNER,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": KV_HEADS,
        f"{arch}.rope.freq_base": 10000.0,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm" if arch == "llama" else "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }
    for key, value in (fields | (metadata or {})).items():
        _add(writer, key, value)
    for name, weight in tensors.items():
        if permute and arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = interleave(weight, HEADS if "q_proj" in name else KV_HEADS)
        kind = (types or {}).get(name)
        data = weight if kind is None else gguf.quants.quantize(weight, kind)
        writer.add_tensor(gguf_name(name) if name.startswith(("model.", "lm_head")) else name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)
