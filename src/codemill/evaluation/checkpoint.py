"""Measuring a checkpoint: any number of suites and, if asked, bits per byte, into one artifact.

The folder holds a sub-folder for each suite (`tasks.jsonl`, `answers.jsonl`, `verdicts.jsonl`, `summary.json`), and
`bits_per_byte.json`. It is filled in place, so that a run that was stopped goes on; `manifest.json` comes last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.core.artifact import folder_identity, write_manifest
from codemill.core.contracts import Document, Generator, Sampling, Task
from codemill.core.paths import atomic_write_text
from codemill.core.records import write_records
from codemill.evaluation.evaluate import SUMMARY, evaluate
from codemill.sandbox import Sandbox

if TYPE_CHECKING:
    from codemill.engine.engine import Engine

BITS_PER_BYTE = "bits_per_byte.json"
TASKS = "tasks.jsonl"


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """A suite to answer: its tasks, the folder that their verifiers need, and how to sample."""

    name: str
    tasks: tuple[Task, ...]
    folder: Path
    sampling: Sampling
    samples: int = 1
    max_prompt_tokens: int = 0


def evaluate_checkpoint(
    model: Path,
    suites: Sequence[SuiteRun],
    out: Path,
    *,
    documents: Sequence[Document] = (),
    document_tokens: int = 0,
    batch: int = 32,
    dtype: str = "auto",
    device: str = "auto",
    config: dict[str, Any] | None = None,
    inputs: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Measure the checkpoint folder `model` and return the facts of the artifact written to `out`."""
    started = time.monotonic()
    sandbox = Sandbox()  # refuses here, before any work, if the isolation cannot be had
    identity = folder_identity(model)
    engine: Engine | None = None
    facts: dict[str, Any] = {"model": model.name, "suites": {}}
    for suite in suites:
        if not is_measured(suite, out):
            engine = engine or _load(model, dtype, device, batch)
            measure(suite, engine, sandbox, out, identity=identity)
        facts["suites"][suite.name] = summary_of(suite, out)
    if documents:
        path = out / BITS_PER_BYTE
        if not path.is_file():
            from codemill.evaluation.perplexity import bits_per_byte

            engine = engine or _load(model, dtype, device, batch)
            result = bits_per_byte(engine.decoder, engine.tokenizer, documents, budget=document_tokens)
            atomic_write_text(path, json.dumps(result, indent=1) + "\n")
        facts["bits_per_byte"] = json.loads(path.read_text())
    write_manifest(
        out,
        kind="evaluation",
        config=config or {},
        inputs={"model": identity, **(inputs or {})},
        seconds=time.monotonic() - started,
        facts=facts,
        packages=("torch", "tokenizers"),
    )
    return facts


def is_measured(suite: SuiteRun, out: Path) -> bool:
    return (out / suite.name / SUMMARY).is_file()


def summary_of(suite: SuiteRun, out: Path) -> Any:
    return json.loads((out / suite.name / SUMMARY).read_text())


def measure(
    suite: SuiteRun, generator: Generator, sandbox: Sandbox, out: Path, *, identity: str, unanswered: float = 0.0
) -> None:
    """Answer and verify a suite into its folder below `out`; see `evaluate`."""
    write_records(out / suite.name / TASKS, suite.tasks)
    evaluate(
        suite.tasks,
        suite.folder,
        generator,
        sandbox,
        out / suite.name,
        identity=identity,
        sampling=suite.sampling,
        samples=suite.samples,
        max_prompt_tokens=suite.max_prompt_tokens,
        ks=tuple(k for k in (1, 10, 100) if k <= suite.samples),
        unanswered=unanswered,
    )


def _load(model: Path, dtype: str, device: str, batch: int) -> Engine:
    from codemill.engine.engine import Engine

    return Engine.load(model, dtype=dtype, device=device, max_batch=batch)
