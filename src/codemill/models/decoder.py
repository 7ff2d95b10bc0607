"""Our decoder for the Llama and Qwen2 families. Trainer and sampler run this one module.

Activations are flat: T tokens of any number of sequences one after the other, no batch axis and no padding. What a token
may look at is decided by the `Attend` passed in: whole packed documents in training and prefill, a cache in decoding.
Projections that read the same input are one matrix: fewer and larger products.

Shapes: T tokens, D width, H query heads, G key-value heads, K head size, F mlp width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemill.models.config import DecoderConfig
from codemill.models.kernels import rms_norm, rope, rope_tables, swiglu
from codemill.models.native import NativeDecoder, Runs, fresh_runs, native_decoder
from codemill.models.quantize import Weights, dequantize_int4, quantize_int4, quantize_int8


class Attend(Protocol):
    """Attention of one layer: its projection (T, X, K), X being H queries, G keys and G values, not yet turned by the
    position tables -> (T, H, K)."""

    def __call__(self, layer: int, qkv_TXK: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> Tensor: ...

    def runs(self, config: DecoderConfig) -> Runs:
        """The same as our own kernels want to be told: they do all layers in one call."""
        ...


def turned(qkv_TXK: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, H, K) and keys (T, G, K) turned to their positions, and values (T, G, K)."""
    turning = (qkv_TXK.shape[1] + heads) // 2
    q_k = rope(qkv_TXK[:, :turning], *tables)  # queries and keys turn in one call
    return q_k[:, :heads], q_k[:, heads:], qkv_TXK[:, turning:]


class PackedAttention:
    """Causal attention inside each document of a packed stream; nothing crosses a border.

    `lengths` are the documents' token counts, in order; they sum to T. Neighbours of one length share a kernel call.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self.equal: list[tuple[int, int, int]] = []  # start, count, length
        start = 0
        for length in lengths:
            if self.equal and self.equal[-1][2] == length:
                first, count, _ = self.equal[-1]
                self.equal[-1] = (first, count + 1, length)
            else:
                self.equal.append((start, 1, length))
            start += length

    def runs(self, config: DecoderConfig) -> Runs:
        return fresh_runs(self.lengths, config)

    def __call__(self, layer: int, qkv_TXK: Tensor, tables: tuple[Tensor, Tensor], heads: int) -> Tensor:
        return self.mix(*turned(qkv_TXK, tables, heads))

    def mix(self, q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> Tensor:
        """Attention over queries (T, H, K), keys and values (T, G, K) -> (T, H, K)."""
        outputs = []
        grouped = q_THK.shape[1] != k_TGK.shape[1]
        for start, count, length in self.equal:
            rows = slice(start, start + count * length)
            q, k, v = (x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q_THK, k_TGK, v_TGK))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class Linear(nn.Linear):
    """A linear map whose weight can be quantised for inference; it has then none to train or save any more."""

    codes: Tensor
    scales: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias)
        self.kind: Weights = "bf16"

    def reset_parameters(self) -> None:
        """Leave the memory as it is: weights come from a checkpoint or from an explicit initialisation."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "int8":
            out = F.linear(x, self.codes.to(x.dtype)).mul_(self.scales.to(x.dtype))
            return out if self.bias is None else out.add_(self.bias)
        if self.kind == "int4":
            return F.linear(x, dequantize_int4(self.codes, self.scales, x.dtype), self.bias)
        return F.linear(x, self.weight, self.bias)

    def quantize(self, kind: Weights) -> None:
        self.kind = kind
        codes, scales = (quantize_int8 if kind == "int8" else quantize_int4)(self.weight.detach())
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.drop_weight()

    def drop_weight(self) -> None:
        self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)


class Block(nn.Module):
    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.index, self.config = index, config
        self.attention_norm = nn.Parameter(torch.empty(config.hidden_size))
        self.qkv = Linear(config.hidden_size, config.qkv_size, config.qkv_bias)
        self.out = Linear(config.heads * config.head_dim, config.hidden_size, config.out_bias)
        self.mlp_norm = nn.Parameter(torch.empty(config.hidden_size))
        self.gate_up = Linear(config.hidden_size, 2 * config.mlp_size, config.mlp_bias)
        self.down = Linear(config.mlp_size, config.hidden_size, config.mlp_bias)

    def forward(self, x_TD: Tensor, tables: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        c = self.config
        qkv = self.qkv(rms_norm(x_TD, self.attention_norm, c.norm_eps)).unflatten(-1, (-1, c.head_dim))
        mixed = attend(self.index, qkv, tables, c.heads)
        x_TD = x_TD + self.out(mixed.flatten(1))
        return x_TD + self.down(swiglu(self.gate_up(rms_norm(x_TD, self.mlp_norm, c.norm_eps))))


class Decoder(nn.Module):
    """Token ids to final hidden states (`forward`) and those to logits (`logits`)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        self.norm = nn.Parameter(torch.empty(config.hidden_size))
        self.head = Linear(config.hidden_size, config.vocab_size)
        if config.tied_head:
            self.head.weight = self.embed
        self.native: NativeDecoder | None = None

    @property
    def device(self) -> torch.device:
        return self.embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed.dtype

    def forward(self, ids_T: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        """Hidden states (T, D) after the final norm."""
        x_TD = F.embedding(ids_T, self.embed)
        tables = rope_tables(positions_T, self.config.head_dim, self.config.rope_theta, x_TD.dtype)
        if self.native is not None:
            return self.native.forward(x_TD, tables, attend.runs(self.config))
        for block in self.blocks:
            x_TD = block(x_TD, tables, attend)
        return rms_norm(x_TD, self.norm, self.config.norm_eps)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Logits (T, V) in the model's dtype."""
        if self.native is not None:
            return self.native.logits(hidden_TD)
        out: Tensor = self.head(hidden_TD)
        return out

    def packed_logits(self, ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Logits (T, V) of packed documents. For short inputs; training never holds all logits at once."""
        return self.logits(self(ids_T, packed_positions(lengths, ids_T.device), PackedAttention(lengths)))

    def pack(self, weights: Weights = "bf16") -> Decoder:
        """Make the model inference-only, its matrices stored as `weights` says (the head never as less than int8).

        In bf16 on a CPU our own kernels take over where they can. Leaves an fp32 model's bf16 request as it is.
        """
        self.requires_grad_(False)
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            self.native = native_decoder(self.config, self.tensors(), weights)
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                if self.native is not None:
                    module.drop_weight()
                elif weights != "bf16":
                    module.quantize("int8" if name == "head" else weights)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by its name, a tied head under both of its names."""
        return {**dict(self.named_parameters()), "head.weight": self.head.weight}

    @torch.no_grad()
    def take(self, other: Decoder) -> None:
        """Take the weights of a decoder of the same configuration, in place, stored as ours are: after an optimiser's step."""
        theirs = other.tensors()
        if self.native is not None:
            self.native.replace(theirs)
        for name, ours in self.tensors().items():
            if ours.numel():
                ours.copy_(theirs[name])
        for name, module in self.named_modules():
            if isinstance(module, Linear) and self.native is None and module.kind != "bf16":
                module.weight = nn.Parameter(theirs[f"{name}.weight"].detach().to(self.dtype), requires_grad=False)
                module.quantize(module.kind)


def packed_positions(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Positions that start at 0 in every document: lengths (2, 3) -> 0 1 0 1 2."""
    return torch.cat([torch.arange(length, device=device) for length in lengths])
