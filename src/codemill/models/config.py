"""What a decoder looks like: its sizes, read from and written to a Hugging Face `config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codemill.core.errors import InputError, nearest

ARCHITECTURES: dict[str, Literal["llama", "qwen2"]] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a dense decoder of the Llama or Qwen2 family (RMS norm, rotary positions, SwiGLU, grouped queries)."""

    family: Literal["llama", "qwen2"]
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    rope_theta: float
    norm_eps: float
    max_positions: int
    tied_head: bool  # the output head is the embedding matrix
    qkv_bias: bool
    out_bias: bool = False
    mlp_bias: bool = False

    @property
    def parameters(self) -> int:
        """Stored parameters."""
        per_layer = (
            self.hidden_size * self.qkv_size
            + self.heads * self.head_dim * self.hidden_size
            + 3 * self.hidden_size * self.mlp_size
            + 2 * self.hidden_size
            + self.qkv_size * self.qkv_bias
            + self.hidden_size * self.out_bias
            + (2 * self.mlp_size + self.hidden_size) * self.mlp_bias
        )
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_head else 2)
        return self.layers * per_layer + embeddings + self.hidden_size

    @property
    def active_parameters(self) -> int:
        """Parameters that enter a matrix product for each token (the embedding look-up does not)."""
        return self.parameters - (0 if self.tied_head else self.vocab_size * self.hidden_size)

    @property
    def qkv_size(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that one position takes in a bf16 key-value cache."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 2


def read_config(folder: Path) -> DecoderConfig:
    """The sizes of the checkpoint in `folder`. Raises `InputError` for an architecture that is not supported."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: missing, so {folder} is not a Hugging Face checkpoint folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path}: unreadable: {error}") from None
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], where: str) -> DecoderConfig:
    """Translate a `config.json`. `where` names it in errors."""
    architecture = (raw.get("architectures") or ["?"])[0]
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{where}: architecture {architecture!r} is not supported; {nearest(architecture, ARCHITECTURES)}"
        )
    family = ARCHITECTURES[architecture]
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise InputError(f"{where}: rotary scaling {kind!r} is not supported, only 'default'")
    if raw.get("use_sliding_window"):
        raise InputError(f"{where}: sliding-window attention is not supported; set use_sliding_window to false")
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(f"{where}: activation {raw['hidden_act']!r} is not supported, only 'silu'")
    try:
        heads = int(raw["num_attention_heads"])
        config = DecoderConfig(
            family=family,
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
            mlp_size=int(raw["intermediate_size"]),
            rope_theta=float(rope.get("rope_theta") or raw.get("rope_theta") or 10000.0),
            norm_eps=float(raw["rms_norm_eps"]),
            max_positions=int(raw.get("max_position_embeddings") or 2048),
            tied_head=bool(raw.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or bool(raw.get("attention_bias", False)),
            out_bias=family == "llama" and bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
        )
    except KeyError as error:
        raise InputError(f"{where}: {error.args[0]!r} is missing") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None
    sizes = (
        config.vocab_size,
        config.hidden_size,
        config.layers,
        heads,
        config.kv_heads,
        config.head_dim,
        config.mlp_size,
    )
    if min(sizes) <= 0 or heads % config.kv_heads or config.head_dim % 2:
        raise InputError(f"{where}: impossible sizes {sizes} (vocabulary, width, layers, heads, kv heads, head, mlp)")
    return config
