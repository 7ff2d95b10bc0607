"""What a recipe may say. Each stage names its kind with `use` and its inputs by the names of earlier stages."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from codemill.tasks.build import TasksConfig
from codemill.training.config import TrainConfig


class Stage(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelStage(Stage):
    """A checkpoint to start from."""

    use: Literal["model"]
    name: str = Field(description="A name of the registry, hf:OWNER/NAME@REVISION, or a folder.")


class CorpusStage(Stage):
    """Documents from repositories."""

    use: Literal["corpus"]
    sources: tuple[str, ...] = Field(min_length=1, description="path:DIR, git:URL_OR_DIR[@REV] or pypi:NAME==VERSION.")
    keep_tiers: tuple[Literal["permissive", "weak-copyleft", "copyleft", "unknown"], ...] = Field(
        ("permissive",), min_length=1, description="Licence tiers to learn from; the others are quarantined."
    )


class TasksStage(Stage, TasksConfig):
    """Verifiable tasks from the corpus' repositories, and the training text without what is held out."""

    use: Literal["tasks"]
    corpus: str = Field(description="Name of the corpus stage.")


class TrainStage(Stage, TrainConfig):
    """A checkpoint adapted to the training text."""

    use: Literal["train"]
    model: str = Field(description="Name of the stage whose checkpoint is trained.")
    documents: str = Field(description="Name of the tasks or corpus stage whose documents are learnt.")


class Suite(Stage):
    """Tasks to answer, and how."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name of the result's folder.")
    tasks: str = Field(description="A tasks stage, `humaneval`, `humaneval:PATH`, `mbpp:PATH`, or a path to tasks.")
    split: Literal["held_out", "train", "all"] = Field("held_out", description="Which tasks of a tasks stage.")
    limit: int = Field(0, ge=0, description="Only the first so many tasks; 0 takes all.")
    samples: int = Field(1, ge=1, description="Answers for each task.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus of the sampling distribution.")
    max_tokens: int = Field(96, ge=1, description="Longest answer.")
    max_prompt_tokens: int = Field(512, ge=0, description="Longest prompt; far context is cut off. 0 leaves it whole.")


class EvaluateStage(Stage):
    """A checkpoint measured on suites, with verdicts from executed code."""

    use: Literal["evaluate"]
    model: str = Field(description="Name of the stage whose checkpoint is measured.")
    suites: tuple[Suite, ...] = Field(min_length=1, description="What to measure on.")
    bits_per_byte: str = Field("", description="Name of a tasks stage: its held-out files are predicted as well.")
    bits_per_byte_tokens: int = Field(16384, ge=0, description="Tokens of them; 0 takes all.")
    batch: int = Field(32, ge=1, description="Sequences generated at once.")
    dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="Compute type.")
    device: str = Field("auto", description="auto, cpu or cuda.")
    seed: int = Field(0, description="Source of sampling and of the bootstrap.")


class ReportStage(Stage):
    """One page that says what was done and whether it helped."""

    use: Literal["report"]
    title: str = Field(description="Heading of the page.")
    notes: tuple[str, ...] = Field((), description="Sentences that a reader must know.")
    corpus: str = Field(description="Name of the corpus stage.")
    tasks: str = Field(description="Name of the tasks stage.")
    train: str = Field(description="Name of the train stage.")
    before: str = Field(description="Name of the evaluate stage of the model before.")
    after: str = Field(description="Name of the evaluate stage of the model after.")


AnyStage = ModelStage | CorpusStage | TasksStage | TrainStage | EvaluateStage | ReportStage

# Which fields of a stage name other stages, and what kinds those may be.
INPUTS: dict[str, dict[str, tuple[str, ...]]] = {
    "model": {},
    "corpus": {},
    "tasks": {"corpus": ("corpus",)},
    "train": {"model": ("model", "train"), "documents": ("tasks", "corpus")},
    "evaluate": {"model": ("model", "train"), "bits_per_byte": ("tasks",)},
    "report": {
        "corpus": ("corpus",),
        "tasks": ("tasks",),
        "train": ("train",),
        "before": ("evaluate",),
        "after": ("evaluate",),
    },
}


class Recipe(BaseModel):
    """A named chain of stages, run in the order in which they are written.

    In the file a stage may say `same_as: EARLIER` and then only what differs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name of the output folder.")
    about: str = Field("", description="What the recipe is for.")
    stages: dict[str, Annotated[AnyStage, Field(discriminator="use")]] = Field(min_length=1)


STAGE_MODELS: dict[str, type[Stage]] = {get_args(m.model_fields["use"].annotation)[0]: m for m in get_args(AnyStage)}


def inputs_of(stage: AnyStage) -> dict[str, str]:
    """Role to name of the stages that this one reads."""
    found = {role: str(getattr(stage, role)) for role in INPUTS[stage.use] if getattr(stage, role)}
    if isinstance(stage, EvaluateStage):
        found.update({f"suite {s.name}": s.tasks for s in stage.suites if not is_benchmark(s.tasks)})
    return found


def is_benchmark(tasks: str) -> bool:
    """Whether a suite's `tasks` is a benchmark or a path rather than the name of a stage."""
    return tasks == "humaneval" or ":" in tasks or "/" in tasks
