"""From a GGUF file to a Hugging Face checkpoint folder: bf16 weights, configuration, tokenizer.

Two architectures are read, `llama` and `qwen2`; anything else in the file is an error, because a tensor that is left
out silently makes a model that runs and is wrong. Weights go through memory a few rows at a time.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from codemill.core.errors import IntegrityError
from codemill.core.progress import Progress
from codemill.models.gguf_file import GgufFile, GgufTensor, read_gguf
from codemill.models.gguf_tokenizer import tokenizer_files

if TYPE_CHECKING:
    import numpy as np

ELEMENTS_AT_ONCE = 1 << 24  # dequantised together: 64 MiB as float32

_ARCHITECTURES = {"llama": ("LlamaForCausalLM", "llama"), "qwen2": ("Qwen2ForCausalLM", "qwen2")}


@dataclass(frozen=True, slots=True)
class Plan:
    """One tensor of the result: where it comes from, what it must look like, and how its rows are stored."""

    name: str  # in the Hugging Face checkpoint
    source: str  # in the GGUF file
    shape: tuple[int, ...]
    permuted_heads: int = 0  # rows of Q and K of `llama` are stored interleaved per head


def convert_gguf(source: Path, folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Write the checkpoint of a GGUF file into the existing, empty `folder`; returns facts for a manifest.

    The caller has verified the file's hash and makes the folder atomic. Raises `IntegrityError` for a file that is
    damaged or holds something this function does not know.
    """
    file = read_gguf(source)
    config = model_config(file)
    plans = tensor_plans(file, config)
    texts = tokenizer_files(file, config)
    texts["config.json"] = config
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written = _write_weights(file, plans, folder / "model.safetensors", progress)
    return {
        "architecture": config["architectures"][0],
        "parameters": sum(math.prod(plan.shape) for plan in plans),
        "weights_bytes": written,
        "quantisation": sorted({_type_name(tensor.kind) for tensor in file.tensors.values()}),
    }


def model_config(file: GgufFile) -> dict[str, Any]:
    """`config.json` of the checkpoint, every size checked against the others."""
    architecture = file.text("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise IntegrityError(
            f"{file.path}: architecture {architecture!r} is not converted; known: {', '.join(_ARCHITECTURES)}"
        )
    class_name, model_type = _ARCHITECTURES[architecture]
    scaling = file.metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise IntegrityError(f"{file.path}: rope scaling {scaling!r} is not converted")
    hidden = file.integer(f"{architecture}.embedding_length")
    heads = file.integer(f"{architecture}.attention.head_count")
    kv_heads = file.integer(f"{architecture}.attention.head_count_kv")
    head = _head_dimension(file, architecture, hidden, heads)
    if not kv_heads or heads % kv_heads:
        raise IntegrityError(f"{file.path}: {heads} heads do not share {kv_heads} key-value heads evenly")
    return {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": len(file.items("tokenizer.ggml.tokens", str)),
        "hidden_size": hidden,
        "intermediate_size": file.integer(f"{architecture}.feed_forward_length"),
        "num_hidden_layers": file.integer(f"{architecture}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": file.integer(f"{architecture}.context_length"),
        "rms_norm_eps": _shortest_float32(file.number(f"{architecture}.attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest_float32(file.number(f"{architecture}.rope.freq_base")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_dropout": 0.0,
        **({"attention_bias": False, "mlp_bias": False} if architecture == "llama" else {"use_sliding_window": False}),
        "bos_token_id": file.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.integer("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "bfloat16",
    }


def _head_dimension(file: GgufFile, architecture: str, hidden: int, heads: int) -> int:
    if not heads or hidden % heads:
        raise IntegrityError(f"{file.path}: an embedding of {hidden} does not divide into {heads} heads")
    head = hidden // heads
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        given = file.metadata.get(f"{architecture}.{key}", head)
        if given != head:
            raise IntegrityError(f"{file.path}: {architecture}.{key} is {given!r}, heads of {head} are converted only")
    if head % 2:
        raise IntegrityError(f"{file.path}: heads of {head} dimensions cannot carry rotary positions")
    return head


def _shortest_float32(value: float) -> float:
    """The shortest decimal with the same float32: metadata is float32, and 9.999999747e-06 was written as 1e-5."""
    packed = struct.pack("<f", value)
    return next(short for digits in range(1, 18) if struct.pack("<f", short := float(f"{value:.{digits}g}")) == packed)


def tensor_plans(file: GgufFile, config: dict[str, Any]) -> list[Plan]:
    """Every tensor the architecture needs, none besides, each present in the file with exactly its shape."""
    layers = config["num_hidden_layers"]
    if layers > len(file.tensors):  # before the list of names is made: a count from the file is not to be trusted
        raise IntegrityError(f"{file.path}: {layers} layers are announced, the file has {len(file.tensors)} tensors")
    plans = [
        *_outer_plans(config),
        *(plan for layer in range(layers) for plan in _layer_plans(config, layer)),
    ]
    for plan in plans:
        if plan.source not in file.tensors:
            raise IntegrityError(f"{file.path}: tensor {plan.source} is missing")
        if file.tensors[plan.source].shape != plan.shape:
            raise IntegrityError(
                f"{file.path}: tensor {plan.source} has shape {file.tensors[plan.source].shape}, not {plan.shape}"
            )
    unknown = sorted(set(file.tensors) - {plan.source for plan in plans})
    if unknown:
        raise IntegrityError(f"{file.path}: tensor {unknown[0]} is not part of {config['architectures'][0]}")
    return sorted(plans, key=lambda plan: plan.name)


def _outer_plans(config: dict[str, Any]) -> Iterator[Plan]:
    table = (config["vocab_size"], config["hidden_size"])
    yield Plan("model.embed_tokens.weight", "token_embd.weight", table)
    yield Plan("model.norm.weight", "output_norm.weight", (config["hidden_size"],))
    if not config["tie_word_embeddings"]:
        yield Plan("lm_head.weight", "output.weight", table)


def _layer_plans(config: dict[str, Any], layer: int) -> Iterator[Plan]:
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    llama = config["model_type"] == "llama"
    ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
    yield Plan(ours + "input_layernorm.weight", theirs + "attn_norm.weight", (hidden,))
    yield Plan(ours + "post_attention_layernorm.weight", theirs + "ffn_norm.weight", (hidden,))
    for letter, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        name, source = ours + f"self_attn.{letter}_proj.", theirs + f"attn_{letter}."
        permuted = count if llama and letter != "v" else 0
        yield Plan(name + "weight", source + "weight", (count * head, hidden), permuted)
        if not llama:
            yield Plan(name + "bias", source + "bias", (count * head,))
    yield Plan(ours + "self_attn.o_proj.weight", theirs + "attn_output.weight", (hidden, heads * head))
    for part, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
        yield Plan(ours + f"mlp.{part}_proj.weight", theirs + f"ffn_{part}.weight", shape)


def _write_weights(file: GgufFile, plans: list[Plan], path: Path, progress: bool) -> int:
    """Stream the tensors into one safetensors file, so that memory stays at a few rows whatever the model's size."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in plans:
        size = 2 * math.prod(plan.shape)
        header[plan.name] = {"dtype": "BF16", "shape": plan.shape, "data_offsets": (offset, offset + size)}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the weights start aligned
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(encoded)) + encoded)
        if progress:
            with Progress("converting the weights", len(plans), "tensors") as bar:
                for plan in plans:
                    _write_tensor(file, plan, out)
                    bar.advance()
        else:
            for plan in plans:
                _write_tensor(file, plan, out)
        out.flush()
        os.fsync(out.fileno())
    return offset


def _write_tensor(file: GgufFile, plan: Plan, out: IO[bytes]) -> None:
    tensor = file.tensors[plan.source]
    for start, stop in _row_blocks(tensor, plan):
        values = file.rows(tensor, start, stop)
        if plan.permuted_heads:
            values = unpermute(values, (stop - start) * plan.permuted_heads // plan.shape[0])
        out.write(_bfloat16_bytes(values, f"{file.path}: tensor {plan.source}"))


def _row_blocks(tensor: GgufTensor, plan: Plan) -> Iterator[tuple[int, int]]:
    """Ranges of rows of a bounded number of elements; of permuted tensors always whole heads."""
    rows = tensor.shape[0]
    unit = rows // plan.permuted_heads if plan.permuted_heads else 1
    step = max(ELEMENTS_AT_ONCE // (math.prod(tensor.shape[1:]) * unit), 1) * unit
    if len(tensor.shape) == 1:
        step = rows
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Q or K rows of a `llama` GGUF back in the order of Hugging Face. `weight` is [heads * head_dim, hidden].

    ggml rotates neighbouring dimensions of a head, Hugging Face the first half with the second, so the converter
    that wrote the file interleaved the two halves: [heads, head_dim / 2, 2, hidden] there, [heads, 2, head_dim / 2,
    hidden] here.
    """
    rows, hidden = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def _bfloat16_bytes(values: np.ndarray, where: str) -> bytes:
    """Rounded to nearest, ties to even, as torch does it."""
    import torch

    rounded = torch.from_numpy(values).to(torch.bfloat16)
    if not bool(torch.isfinite(rounded).all()):
        raise IntegrityError(f"{where} holds values that are not finite in bfloat16")
    return rounded.contiguous().view(torch.int16).numpy().tobytes()


def _type_name(kind: int) -> str:
    import gguf

    return gguf.GGMLQuantizationType(kind).name
