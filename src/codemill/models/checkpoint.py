"""Reading and writing Hugging Face checkpoint folders: safetensors only, every name and shape checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from codemill.core.errors import ConfigError, InputError, IntegrityError, nearest
from codemill.core.paths import atomic_write_text
from codemill.models.config import DecoderConfig, read_config
from codemill.models.decoder import Decoder
from codemill.models.memory import keep_freed_memory, release_freed_memory
from codemill.models.quantize import Weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What a checkpoint carries besides its weights.
SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "chat_template.jinja", "vocab.json", "merges.txt", "LICENSE")  # fmt: skip


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16; the CPU runs it natively or emulated, with the same results."""
    if dtype == "auto":
        return torch.bfloat16
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; {nearest(dtype, ['auto', *DTYPES])}")
    return DTYPES[dtype]


def pick_weights(weights: str) -> Weights:
    """How an engine keeps its weights, by name."""
    for known in get_args(Weights):
        if weights == known:
            return known
    raise ConfigError(f"weights {weights!r} are unknown; {nearest(weights, get_args(Weights))}")


def tensor_layout(config: DecoderConfig) -> Iterator[tuple[str, list[str], list[int]]]:
    """For each of our parameters: its name, the Hugging Face tensors stacked in it, and the rows of each (0: all)."""
    yield "embed", ["model.embed_tokens.weight"], [0]
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    for i in range(config.layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"
        yield f"{ours}.attention_norm", [f"{theirs}.input_layernorm.weight"], [0]
        yield f"{ours}.mlp_norm", [f"{theirs}.post_attention_layernorm.weight"], [0]
        for name, has_bias, parts, rows in (
            (
                "qkv",
                config.qkv_bias,
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                [query, key, key],
            ),
            ("out", config.out_bias, ["self_attn.o_proj"], [0]),
            (
                "gate_up",
                config.mlp_bias,
                ["mlp.gate_proj", "mlp.up_proj"],
                [config.mlp_size, config.mlp_size],
            ),
            ("down", config.mlp_bias, ["mlp.down_proj"], [0]),
        ):
            for kind in ("weight", "bias") if has_bias else ("weight",):
                yield f"{ours}.{name}.{kind}", [f"{theirs}.{part}.{kind}" for part in parts], rows
    yield "norm", ["model.norm.weight"], [0]
    if not config.tied_head:
        yield "head.weight", ["lm_head.weight"], [0]


def load_decoder(folder: Path, *, dtype: str = "auto", device: str = "auto") -> Decoder:
    """The decoder of a checkpoint folder. Raises `IntegrityError` for a missing, misshapen or non-finite tensor."""
    place = pick_device(device)
    config = read_config(folder)
    if place.type == "cpu":
        release_freed_memory()
        keep_freed_memory()
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder.to(pick_dtype(dtype, place)).to_empty(device=place)
    if config.tied_head:
        decoder.head.weight = decoder.embed
    parameters = dict(decoder.named_parameters())
    with ExitStack() as stack, torch.no_grad():
        read, names = _open_tensors(folder, stack)
        for ours, theirs, rows in tensor_layout(config):
            target, start = parameters[ours], 0
            for name, count in zip(theirs, rows, strict=True):
                part = target[start : start + (count or target.shape[0])]
                if name not in names:
                    raise IntegrityError(f"{folder}: tensor {name!r} is missing; expected shape {list(part.shape)}")
                source = read(name)
                if source.shape != part.shape:
                    raise IntegrityError(
                        f"{folder}: tensor {name!r} has shape {list(source.shape)}, expected {list(part.shape)} by config.json"
                    )
                part.copy_(source)
                if not torch.isfinite(part.sum(dtype=torch.float32)):  # a NaN or an infinity survives the sum
                    raise IntegrityError(f"{folder}: tensor {name!r} holds values that are not finite")
                start += count
    return decoder


def _open_tensors(folder: Path, stack: ExitStack) -> tuple[Callable[[str], Tensor], set[str]]:
    """A reader of tensors by name and the names there are, over one file or an index of several."""
    files = [WEIGHTS]
    if (folder / INDEX).is_file():
        try:
            files = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{folder / INDEX}: not a safetensors index: {error!r}") from None
    where: dict[str, Any] = {}
    for file in files:
        path = folder / file
        if Path(file).name != file or not path.is_file():
            raise InputError(f"{path}: missing; a checkpoint needs {WEIGHTS} or the files of its index")
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise IntegrityError(f"{path}: not a readable safetensors file: {error}") from None
        where.update(dict.fromkeys(handle.keys(), handle))

    def read(name: str) -> Tensor:
        tensor: Tensor = where[name].get_tensor(name)
        return tensor

    return read, set(where)


def save_decoder(decoder: Decoder, folder: Path, *, like: Path) -> None:
    """Write the decoder as a bf16 Hugging Face checkpoint into `folder`, with the side files of the checkpoint `like`."""
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(decoder.named_parameters())
    tensors: dict[str, Tensor] = {}
    for ours, theirs, rows in tensor_layout(decoder.config):
        source, start = parameters[ours].detach(), 0
        for name, count in zip(theirs, rows, strict=True):
            part = source[start : start + (count or source.shape[0])]
            tensors[name] = part.to("cpu", torch.bfloat16, copy=True).contiguous()
            start += count
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for side in SIDE_FILES:
        if (like / side).is_file() and like != folder:
            shutil.copyfile(like / side, folder / side)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = "bfloat16"
    config["tie_word_embeddings"] = decoder.config.tied_head
    atomic_write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
