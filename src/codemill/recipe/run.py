"""Running a recipe: stages in order, each cached by the hash of its configuration and its inputs.

A finished stage is an artifact folder with a manifest; it is never done again. A stage that was stopped goes on in its
own folder. Everything lies under `out/RECIPE/`, one folder a stage, named by the hash.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codemill.core.artifact import fingerprint, folder_identity, is_finished, read_manifest, write_manifest
from codemill.core.errors import ConfigError, UnavailableError, nearest
from codemill.core.paths import locked
from codemill.recipe.schema import AnyStage, CorpusStage, ModelStage, Recipe, ReportStage, inputs_of
from codemill.recipe.stages import Context, StageRun, own_config, run_stage

# Raised when a stage's meaning changes, so that old results are not mistaken for new ones.
STAGE_FORMAT = 1


def run_recipe(
    recipe: Recipe, out: Path, *, until: str = "", say: Callable[[str], None] = lambda line: None
) -> dict[str, StageRun]:
    """Run every stage (up to and including `until`) and return them by name. `say` gets a line for people per stage."""
    if until and until not in recipe.stages:
        raise ConfigError(f"--until {until}: no such stage; {nearest(until, recipe.stages)}")
    home = out / recipe.name
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnavailableError(f"{home}: cannot be created ({error.strerror}); choose another with --out") from None
    done: dict[str, StageRun] = {}
    with locked(home / ".lock"):
        for number, (name, stage) in enumerate(recipe.stages.items(), 1):
            counter = f"[{number}/{len(recipe.stages)}]"
            done[name] = _run_one(name, stage, home, Context(recipe, dict(done)), counter, say)
            if isinstance(stage, ReportStage):
                shutil.copyfile(done[name].folder / "report.html", home / "report.html")
            if name == until:
                break
    return done


def _run_one(
    name: str, stage: AnyStage, home: Path, context: Context, counter: str, say: Callable[[str], None]
) -> StageRun:
    started = time.monotonic()
    if isinstance(stage, ModelStage):
        from codemill.models.pull import pull

        say(f"{counter} {name}: model {stage.name}")
        return StageRun(name, stage.use, pull(stage.name), time.monotonic() - started, False)
    folder = home / f"{name}-{stage_key(stage, context)}"
    if is_finished(folder):
        seconds = float(read_manifest(folder)["seconds"])
        say(f"{counter} {name}: done before ({folder})")
        return StageRun(name, stage.use, folder, seconds, True)
    say(f"{counter} {name}: {stage.use} -> {folder}")
    run_stage(stage, folder, context)
    seconds = time.monotonic() - started
    if not is_finished(folder):
        write_manifest(
            folder, kind=stage.use, config=own_config(stage), inputs=_inputs(stage, context), seconds=seconds
        )
    return StageRun(name, stage.use, folder, seconds, False)


def stage_key(stage: AnyStage, context: Context) -> str:
    """The hash that names a stage's folder: its configuration and the identity of everything it reads."""
    parts: dict[str, Any] = {
        "format": STAGE_FORMAT,
        "config": own_config(stage),
        "inputs": _inputs(stage, context),
    }
    if isinstance(stage, CorpusStage):
        from codemill.corpus.sources import resolve

        parts["revisions"] = [resolve(source) for source in stage.sources]  # a folder may have changed since
    return fingerprint(parts)[:10]


def _inputs(stage: AnyStage, context: Context) -> dict[str, str]:
    return {role: folder_identity(context.folder(target)) for role, target in sorted(inputs_of(stage).items())}
