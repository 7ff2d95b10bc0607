"""Which tests of a repository pass, how long they take, and which functions each of them enters.

The repository's doctests and its test suite run twice in the sandbox, side by side: once watched (every function entered
is recorded per test), once unwatched (true times). A test that does not pass both times is not used.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from codemill.core.artifact import file_sha256, fingerprint
from codemill.core.errors import InputError
from codemill.core.paths import atomic_write_text, cache_dir
from codemill.core.records import dumps, from_json, read_json_lines
from codemill.sandbox import Outcome, Sandbox
from codemill.tasks.functions import Function
from codemill.tasks.harness import INSIDE, Report, SuiteRun, describe_end, docstrings_of, doctest_id, suite_run, tail
from codemill.tasks.layout import is_program_file, read_layout

MAX_TESTS = 8  # per function, besides its own doctest
TIME_BUCKETS = (0.05, 0.5, 2.0)  # seconds: finer differences are noise and would make the choice irreproducible


@dataclass(frozen=True)
class Discovery:
    """What running a repository's tests taught. `skipped` is the reason why none can be used, else empty.

    `tests`: seconds of each usable test. `entered`: test ids by "path:first line" of the function's code.
    `unused`: how many tests were left out, by reason. `cut`: why a run ended early, else empty.
    """

    tests: Mapping[str, float] = field(default_factory=dict)
    entered: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)
    cut: str = ""
    skipped: str = ""

    def tests_for(self, path: str, function: Function) -> tuple[str, ...]:
        """The tests that verify a function: its own doctest, then at most `MAX_TESTS` others.

        First the fast ones, then those that carry the function's name, then those that enter few functions.
        """
        own = doctest_id(path, function.qualname)
        name = re.compile(rf"(?<![A-Za-z0-9]){re.escape(function.qualname.split('.')[-1].strip('_'))}(?![A-Za-z0-9])")

        def rank(test: str) -> tuple[int, bool, int, str]:
            slow = sum(self.tests[test] > bucket for bucket in TIME_BUCKETS)
            return slow, name.search(test) is None, self._breadth[test].bit_length(), test

        found = self.entered.get(f"{path}:{function.first_line}", ())
        others = sorted((test for test in found if test != own), key=rank)
        return (*((own,) if own in self.tests else ()), *others[:MAX_TESTS])

    @cached_property
    def _breadth(self) -> Counter[str]:
        return Counter(test for tests in self.entered.values() for test in tests)


def doctests_of(workspace: Path) -> list[str]:
    """Ids of the docstrings with examples in the repository's program files."""
    layout = read_layout(workspace)
    found = []
    for file in sorted(workspace.rglob("*.py")):
        path = file.relative_to(workspace).as_posix()
        if is_program_file(path) and layout.module_of(path) and file.is_file() and not file.is_symlink():
            found += [doctest_id(path, qualname) for qualname in docstrings_of(workspace, path)]
    return found


@dataclass(frozen=True, slots=True)
class Subject:
    """A repository to learn about: its pristine folder, its environment, and a key that names their content."""

    workspace: Path
    environment: Path | None
    key: str


def discover(
    subjects: Iterable[Subject], sandbox: Sandbox, *, test_seconds: float, suite_seconds: float
) -> Iterator[tuple[int, Discovery]]:
    """Pairs of a subject's position and what was found, as they finish. Results are kept in the user's cache."""
    runs: list[tuple[int, bool, SuiteRun]] = []
    caches: dict[int, Path] = {}
    for position, subject in enumerate(subjects):
        caches[position] = _cache_file(subject, test_seconds, suite_seconds)
        known = _read_cache(caches[position])
        if known is not None:
            yield position, known
            continue
        for trace in (True, False):
            run = suite_run(
                subject.workspace,
                subject.environment,
                doctests=doctests_of(subject.workspace),
                pytest_ids=None if subject.environment is not None else (),
                trace=trace,
                test_seconds=test_seconds,
                wall_seconds=suite_seconds,
            )
            runs.append((position, trace, run))
    halves: dict[int, dict[bool, tuple[Outcome, Report]]] = {}
    for index, outcome in sandbox.run_all([run.job for _, _, run in runs]):
        position, trace, run = runs[index]
        half = halves.setdefault(position, {})
        half[trace] = (outcome, run.report(outcome))
        if len(half) == 2:
            found = combine(*half[True], *half[False])
            if not found.skipped:
                atomic_write_text(caches[position], dumps(asdict(found)) + "\n")
            yield position, found


def combine(watched_end: Outcome, watched: Report, plain_end: Outcome, plain: Report) -> Discovery:
    """One finding from the two runs."""
    for outcome, report in ((watched_end, watched), (plain_end, plain)):
        if not report.ready:
            reason = f"its tests could not be started ({describe_end(outcome)}): {tail(outcome.stderr).strip()[-300:]}"
            return Discovery(skipped=reason.replace("\n", " | "))
    unused: Counter[str] = Counter()
    tests = {}
    for name in sorted({*watched.tests, *plain.tests}):
        first, second = (report.tests[name].passed if name in report.tests else False for report in (watched, plain))
        if first and second:
            tests[name] = plain.tests[name].seconds
        else:
            unused["flaky" if first != second else "not passed"] += 1
    cut = next((_cut(o, r) for o, r in ((watched_end, watched), (plain_end, plain)) if _cut(o, r)), "")
    if not tests:
        return Discovery(unused=dict(unused), cut=cut, skipped=_nothing(watched, unused, cut, tail(watched_end.stderr)))
    entered: dict[str, list[str]] = {}
    for name in tests:
        for path, line in watched.tests[name].enters:
            entered.setdefault(f"{path}:{line}", []).append(name)
    return Discovery(tests, {place: tuple(names) for place, names in entered.items()}, dict(unused), cut)


def _cut(outcome: Outcome, report: Report) -> str:
    if report.results is not None:
        return ""
    return f"the run of its tests ended early ({describe_end(outcome)} after {outcome.seconds:.0f} s)"


def _nothing(report: Report, unused: Counter[str], cut: str, stderr: str) -> str:
    """Why there is no usable test."""
    if cut:
        return cut
    last_lines = [text.strip().splitlines()[-1][:200] for text in (*report.broken[:1], stderr) if text.strip()]
    broken = "; ".join(["", *last_lines]) if report.broken else ""
    if not unused:
        return f"it has no tests and no doctests{broken}"
    counts = ", ".join(f"{count} {reason}" for reason, count in sorted(unused.items()))
    first = next((test.message.strip().split("\n")[0] for test in report.tests.values() if test.message), "")
    return f"no test passes twice ({counts}){broken}" + (f"; {first[:200]}" if first else "")


def _cache_file(subject: Subject, test_seconds: float, suite_seconds: float) -> Path:
    environment = subject.environment.name if subject.environment else ""
    script = file_sha256(INSIDE / "run_tests.py")
    limits = [test_seconds, suite_seconds]
    key = fingerprint([subject.key, environment, script, limits, platform.python_version()])
    return cache_dir() / "discoveries" / f"{key}.json"


def _read_cache(path: Path) -> Discovery | None:
    if not path.is_file():
        return None
    try:
        return next(from_json(Discovery, data, str(path)) for _, data in read_json_lines(path))
    except (InputError, StopIteration):
        return None  # torn or of an older form: found out again
