"""The training loop: packed batches, one loss over a global count, exact resume."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from codemill.core.artifact import fingerprint, folder_identity, write_manifest
from codemill.core.contracts import Document
from codemill.core.errors import InputError, IntegrityError
from codemill.core.interrupt import deferred_interrupt
from codemill.core.paths import atomic_folder
from codemill.core.progress import Progress
from codemill.core.records import RecordLog, read_json_lines, write_records
from codemill.models.checkpoint import load_decoder, save_decoder
from codemill.models.decoder import Decoder, PackedAttention, packed_positions
from codemill.models.lora import add_lora, merge_lora
from codemill.models.memory import release_freed_memory
from codemill.models.tokenizer import Tokenizer
from codemill.training.config import TrainConfig
from codemill.training.data import Batch, BatchStream, Position
from codemill.training.loss import linear_cross_entropy
from codemill.training.optimizer import MasterAdamW

METRICS, CHECKPOINT, STATE = "metrics.jsonl", "checkpoint", "state.json"
# Batches differ in shape, so kept memory falls into pieces and grows; giving it back costs a twentieth of one step.
_TIDY_STEPS = 8


def train(
    model: Path,
    documents: Iterable[Document],
    config: TrainConfig,
    out: Path,
    *,
    inputs: dict[str, str] | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Adapt the checkpoint folder `model` and write the result as a Hugging Face folder into `out`.

    Continues from `out/checkpoint` if a former run of the same configuration was stopped. `until` stops after that many
    steps, with a checkpoint and without a result. `inputs` adds to the lineage that the manifest records. Returns facts:
    loss, tokens, speed, steps skipped.
    """
    run = Run(model, list(documents), config, out)
    run.loop(run.steps if until is None else min(until, run.steps))
    return run.finish(inputs or {}) if run.step >= run.steps else run.facts()


class Run:
    """The state of a training run: weights, optimiser, data position, step."""

    def __init__(self, model: Path, documents: list[Document], config: TrainConfig, out: Path) -> None:
        self.config, self.out, self.model = config, out, model
        self.model_identity = folder_identity(model)
        out.mkdir(parents=True, exist_ok=True)
        self.identity = fingerprint(
            {
                "config": config.model_dump(mode="json"),
                "model": self.model_identity,
                "data": [d.hash for d in documents],
            }
        )
        self.decoder = load_decoder(model, dtype=config.dtype, device=config.device)
        self.named = _trained_parameters(self.decoder, config)
        self.optimizer = MasterAdamW(self.named, weight_decay=config.weight_decay)
        self.stream = BatchStream(documents, Tokenizer.load(model), config)
        self.per_step = max(1, config.batch_tokens // config.micro_tokens)
        self.steps = config.steps
        if config.epochs is not None:
            self.steps = min(self.steps, math.ceil(config.epochs * self.stream.epoch_batches() / self.per_step))
        self.step = 0
        self._resume()

    def loop(self, until: int) -> None:
        """Train up to step `until`; saves a checkpoint on the way, at the end, and when interrupted."""
        batches = iter(self.stream)
        with (
            Progress("train", total=self.steps, unit="steps") as progress,
            RecordLog(self.out / METRICS) as metrics,
            deferred_interrupt() as interrupt,
        ):
            progress.advance(self.step)
            while self.step < until:
                row = self._one_step(list(islice(batches, self.per_step)))
                metrics.append(row)
                self.step += 1
                if self.step % _TIDY_STEPS == 0:
                    release_freed_memory()
                progress.advance(1, f"loss {row['loss'] or float('nan'):.3f}  {row['tokens_per_second']:.0f} tokens/s")
                if interrupt.asked or (self.step % self.config.checkpoint_every == 0 and self.step < self.steps):
                    self._save()
                if interrupt.asked:
                    raise KeyboardInterrupt
        if self.step < self.steps:
            self._save()

    def _one_step(self, batches: list[Batch]) -> dict[str, Any]:
        started = time.perf_counter()
        lr = self.config.learning_rate(self.step, self.steps)
        trained = sum(batch.trained for batch in batches)
        loss = sum(self._backward(batch, 1 / max(1, trained)) for batch in batches)
        norm, made = self.optimizer.step(lr, self.config.clip)
        seconds = time.perf_counter() - started
        tokens = sum(len(batch.ids_T) for batch in batches)
        return {
            "step": self.step,
            "loss": loss if made else None,
            "lr": lr,
            "gradient_norm": norm if made else None,
            "skipped": not made,
            "tokens": tokens,
            "trained_tokens": trained,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
            "epoch": self.stream.position.epoch,
        }

    def _backward(self, batch: Batch, scale: float) -> float:
        """Add this batch's share of the step's gradient; returns its share of the step's loss."""
        device = self.decoder.device
        ids = batch.ids_T.to(device)
        hidden = self.decoder(ids, packed_positions(batch.lengths, device), PackedAttention(batch.lengths))
        loss = linear_cross_entropy(hidden, self.decoder.head.weight, batch.labels_T.to(device), scale)
        loss.backward()
        self.optimizer.gather()
        return float(loss.detach())

    def _save(self) -> None:
        with atomic_folder(self.out / CHECKPOINT) as folder:
            save_file(
                {k: v.contiguous() for k, v in self.optimizer.state().items()},
                folder / "optimizer.safetensors",
            )
            position = self.stream.position
            state = {
                "step": self.step,
                "epoch": position.epoch,
                "index": position.index,
                "identity": self.identity,
            }
            (folder / STATE).write_text(json.dumps(state))

    def _resume(self) -> None:
        folder = self.out / CHECKPOINT
        if not (folder / STATE).is_file():
            (self.out / METRICS).unlink(missing_ok=True)
            return
        try:
            state = json.loads((folder / STATE).read_text())
            if state["identity"] != self.identity:
                raise InputError(
                    f"{folder}: belongs to a run with another model, data or configuration; "
                    f"choose another output folder or remove {self.out}"
                )
            self.optimizer.load_state(load_file(folder / "optimizer.safetensors", device=str(self.decoder.device)))
            self.step, self.stream.position = state["step"], Position(state["epoch"], state["index"])
        except (json.JSONDecodeError, KeyError, SafetensorError, OSError) as error:
            raise IntegrityError(f"{folder}: damaged checkpoint ({error}); remove it to start again") from None
        if (self.out / METRICS).is_file():
            with RecordLog(self.out / METRICS):
                pass  # cuts off a torn last line
            rows = [row for _, row in read_json_lines(self.out / METRICS) if row["step"] < self.step]
            write_records(self.out / METRICS, rows)

    def facts(self) -> dict[str, Any]:
        """What the run did so far."""
        rows = [row for _, row in read_json_lines(self.out / METRICS)]
        seen = [row["loss"] for row in rows if row["loss"] is not None]
        tenth = max(1, len(seen) // 10)
        seconds = sum(row["seconds"] for row in rows)
        tokens = sum(row["tokens"] for row in rows)
        return {
            "steps": self.step,
            "skipped_steps": sum(row["skipped"] for row in rows),
            "tokens": tokens,
            "seconds": round(seconds, 1),
            "epochs": rows[-1]["epoch"] if rows else 0,
            "first_loss": sum(seen[:tenth]) / tenth if seen else None,
            "last_loss": sum(seen[-tenth:]) / tenth if seen else None,
            "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
            "trained_parameters": sum(parameter.numel() for _, parameter in self.named),
            "device": str(self.decoder.device),
            "dtype": str(self.decoder.dtype).removeprefix("torch."),
        }

    def finish(self, inputs: dict[str, str]) -> dict[str, Any]:
        """Merge, write the result with its manifest, and drop the checkpoint."""
        facts = self.facts()
        save_decoder(merge_lora(self.decoder), self.out, like=self.model)
        shutil.rmtree(self.out / CHECKPOINT, ignore_errors=True)
        write_manifest(
            self.out,
            kind="checkpoint",
            config=self.config.model_dump(mode="json"),
            inputs={"model": self.model_identity, **inputs},
            seconds=facts["seconds"],
            facts=facts,
            packages=("torch", "safetensors", "tokenizers"),
        )
        return facts


def _trained_parameters(decoder: Decoder, config: TrainConfig) -> list[tuple[str, nn.Parameter]]:
    if config.method == "lora":
        add_lora(decoder, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
    return [(name, parameter) for name, parameter in decoder.named_parameters() if parameter.requires_grad]
