"""What each kind of stage does: typed configuration and input folders in, an artifact folder out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from codemill.core.artifact import folder_identity
from codemill.core.contracts import Sampling, Task
from codemill.core.errors import InputError
from codemill.recipe.schema import (
    INPUTS,
    AnyStage,
    CorpusStage,
    EvaluateStage,
    ModelStage,
    Recipe,
    ReportStage,
    Suite,
    TasksStage,
    TrainStage,
    is_benchmark,
)
from codemill.tasks.build import HELD_OUT_DOCUMENTS, TRAIN_DOCUMENTS, TasksConfig
from codemill.training.config import TrainConfig

if TYPE_CHECKING:
    from codemill.engine.openai import OpenAIGenerator
    from codemill.evaluation.checkpoint import SuiteRun


@dataclass(frozen=True)
class StageRun:
    """A stage that has run, or was found finished."""

    name: str
    use: str
    folder: Path
    seconds: float
    cached: bool


@dataclass(frozen=True)
class Context:
    """What a stage may look at besides its own configuration."""

    recipe: Recipe
    done: Mapping[str, StageRun]  # earlier stages by name

    def folder(self, name: str) -> Path:
        return self.done[name].folder


def own_config(stage: AnyStage) -> dict[str, Any]:
    """The stage's configuration without the names of its inputs: what its result depends on besides them."""
    data = stage.model_dump(mode="json")
    return {key: value for key, value in data.items() if key not in INPUTS[stage.use]}


def run_stage(stage: AnyStage, out: Path, context: Context) -> None:
    """Fill the artifact folder `out`. Raises a `CodemillError` when the job cannot be done."""
    match stage:
        case CorpusStage():
            from codemill.corpus.build import build_corpus

            build_corpus(stage.sources, out, policy=corpus_policy(stage))
        case TasksStage():
            from codemill.tasks.build import build_tasks

            fields = {name: getattr(stage, name) for name in TasksConfig.model_fields}
            build_tasks(context.folder(stage.corpus), out, TasksConfig(**fields))
        case TrainStage():
            _train(stage, out, context)
        case EvaluateStage():
            _evaluate(stage, out, context)
        case ReportStage():
            _report(stage, out, context)
        case ModelStage():
            raise AssertionError("a model lies in the cache, it is not run")


def documents_file(folder: Path) -> Path:
    """The training text of a tasks folder (held-out functions removed), or of a plain corpus."""
    reduced = folder / TRAIN_DOCUMENTS
    return reduced if reduced.is_file() else folder / "documents.parquet"


def _train(stage: TrainStage, out: Path, context: Context) -> None:
    from codemill.corpus.store import read_documents
    from codemill.training.trainer import train

    source = context.folder(stage.documents)
    config = TrainConfig(**{name: getattr(stage, name) for name in TrainConfig.model_fields})
    documents = read_documents(documents_file(source))
    train(context.folder(stage.model), documents, config, out, inputs={"documents": folder_identity(source)})


def corpus_policy(stage: CorpusStage) -> Any:
    """The corpus room's policy for a stage."""
    from codemill.corpus.filters import Policy

    return Policy(tiers=stage.keep_tiers)


def _evaluate(stage: EvaluateStage, out: Path, context: Context) -> None:
    suites = [(s, None if is_benchmark(s.tasks) else context.folder(s.tasks)) for s in stage.suites]
    evaluate_on(
        context.folder(stage.model),
        suites,
        out,
        held_out=context.folder(stage.bits_per_byte) if stage.bits_per_byte else None,
        document_tokens=stage.bits_per_byte_tokens,
        batch=stage.batch,
        dtype=stage.dtype,
        device=stage.device,
        seed=stage.seed,
        config=own_config(stage),
    )


def evaluate_on(
    model: Path,
    suites: Sequence[tuple[Suite, Path | None]],
    out: Path,
    *,
    held_out: Path | None = None,
    document_tokens: int = 0,
    batch: int,
    dtype: str,
    device: str,
    seed: int,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on suites, each with the tasks folder it reads (None: a benchmark), and, if `held_out` names a
    tasks folder, in bits per byte on its held-out files."""
    from codemill.corpus.store import read_documents
    from codemill.evaluation.checkpoint import evaluate_checkpoint

    runs, facts = suite_runs(suites, seed)
    return evaluate_checkpoint(
        model,
        runs,
        out,
        documents=list(read_documents(held_out / HELD_OUT_DOCUMENTS)) if held_out else (),
        document_tokens=document_tokens,
        batch=batch,
        dtype=dtype,
        device=device,
        config=config or facts["config"],
        inputs=facts["inputs"],
    )


def evaluate_at(
    generator: OpenAIGenerator, suites: Sequence[tuple[Suite, Path | None]], out: Path, *, seed: int
) -> dict[str, Any]:
    """Measure the model behind a server on suites, as `evaluate_on` does a checkpoint."""
    from codemill.evaluation.endpoint import evaluate_endpoint

    runs, facts = suite_runs(suites, seed)
    return evaluate_endpoint(generator, runs, out, **facts)


def suite_runs(
    suites: Sequence[tuple[Suite, Path | None]], seed: int
) -> tuple[list[SuiteRun], dict[Literal["config", "inputs"], dict[str, Any]]]:
    """The runs of suites, and what their artifact records of them: `config` and `inputs`."""
    from codemill.evaluation.checkpoint import SuiteRun

    runs, inputs = [], {}
    for suite, given in suites:
        tasks, folder = suite_tasks(suite, given)
        if given is not None:
            inputs[f"suite {suite.name}"] = folder_identity(given)
        sampling = Sampling(max_tokens=suite.max_tokens, temperature=suite.temperature, top_p=suite.top_p, seed=seed)
        runs.append(
            SuiteRun(
                name=suite.name,
                tasks=tuple(tasks),
                folder=folder,
                sampling=sampling,
                samples=suite.samples,
                max_prompt_tokens=suite.max_prompt_tokens,
            )
        )
    config = {"suites": [suite.model_dump(mode="json") for suite, _ in suites], "seed": seed}
    return runs, {"config": config, "inputs": inputs}


def suite_named(reference: str, settings: Mapping[str, Any]) -> tuple[Suite, Path | None]:
    """A suite for a reference given on the command line: a benchmark, a tasks folder or a tasks file."""
    benchmark = reference.split(":")[0]
    folder = None if benchmark in ("humaneval", "mbpp") else Path(reference)
    name = benchmark if folder is None else (folder.stem or "tasks").lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", name).strip("-.") or "tasks"
    return Suite(name=name, tasks=reference, **settings), folder


def suite_tasks(suite: Suite, folder: Path | None) -> tuple[list[Task], Path]:
    """The tasks of a suite and the folder that their verifiers need."""
    from codemill.tasks.benchmarks import load_tasks

    tasks, where = load_tasks(folder if folder is not None else suite.tasks)
    if folder is not None and suite.split != "all":
        tasks = [task for task in tasks if task.metadata.get("split") == suite.split]
    if not tasks:
        raise InputError(f"suite {suite.name}: no {suite.split} tasks in {suite.tasks}")
    return (tasks[: suite.limit] if suite.limit else tasks), where


def _report(stage: ReportStage, out: Path, context: Context) -> None:
    from codemill.report import ReportInputs, StageRecord, build_report

    build_report(
        ReportInputs(
            name=context.recipe.name,
            title=stage.title,
            notes=stage.notes,
            recipe=context.recipe.model_dump(mode="json"),
            stages=tuple(StageRecord(r.name, r.use, r.folder, r.seconds, r.cached) for r in context.done.values()),
            corpus=context.folder(stage.corpus),
            tasks=context.folder(stage.tasks),
            train=context.folder(stage.train),
            before=context.folder(stage.before),
            after=context.folder(stage.after),
        ),
        out,
    )
