"""Where everything came from: stages and their fingerprints, weights, versions, seeds, commands, isolation."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from codemill.core.contracts import Task, Verdict
from codemill.report.data import Artifact, Run

# What each axis of the sandbox's isolation keeps an answer from.
AXES: Mapping[str, str] = {
    "files": "reading or changing files outside its own folder",
    "network": "opening any socket",
    "syscalls": "using kernel interfaces that tests never need",
    "privileges": "holding or gaining privileges",
    "processes": "reaching or outliving other processes",
    "memory": "taking more memory than allowed",
    "time": "running longer than allowed",
    "output": "printing or writing without end",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of the lineage table. `inputs` are roles with the stage they name, or with a fingerprint."""

    name: str
    use: str
    fingerprint: str
    inputs: tuple[tuple[str, str], ...]
    seconds: float
    cached: bool
    created: str


@dataclass(frozen=True, slots=True)
class Weights:
    """A file of weights and its hash."""

    stage: str
    file: str
    bytes: int
    sha256: str
    license: str


def stages(run: Run) -> list[Stage]:
    names = {artifact.fingerprint: record.name for record, artifact in run.stages if artifact}
    found = []
    for record, artifact in run.stages:
        manifest = artifact.manifest if artifact else {}
        inputs = tuple((str(role), names.get(str(of), str(of))) for role, of in manifest.get("inputs", {}).items())
        fingerprint = artifact.fingerprint if artifact else ""
        found.append(
            Stage(
                record.name,
                record.use,
                fingerprint,
                inputs,
                record.seconds,
                record.cached,
                str(manifest.get("created", "")),
            )
        )
    return found


def weights(run: Run) -> list[Weights]:
    """Every safetensors file of the run's stages."""
    found = []
    for record, artifact in run.stages:
        for name, entry in sorted((artifact.manifest.get("files", {}) if artifact else {}).items()):
            if artifact and name.endswith(".safetensors"):
                license = str(artifact.facts.get("license") or "")
                found.append(
                    Weights(record.name, name, int(entry.get("bytes", 0)), str(entry.get("sha256", "")), license)
                )
    return found


def model_names(run: Run) -> tuple[str, str]:
    """What was adapted, and which variant of it under which licence; as far as the run says."""
    for record, artifact in run.stages:
        if record.use != "model":
            continue
        facts: Mapping[str, Any] = artifact.facts if artifact else {}
        config: Mapping[str, Any] = artifact.config if artifact else {}
        asked = _stage_of(run, record.name).get("name")
        title = facts.get("title") or config.get("model") or asked or record.name
        details = [str(v) for v in (facts.get("variant"), facts.get("license")) if v]
        return str(title), ", ".join(details)
    return "the base model", ""


def breaks(run: Run) -> list[str]:
    """Where the chain does not hold: what was measured is not what was trained, or not on what it was made from."""
    found = []
    before, after, train = (artifact.manifest.get("inputs", {}) for artifact in (run.before, run.after, run.train))
    if after.get("model", run.train.fingerprint) != run.train.fingerprint:
        found.append("The model measured after training is not the one that this run trained.")
    if before.get("model") != train.get("model"):
        found.append("The model measured before training is not the one that the training started from.")
    if train.get("documents", run.tasks.fingerprint) not in (run.tasks.fingerprint, run.corpus.fingerprint):
        found.append("The training text came from neither the corpus nor the tasks shown here.")
    return found


def _stage_of(run: Run, name: str) -> Mapping[str, Any]:
    stages = run.inputs.recipe.get("stages")
    stage = stages.get(name) if isinstance(stages, Mapping) else None
    return stage if isinstance(stage, Mapping) else {}


def versions(run: Run) -> list[tuple[str, str]]:
    """Package and version; several where stages were made with different ones."""
    found: dict[str, set[str]] = {}
    for _, manifest in _manifests(run):
        for package, version in manifest.get("versions", {}).items():
            found.setdefault(str(package), set()).add(str(version))
    return [(package, ", ".join(sorted(seen))) for package, seen in sorted(found.items())]


def machines(run: Run) -> list[str]:
    return sorted({str(manifest["machine"]) for _, manifest in _manifests(run) if manifest.get("machine")})


def command(run: Run) -> str:
    """The command of the stage that was made last; its program without the folder it lay in."""
    latest = max(_manifests(run), key=lambda item: str(item[1].get("created", "")))[1]
    words = [str(word) for word in latest.get("command", [])]
    return shlex.join([PurePath(words[0]).name, *words[1:]]) if words else ""


def licenses(run: Run) -> str:
    """Under which licences the base model and the documents came, as far as the run knows."""
    models = sorted({w.license for w in weights(run) if w.license})
    documents = run.corpus.facts.get("licenses")
    parts = [f"base model {', '.join(models)}"] if models else []
    if isinstance(documents, Mapping) and documents:
        parts.append("documents " + ", ".join(f"{name} ({count:,})" for name, count in documents.items()))
    return "; ".join(parts)


def seeds(run: Run) -> list[tuple[str, Any]]:
    """Stage and seed, as the recipe says them."""
    stages = run.inputs.recipe.get("stages")
    entries = stages.items() if isinstance(stages, Mapping) else ()
    return [(str(name), stage["seed"]) for name, stage in entries if isinstance(stage, Mapping) and "seed" in stage]


def _manifests(run: Run) -> list[tuple[str, Mapping[str, Any]]]:
    named: list[tuple[str, Artifact]] = [("corpus", run.corpus), ("tasks", run.tasks), ("train", run.train)]
    named += [("before", run.before), ("after", run.after)]
    named += [(record.name, artifact) for record, artifact in run.stages if artifact]
    return [(name, artifact.manifest) for name, artifact in named]


def _verdicts(run: Run) -> Iterator[Verdict]:
    for suite in run.suites:
        for _, side in suite.sides:
            for found in side.verdicts.values():
                yield from found


def isolation(run: Run) -> list[tuple[str, str, tuple[tuple[str, int], ...]]]:
    """Axis, what it keeps an answer from, and what enforced it with the number of verdicts."""
    axes: dict[str, Counter[str]] = {}
    for verdict in _verdicts(run):
        for axis, enforced_by in verdict.isolation.items():
            axes.setdefault(axis, Counter())[enforced_by] += 1
    order = {axis: place for place, axis in enumerate(AXES)}
    chosen = sorted(axes.items(), key=lambda item: (order.get(item[0], 99), item[0]))
    return [(axis, AXES.get(axis, ""), tuple(sorted(seen.items()))) for axis, seen in chosen]


def verdict_counts(run: Run) -> tuple[int, int]:
    """Verdicts in all, and those of answers that were judged without being run."""
    found = list(_verdicts(run))
    return len(found), sum(not verdict.isolation for verdict in found)


def time_limits(tasks: list[Task]) -> tuple[float, float] | None:
    """Least and largest wall limit of a suite's tasks, in seconds."""
    limits = [task.verifier["seconds"] for task in tasks if isinstance(task.verifier.get("seconds"), int | float)]
    return (float(min(limits)), float(max(limits))) if limits else None
