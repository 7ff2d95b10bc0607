"""Measuring a model behind a server: the same suites, verdicts and artifact as for a checkpoint, without torch.

The weights cannot be looked at. The identity is the address, the model's name there and how it is asked to infill, and it is
marked as not hash-checked; what the server says of itself is kept beside it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codemill.core.artifact import write_manifest
from codemill.engine.openai import OpenAIGenerator
from codemill.evaluation.checkpoint import SuiteRun, is_measured, measure, summary_of
from codemill.evaluation.summary import UNSCORABLE_LIMIT
from codemill.sandbox import Sandbox


def evaluate_endpoint(
    generator: OpenAIGenerator,
    suites: Sequence[SuiteRun],
    out: Path,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure the model behind `generator` and return the facts of the artifact written to `out`.

    Raises `UnavailableError` when the server is not there, or leaves more unanswered than may be unscorable; what was
    answered is kept, and asked no second time.
    """
    started = time.monotonic()
    sandbox = Sandbox()  # refuses here, before any work, if the isolation cannot be had
    server = generator.check()
    infill = _infill(generator, suites)
    identity = f"endpoint {generator.base} model {generator.model} infill {infill['way']} (not hash-checked)"
    for suite in suites:
        if not is_measured(suite, out):
            measure(suite, generator, sandbox, out, identity=identity, unanswered=UNSCORABLE_LIMIT)
    facts = {
        "model": generator.model,
        "endpoint": generator.base,
        "hash_checked": False,
        "server": server,
        "answered_by": sorted(generator.answered_by),
        "infill": infill,
        "suites": {suite.name: summary_of(suite, out) for suite in suites},
    }
    write_manifest(
        out,
        kind="evaluation",
        config=config,
        inputs={"model": identity, **(inputs or {})},
        seconds=time.monotonic() - started,
        facts=facts,
        packages=("httpx",),
    )
    return facts


def _infill(generator: OpenAIGenerator, suites: Sequence[SuiteRun]) -> dict[str, str]:
    """How tasks with a suffix are put, found out before the first of them; said aloud where the suffix cannot be."""
    if not any(task.suffix is not None and not task.messages for suite in suites for task in suite.tasks):
        return {"way": "unasked", "why": "no task has a suffix"}
    found = generator.infill
    if found.way == "none":
        print(
            f"{generator.base}: does not infill, tasks with a suffix are asked as a prefix alone: {found.why}",
            file=sys.stderr,
        )
    return {"way": found.way, "why": found.why}
