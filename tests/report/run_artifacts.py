"""A finished run on disk, small and made up, for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from codemill.core.artifact import write_manifest
from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.core.records import write_records
from codemill.corpus.store import DECISIONS, decision_schema, table_writer
from codemill.evaluation.summary import summarise
from codemill.report.data import ReportInputs, StageRecord

SOURCE = "pypi:sprockets==1.0"
ISOLATION = {"files": "mount namespace, Landlock 6", "network": "net namespace, seccomp", "time": "wall timer"}


@dataclass
class Outcomes:
    """A suite: for each task whether it passed before and after; `errors` are indices of harness errors after."""

    before: Sequence[bool | Sequence[bool]]
    after: Sequence[bool | Sequence[bool]]
    origin: str = "repository"
    errors: Sequence[int] = ()


@dataclass
class Spec:
    """What a made-up run is like; a test changes what it is about."""

    suites: Mapping[str, Outcomes] = field(default_factory=lambda: {"held-out": Outcomes([False] * 4, [True] * 4)})
    bits: tuple[float, float] | None = (1.0, 0.9)
    title: str = "sprockets"
    notes: tuple[str, ...] = ()
    prefix: str = "def total(values):\n"
    completion: str = "    return sum(values)\n"
    path: str = "sprockets/core.py"
    detail: str = "marked as generated"
    message: str = "AssertionError: 3 != 4"
    isolation: Mapping[str, str] = field(default_factory=lambda: ISOLATION)
    rejected: Sequence[Mapping[str, str]] = (
        {
            "repository": SOURCE,
            "path": "sprockets/core.py",
            "qualname": "f",
            "kind": "body",
            "reason": "no test enters it",
        },
    )
    losses: Sequence[float | None] = (2.0, 1.5, None, 1.25)


def outcomes(both: int = 0, gained: int = 0, lost: int = 0, neither: int = 0, **rest: Any) -> Outcomes:
    before = [True] * both + [False] * gained + [True] * lost + [False] * neither
    after = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return Outcomes(before, after, **rest)


def write_run(root: Path, spec: Spec | None = None) -> ReportInputs:
    spec = spec or Spec()
    model = _model(root / "model")
    corpus = _corpus(root / "corpus", spec)
    tasks = _tasks(root / "tasks", spec, corpus)
    train = _train(root / "train", spec, model, tasks)
    before = _evaluation(root / "before", spec, "before", model)
    after = _evaluation(root / "after", spec, "after", train)
    made = {"model": model, "corpus": corpus, "tasks": tasks, "train": train, "before": before, "after": after}
    uses = {"before": "evaluate", "after": "evaluate"}
    return ReportInputs(
        name="sprockets",
        title=spec.title,
        notes=spec.notes,
        recipe={
            "name": "sprockets",
            "stages": {"model": {"use": "model", "name": "tiny"}, "train": {"use": "train", "seed": 7}},
        },
        stages=tuple(StageRecord(n, uses.get(n, n), root / n, 1.5, n == "model") for n in made),
        corpus=root / "corpus",
        tasks=root / "tasks",
        train=root / "train",
        before=root / "before",
        after=root / "after",
    )


def _close(folder: Path, kind: str, inputs: Mapping[str, str] | None = None, **rest: Any) -> str:
    return str(write_manifest(folder, kind=kind, config=rest.pop("config", {}), inputs=inputs, **rest)["fingerprint"])


def _model(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    facts = {"title": "Tiny-Coder-1M", "variant": "bf16", "license": "Apache-2.0"}
    return _close(folder, "model", config={"model": "tiny"}, facts=facts)


def _corpus(folder: Path, spec: Spec) -> str:
    folder.mkdir()
    row = dict.fromkeys(decision_schema().names)
    texts = {"repository": SOURCE, "language": "python", "class": "programming", "hash": "", "tier": "permissive"}
    row.update(texts, license="MIT", license_evidence="LICENSE", bytes=120, lines=4, labels=[], reason="", detail="")
    with table_writer(folder / DECISIONS, decision_schema()) as table:
        table.append({**row, "path": "sprockets/kept.py", "decision": "keep"})
        table.append({**row, "path": spec.path, "decision": "drop", "reason": "generated", "detail": spec.detail})
        table.append(
            {**row, "path": "COPYING.txt", "decision": "quarantine", "reason": "license", "detail": "GPL-3.0-only"}
        )
    repository = {
        "source": SOURCE, "name": "sprockets", "revision": "1.0", "license": "MIT", "license_evidence": "LICENSE",
        "tier": "permissive", "files": 3, "kept": 1, "bytes": 120, "languages": {"python": 90, "markdown": 30},
    }  # fmt: skip
    facts = {
        "documents": 1,
        "bytes": 120,
        "files": 3,
        "languages": {"python": 90, "markdown": 30},
        "repositories": [repository],
    }
    return _close(folder, "corpus", facts=facts, config={"sources": [SOURCE]}, inputs={SOURCE: "1.0"})


def _tasks(folder: Path, spec: Spec, corpus: str) -> str:
    folder.mkdir()
    suite = next(iter(spec.suites.values()))
    write_records(folder / "tasks.jsonl", make_tasks(spec, suite))
    write_records(folder / "rejected.jsonl", spec.rejected)
    suites = {SOURCE: {"tests": 31, "unused": {"flaky": 2, "skipped": 5}, "cut": False}}
    facts = {"text": {"functions cut out": 4, "copies removed": {}}, "suites": suites}
    return _close(folder, "tasks", {"corpus": corpus}, facts=facts)


def _train(folder: Path, spec: Spec, model: str, tasks: str) -> str:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"other weights")
    rows = [
        {"step": i, "loss": loss, "lr": 1e-4, "gradient_norm": 1.0, "skipped": loss is None, "tokens": 100,
         "trained_tokens": 90, "seconds": 0.5, "tokens_per_second": 200.0, "epoch": 0}
        for i, loss in enumerate(spec.losses)
    ]  # fmt: skip
    write_records(folder / "metrics.jsonl", rows)
    facts = {"steps": len(rows), "tokens": 100 * len(rows), "first_loss": 2.0, "last_loss": 1.25, "tokens_per_second": 200.0,
             "trained_parameters": 1000, "device": "cpu", "dtype": "bfloat16"}  # fmt: skip
    return _close(
        folder,
        "train",
        {"model": model, "documents": tasks},
        facts=facts,
        config={"method": "lora", "lr": 1e-4, "include": ["*.py"], "exclude": ["*test*"]},
    )


def make_tasks(spec: Spec, suite: Outcomes) -> list[Task]:
    return [
        Task(
            id=f"{spec.path}:f{i}:body",
            prefix=spec.prefix,
            suffix="\n\ndef after():\n    pass\n",
            gold="    return total_of(values)\n",
            verifier={"kind": "workspace", "seconds": 5.0},
            metadata={
                "origin": suite.origin,
                "repository": SOURCE,
                "kind": "body",
                "split": "held_out",
                "cluster": f"f{i}",
            },
        )
        for i in range(len(suite.before))
    ]


def _evaluation(folder: Path, spec: Spec, which: str, model: str) -> str:
    for name, suite in spec.suites.items():
        tasks = make_tasks(spec, suite)
        verdicts, answers = [], []
        for i, (task, passes) in enumerate(zip(tasks, getattr(suite, which), strict=True)):
            for sample, passed in enumerate([passes] if isinstance(passes, bool) else passes):
                verdict = _verdict(spec, task, sample, passed)
                if which == "after" and i in suite.errors:
                    verdict = replace(verdict, status=Status.HARNESS_ERROR, score=0.0)
                verdicts.append(verdict)
                answers.append(Answer(task_id=task.id, sample=sample, completion=spec.completion + f"# {which}\n"))
        write_suite(folder / name, tasks, answers, verdicts)
    if spec.bits:
        bits = {"bits_per_byte": spec.bits[which == "after"], "bytes": 5000, "tokens": 1500, "windows": 3}
        (folder / "bits_per_byte.json").write_text(json.dumps(bits))
    return _close(folder, "evaluate", {"model": model})


def write_suite(folder: Path, tasks: Sequence[Task], answers: Sequence[Answer], verdicts: Sequence[Verdict]) -> None:
    folder.mkdir(parents=True)
    write_records(folder / "tasks.jsonl", tasks)
    write_records(folder / "answers.jsonl", answers)
    write_records(folder / "verdicts.jsonl", verdicts)
    sampling = {"max_tokens": 96, "temperature": 0.0, "samples": 1, "max_prompt_tokens": 512}
    rest = {"styles": ["infill"], "sampling": sampling, "cut_off": 0}
    (folder / "summary.json").write_text(json.dumps({**summarise(tasks, verdicts), **rest}))


def _verdict(spec: Spec, task: Task, sample: int, passed: bool) -> Verdict:
    test = TestResult(id="pytest:tests/test_core.py::test_total", passed=passed, message="" if passed else spec.message)
    status = Status.PASSED if passed else Status.FAILED
    return Verdict(
        task_id=task.id,
        sample=sample,
        status=status,
        score=float(passed),
        tests=(test,),
        isolation=dict(spec.isolation),
    )
