"""Building the report of a finished run: `report.html` for people, `report.json` for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codemill.core.paths import atomic_write_text
from codemill.report import corpus_view, lineage
from codemill.report.data import ReportInputs, Run, Suite, read_run
from codemill.report.finding import Finding, bits_sentence, find
from codemill.report.page import render

PAGE, NUMBERS = "report.html", "report.json"


def build_report(inputs: ReportInputs, out: Path) -> dict[str, Any]:
    """Write `report.html` and `report.json` into the folder `out`; returns the numbers, as `report.json` has them.

    The page is one file that needs no network and runs no script. The same artifacts give the same bytes. Raises
    `InputError` for an artifact that is missing or unfinished, `IntegrityError` where its files are not those of its
    manifest or a summary is not what its verdicts say.
    """
    run = read_run(inputs)
    findings = [find(suite) for suite in run.suites]
    bits = bits_sentence(*run.bits)
    page = render(run, findings, bits)
    facts: dict[str, Any] = _plain(_facts(run, findings, bits))
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / PAGE, page)
    atomic_write_text(out / NUMBERS, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    return facts


def _facts(run: Run, findings: list[Finding], bits: str) -> dict[str, Any]:
    model, details = lineage.model_names(run)
    return {
        "name": run.inputs.name,
        "title": run.inputs.title,
        "notes": [*lineage.breaks(run), *run.inputs.notes],
        "model": {"name": model, "details": details},
        "outcome": findings[0].outcome,
        "finding": findings[0].sentence,
        "suites": {s.name: _suite(s, f) for s, f in zip(run.suites, findings, strict=True)},
        "bits_per_byte": {"before": run.bits[0], "after": run.bits[1], "finding": bits},
        "corpus": {
            **{key: run.corpus.facts.get(key) for key in ("documents", "bytes", "files", "licenses", "languages")},
            "left_out": {f"{row.what}: {row.reason}": row.count for row in corpus_view.files_left_out(run)},
        },
        "tasks": {
            "splits": {split: kinds for split, kinds, _ in corpus_view.task_counts(run.made_tasks)},
            "thrown_away": {row.reason: row.count for row in corpus_view.tasks_thrown_away(run)},
        },
        "training": dict(run.train.facts),
        "stages": [
            {"name": s.name, "use": s.use, "fingerprint": s.fingerprint, "seconds": s.seconds, "cached": s.cached}
            for s in lineage.stages(run)
        ],
        "weights": [{"stage": w.stage, "file": w.file, "sha256": w.sha256} for w in lineage.weights(run)],
    }


def _suite(suite: Suite, finding: Finding) -> dict[str, Any]:
    keys = ("tasks", "samples_per_task", "scores", "statuses", "cut_off", "bounds", "valid")
    return {
        "outcome": finding.outcome,
        "finding": finding.sentence,
        "compared": len(suite.tasks),
        "comparison": suite.comparison,
        **{label: {key: side.summary.get(key) for key in keys} for label, side in suite.sides},
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN: what cannot be computed is null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
