"""The judge's side of the scripts in `inside`: builds their jobs and reads their reports, trusting neither.

A report counts only when its lines carry the fresh nonce of the run. `ready` is written before anything of the answer
runs: a run without it is our fault, a run with it and without its end record is the answer's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from codemill.core.contracts import Status
from codemill.core.errors import InputError
from codemill.core.text import visible
from codemill.sandbox import Job, Outcome, Policy, python_argv
from codemill.tasks.functions import Docstring, example_docstrings, parse
from codemill.tasks.layout import is_control, read_layout

INSIDE = Path(__file__).parent / "inside"
START_UP_SECONDS = 2.0  # for the jail, the interpreter and the imports of the harness, on top of a task's own limit
SUITE_MEMORY = 1 << 30  # bytes
MAX_WIDENING = 4.0
TAIL_CHARACTERS = 2000


def load_factor() -> float:
    """How much longer a run takes on this machine right now: runnable processes per core, between 1 and 4.

    Wall limits are widened by it, because a busy machine must not turn right answers wrong; CPU limits are not.
    """
    try:
        running = float(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        running = 0.0
    cores = len(os.sched_getaffinity(0))
    return min(MAX_WIDENING, max(1.0, os.getloadavg()[0] / cores, running / cores))


@dataclass(frozen=True, slots=True)
class TestRecord:
    """One test's line of a report. `enters` are the functions it entered, as (path, first line)."""

    id: str
    passed: bool
    message: str
    seconds: float
    enters: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a run proved. `results` is None without an end record; `foreign` counts lines that were not ours. `over` and
    `fault`: see `inside/suite_judge.py`."""

    ready: bool = False
    results: Mapping[str, bool] | None = None
    tests: Mapping[str, TestRecord] = field(default_factory=dict)
    problem: str = ""
    broken: tuple[str, ...] = ()
    seconds: float = 0.0
    memory: bool = False
    foreign: int = 0
    over: str = ""
    fault: str = ""


def read_report(data: bytes, nonce: str) -> Report:
    """Parse a result channel. Whatever stands there, no exception: lines that do not fit are counted as foreign."""
    tests: dict[str, TestRecord] = {}
    functions: dict[int, tuple[str, int]] = {}
    ready, end, foreign = False, None, 0
    for line in data.split(b"\n"):
        record = _own_line(line, nonce)
        if record is None:
            foreign += bool(line.strip())
        elif "ready" in record:
            ready = True
        elif "functions" in record:
            functions.update(_functions(record["functions"]))
        elif "end" in record and end is None:
            end = record
        elif "test" in record:
            test = _test_record(record, functions)
            tests[test.id] = test
    if end is None:
        return Report(ready=ready, tests=tests, foreign=foreign)
    for entry in end["tests"] if isinstance(end.get("tests"), list) else []:
        if isinstance(entry, dict):
            test = _test_record({**entry, "test": entry.get("id")}, functions)
            tests[test.id] = test
    results = end.get("results")
    if not isinstance(results, dict):
        results = {test.id: test.passed for test in tests.values()}
    return Report(
        ready=ready,
        results={str(name): passed is True for name, passed in results.items()},
        tests=tests,
        problem=str(end.get("problem", ""))[:TAIL_CHARACTERS],
        broken=tuple(str(text)[:TAIL_CHARACTERS] for text in _list(end.get("broken"))[:20]),
        seconds=_number(end.get("seconds")),
        memory=any(isinstance(entry, dict) and entry.get("memory") is True for entry in _list(end.get("tests"))),
        foreign=foreign,
        over=str(end.get("over", "")),
        fault=str(end.get("fault", ""))[:TAIL_CHARACTERS],
    )


def _own_line(line: bytes, nonce: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("nonce"), str):
        return None
    return record if secrets.compare_digest(record["nonce"].encode(errors="replace"), nonce.encode()) else None


def _functions(value: Any) -> dict[int, tuple[str, int]]:
    try:
        return {int(index): (str(path), int(line)) for index, path, line in value}
    except (TypeError, ValueError):
        return {}


def _test_record(record: Mapping[str, Any], functions: Mapping[int, tuple[str, int]]) -> TestRecord:
    enters = [
        functions[index] for index in _list(record.get("enters")) if isinstance(index, int) and index in functions
    ]
    return TestRecord(
        id=str(record["test"]),
        passed=record.get("passed") is True,
        message=str(record.get("message", ""))[:TAIL_CHARACTERS],
        seconds=_number(record.get("seconds")),
        enters=tuple(enters),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else 0.0


def ending(outcome: Outcome, report: Report) -> tuple[Status, str] | None:
    """The verdict that the end of a run alone decides, None when its tests decide.

    Without `ready` nothing of the answer ever ran, so that one case is the harness's fault; everything later is the
    answer's own doing, however it ended.
    """
    if not report.ready:
        tail = decoded(outcome.stderr)[-300:].strip().replace("\n", " | ")
        return Status.HARNESS_ERROR, f"the harness did not start ({describe_end(outcome)}): {tail}"
    match outcome.end:
        case "exited":
            pass
        case "timeout":
            return Status.TIMEOUT, f"stopped after {outcome.seconds:.1f} s"
        case "memory":
            return Status.MEMORY, f"stopped at {outcome.peak_bytes / 2**20:.0f} MiB of memory"
        case "signal":
            return Status.CRASHED, f"ended by {describe_end(outcome)}"
        case other:
            return Status.REFUSED, f"broke the sandbox's limit: {other}"
    if report.foreign:
        return Status.FAILED, "something other than the tests wrote to the result channel"
    if report.results is None:
        return Status.FAILED, f"the process ended ({describe_end(outcome)}) before its tests had reported"
    return None


def describe_end(outcome: Outcome) -> str:
    match outcome.end:
        case "exited":
            return f"exit code {outcome.exit_code}"
        case "signal":
            return f"signal {outcome.signal}"
        case other:
            return other


def decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def tail(data: bytes) -> str:
    return visible(decoded(data)[-TAIL_CHARACTERS:])


@lru_cache(maxsize=1024)
def docstrings_of(workspace: Path, path: str) -> Mapping[str, Docstring]:
    """The docstrings with examples of a pristine file by qualified name; empty for a file that cannot be read."""
    try:
        tree = parse((workspace / path).read_bytes().decode("utf-8"), path)
        return {found.qualname: found for found in example_docstrings(tree)}
    except (OSError, UnicodeDecodeError, InputError, RecursionError):
        return {}


def doctest_id(path: str, qualname: str) -> str:
    return f"doctest:{path}::{qualname}"


@lru_cache(maxsize=256)
def control_hashes(workspace: Path) -> Mapping[str, str]:
    """SHA-256 of every control file of a pristine repository."""
    found = {}
    for file in sorted(workspace.rglob("*")):
        path = file.relative_to(workspace).as_posix()
        if is_control(path) and file.is_file() and not file.is_symlink():
            found[path] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """A job that runs tests of a repository, and the nonce that its report must carry."""

    job: Job
    nonce: str

    def report(self, outcome: Outcome) -> Report:
        return read_report(outcome.result, self.nonce)


def suite_run(
    workspace: Path,
    environment: Path | None,
    *,
    doctests: Iterable[str],
    pytest_ids: Sequence[str] | None = (),
    files: Mapping[str, str] | None = None,
    trace: bool = False,
    test_seconds: float | None = None,
    wall_seconds: float,
    cpu_seconds: float | None = None,
) -> SuiteRun:
    """A jailed run of doctests and pytest ids in a copy of a repository.

    `pytest_ids` None runs what the repository's own settings collect, () runs none. `files` are the answer's texts by
    path. `wall_seconds` limits the whole run, `cpu_seconds` (default: the same) its processor time; with `test_seconds` no
    test is started in the last tenth.
    """
    answered = sorted(path for path in files or {} if path.endswith(".py"))
    # Byte code lies beside the pristine sources. That of an answered file is the right answer.
    bare = [path for path in map(compiled_path, answered) if (workspace / path).is_file()]
    request = suite_request(workspace, environment, doctests=doctests, pytest_ids=pytest_ids)
    request |= {
        "compile": answered,
        "control": {**control_hashes(workspace), **dict.fromkeys(bare, hashlib.sha256(b"").hexdigest())},
        "trace": trace,
        "test_seconds": test_seconds,
        "suite_seconds": None if test_seconds is None else 0.9 * wall_seconds,
    }
    job = Job(
        argv=python_argv(INSIDE / "run_tests.py"),
        workspace=workspace,
        # Lone surrogates become bytes that do not decode: the answer's own error, found by the script.
        files={
            **{path: text.encode("utf-8", "surrogatepass") for path, text in (files or {}).items()},
            **dict.fromkeys(bare, b""),
        },
        readable=(INSIDE, *([environment] if environment else [])),
        stdin=json.dumps(request).encode(),
        policy=Policy(
            wall_seconds=wall_seconds, cpu_seconds=cpu_seconds or wall_seconds, memory_bytes=SUITE_MEMORY, processes=64
        ),
        result=True,
    )
    return SuiteRun(job, request["nonce"])


def compiled_path(path: str) -> str:
    """Where the byte code of a source file lies."""
    return importlib.util.cache_from_source(path)


def suite_request(
    workspace: Path,
    environment: Path | None,
    *,
    doctests: Iterable[str],
    pytest_ids: Sequence[str] | None,
) -> dict[str, Any]:
    """A request to `inside/run_tests.py` with a fresh nonce, for tests that nothing limits or watches."""
    layout = read_layout(workspace)
    wanted = None if pytest_ids is None else list(pytest_ids)
    folders = None if wanted is None else sorted({name.removeprefix("pytest:").split("::")[0] for name in wanted})
    selection = {"files": folders or [], "args": list(layout.pytest_args), "wanted": wanted}
    return {
        "nonce": secrets.token_hex(16),
        "paths": [str(environment)] if environment else [],
        "roots": list(layout.roots),
        "doctests": [spec for name in doctests if (spec := _doctest_spec(workspace, name)) is not None],
        "doctest_flags": list(layout.doctest_flags),
        "pytest": None if wanted == [] else selection,
        "compile": [],
        "control": {},
        "trace": False,
        "test_seconds": None,
        "suite_seconds": None,
    }


def _doctest_spec(workspace: Path, name: str) -> dict[str, Any] | None:
    path, _, qualname = name.removeprefix("doctest:").partition("::")
    found, module = docstrings_of(workspace, path).get(qualname), read_layout(workspace).module_of(path)
    if found is None or module is None:
        return None
    short = f"{module}.{qualname}" if qualname else module
    return {"id": name, "module": module, "name": short, "path": path, "line": found.line, "text": found.text}
