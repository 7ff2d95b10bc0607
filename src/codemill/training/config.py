"""What a training run is made of."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FimConfig(BaseModel):
    """Fill-in-the-middle on the corpus."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float = Field(
        0.5, ge=0, le=1, description="Share of windows that are rearranged; 0 is plain next-token training."
    )
    node: float = Field(
        0.5, ge=0, le=1, description="Of these, the share whose middle is a statement or block (Python)."
    )
    line: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Of these, the share whose middle is whole lines; the rest is characters.",
    )
    max_lines: int = Field(12, ge=1, description="Longest middle, in lines, for the two kinds above.")


class TrainConfig(BaseModel):
    """Next-token or infilling training of a checkpoint on documents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["lora", "full"] = Field("lora", description="Adapters that are merged at the end, or all weights.")
    lora_rank: int = Field(16, ge=1, description="Rank of the adapters.")
    lora_alpha: float = Field(32.0, gt=0, description="Scale of the adapters; they are multiplied by alpha / rank.")
    fim: FimConfig = Field(FimConfig(), description="Fill-in-the-middle mix.")
    include: tuple[str, ...] = Field(("*",), description="Only documents whose path fits one of these patterns.")
    exclude: tuple[str, ...] = Field((), description="No documents whose path fits one of these patterns.")
    max_tokens: int = Field(512, ge=16, description="Longest example; documents are cut at line ends.")
    batch_tokens: int = Field(4096, ge=16, description="Tokens of one optimiser step, at most.")
    micro_tokens: int = Field(2048, ge=16, description="Tokens of one forward pass, at most.")
    steps: int = Field(100, ge=1, description="Optimiser steps, at most.")
    epochs: float | None = Field(None, gt=0, description="Passes over the text, at most; none is no bound.")
    lr: float = Field(2e-4, gt=0, description="Highest learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Shape of the decay after warm-up.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps in which the rate rises from 0.")
    final_lr: float = Field(0.1, ge=0, le=1, description="Rate at the last step, as a share of the highest.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled decay of matrices.")
    clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 does not clip.")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="Compute type; master weights are always fp32.")
    device: str = Field("auto", description="auto, cpu or cuda.")
    seed: int = Field(0, description="Source of every random choice.")
    checkpoint_every: int = Field(50, ge=1, description="Steps between checkpoints.")

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of a step (from 0) of a run of so many."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        progress = (step - warm) / max(1, steps - 1 - warm)
        fall = progress if self.schedule == "linear" else (1 - math.cos(math.pi * min(1.0, progress))) / 2
        return self.lr * (1 - (1 - self.final_lr) * min(1.0, fall))
