"""What a recipe would do: the stages with their sizes, worked out without loading weights or fetching anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codemill.core.paths import cache_dir
from codemill.models.config import DecoderConfig, read_config
from codemill.models.registry import find_model
from codemill.recipe.schema import EvaluateStage, ModelStage, Recipe, TrainStage


def plan(recipe: Recipe) -> list[dict[str, Any]]:
    """A row for each stage: name, kind, and its numbers (parameters, tokens, FLOPs, bytes of memory)."""
    rows: list[dict[str, Any]] = []
    models: dict[str, tuple[int, DecoderConfig | None]] = {}
    for name, stage in recipe.stages.items():
        row: dict[str, Any] = {"stage": name, "use": stage.use}
        if isinstance(stage, ModelStage):
            models[name] = _model_size(stage.name)
            row |= {"model": stage.name, "parameters": models[name][0]}
        elif isinstance(stage, TrainStage):
            models[name] = models[stage.model]
            row |= _training(stage, *models[name])
        elif isinstance(stage, EvaluateStage):
            row |= _evaluation(stage, *models[stage.model])
        rows.append(row)
    return rows


def _model_size(name: str) -> tuple[int, DecoderConfig | None]:
    """Parameters and, when the checkpoint is on this disk, all sizes."""
    folder = _local_folder(name)
    if folder is not None:
        config = read_config(folder)
        return config.parameters, config
    return (0 if name.startswith("hf:") else find_model(name).parameters), None


def _local_folder(name: str) -> Path | None:
    if name.startswith("hf:"):
        return None
    if "/" in name or name.startswith((".", "~")):
        return Path(name).expanduser()
    for variant in find_model(name).variants:
        folder = cache_dir() / "models" / f"{name}--{variant.name}"
        if (folder / "config.json").is_file():
            return folder
    return None


def _training(config: TrainStage, parameters: int, sizes: DecoderConfig | None) -> dict[str, Any]:
    from codemill.training.estimate import adapter_parameters, training_bytes, training_flops

    tokens = config.steps * config.batch_tokens
    active = sizes.active_parameters if sizes else parameters
    row: dict[str, Any] = {"tokens_at_most": tokens, "flops": training_flops(active, tokens, config.method)}
    if sizes:
        trained = adapter_parameters(sizes, config.lora_rank) if config.method == "lora" else parameters
        row |= {
            "trained_parameters": trained,
            "memory_bytes": training_bytes(sizes, trained, config.micro_tokens),
        }
    return row


def _evaluation(stage: EvaluateStage, parameters: int, sizes: DecoderConfig | None) -> dict[str, Any]:
    longest = max(suite.max_prompt_tokens + suite.max_tokens for suite in stage.suites)
    row: dict[str, Any] = {"suites": {suite.name: suite.tasks for suite in stage.suites}}
    if sizes:
        cache = stage.batch * longest * sizes.cache_bytes_per_token
        row["memory_bytes"] = 2 * parameters + cache + 4 * stage.batch * sizes.vocab_size + 2**30
    return row
