"""The zoo: no cheating answer may pass or make itself unscorable, no honest but odd one may be rejected."""

from __future__ import annotations

import compileall
import py_compile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from tasks_support import write_files
from zoo import repository_cheats
from zoo.cheats import CHEATS
from zoo.honest import HONEST
from zoo.questions import AFTER, ANSWERED, BEFORE, QUESTIONS, REPOSITORY, RIGHT, TESTS, Entry

from codemill.core.contracts import Answer, Task, Verdict
from codemill.sandbox import Job, Policy, Sandbox, python_argv
from codemill.tasks.call import CallSpec
from codemill.tasks.environment import Environment
from codemill.tasks.verifiers import verify_all


def named(entries: Iterable[Entry]) -> list[object]:
    return [pytest.param(entry, id=entry.name.replace(" ", "-")) for entry in entries]


def question(name: str, seconds: float) -> Task:
    asked = QUESTIONS[name]
    spec = CallSpec(kind="call", test=asked.test, names=asked.names, whole=True, seconds=seconds)
    return Task(id=name, verifier=spec.model_dump())


def verdicts(entries: Iterable[Entry], sandbox: Sandbox, seconds: float) -> Mapping[str, Verdict]:
    listed = list(entries)
    pairs = [
        (question(entry.question, seconds), Answer(task_id=entry.question, completion=entry.answer, sample=number))
        for number, entry in enumerate(listed)
    ]
    return {listed[verdict.sample].name: verdict for verdict in verify_all(pairs, sandbox, Path())}


def test_the_zoo_is_large_and_its_names_are_its_own() -> None:
    assert len(CHEATS) >= 55
    assert len(HONEST) >= 55
    for kind in (CHEATS, HONEST):
        assert len({entry.name for entry in kind}) == len({entry.answer for entry in kind}) == len(kind)


@pytest.fixture(scope="module")
def honest(sandbox: Sandbox) -> Mapping[str, Verdict]:
    plain = [Entry(f"plain {name}", "", name, asked.right) for name, asked in QUESTIONS.items()]
    return verdicts([*plain, *HONEST], sandbox, seconds=2)


@pytest.mark.parametrize("name", QUESTIONS)
def test_plain_answers_pass(name: str, honest: Mapping[str, Verdict]) -> None:
    verdict = honest[f"plain {name}"]
    assert verdict.passed, (verdict.status, verdict.reason)


@pytest.mark.parametrize("entry", named(HONEST))
def test_honest_answers_pass(entry: Entry, honest: Mapping[str, Verdict]) -> None:
    verdict = honest[entry.name]
    assert verdict.passed, (verdict.status, verdict.reason, verdict.stderr)


@pytest.fixture(scope="module")
def cheating(sandbox: Sandbox) -> Mapping[str, Verdict]:
    return verdicts(CHEATS, sandbox, seconds=0.7)


@pytest.mark.parametrize("entry", named(CHEATS))
def test_cheats_do_not_pass(entry: Entry, cheating: Mapping[str, Verdict]) -> None:
    verdict = cheating[entry.name]
    assert not verdict.passed
    assert verdict.scorable, verdict.reason
    assert verdict.score == 0
    assert verdict.reason


def test_a_harness_in_one_process_is_fooled(sandbox: Sandbox) -> None:
    """The cheats are cheats: these pass where the test runs behind the answer and the exit status decides."""
    policy = Policy(wall_seconds=6, cpu_seconds=6)
    entries = [entry for entry in CHEATS if entry.fools]
    programs = [f"{entry.answer}\n{QUESTIONS[entry.question].test}".encode() for entry in entries]
    jobs = [Job(argv=python_argv("main.py"), files={"main.py": program}, policy=policy) for program in programs]
    ended = {entries[index].name: outcome for index, outcome in sandbox.run_all(jobs)}
    assert len(entries) >= 25
    assert {name: outcome.stderr for name, outcome in ended.items() if not outcome.succeeded} == {}


# The repository, both ways -----------------------------------------------------------------------------------------

WAYS = pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "one-process"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With byte code beside the sources, as building tasks leaves it."""
    made = tmp_path_factory.mktemp("zoo")
    workspace = write_files(made / "workspaces" / "ledger", REPOSITORY)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    assert compileall.compile_dir(workspace, quiet=2, invalidation_mode=mode, stripdir=str(workspace))
    return made


class Repository:
    """Verdicts on answers to the repository question, judged two at a time when the first one is asked for."""

    def __init__(self, folder: Path, environment: Environment, sandbox: Sandbox) -> None:
        self._folder, self._environment, self._sandbox = folder, environment, sandbox
        self._known: dict[object, Mapping[str, Verdict]] = {}

    def __call__(self, entries: Iterable[Entry], seconds: float, isolated: bool) -> Mapping[str, Verdict]:
        listed = tuple(entries)
        key = (listed, isolated)
        if key not in self._known:
            self._known[key] = self._verdicts(listed, seconds, isolated)
        return self._known[key]

    def _verdicts(self, listed: tuple[Entry, ...], seconds: float, isolated: bool) -> Mapping[str, Verdict]:
        verifier = {
            "kind": "workspace",
            "workspace": "ledger",
            "environment": self._environment.id,
            "path": ANSWERED,
            "start": len(BEFORE),
            "end": len(BEFORE + RIGHT),
            "seconds": seconds,
            "isolated": isolated,
        }
        tasks = {
            name: Task(id=name, verifier={**verifier, "tests": tests}, prefix=BEFORE, suffix=AFTER)
            for name, tests in TESTS.items()
        }
        pairs = [
            (tasks[entry.question], Answer(task_id=entry.question, completion=entry.answer, sample=number))
            for number, entry in enumerate(listed)
        ]
        return {listed[v.sample].name: v for v in verify_all(pairs, self._sandbox, self._folder)}


@pytest.fixture(scope="module")
def repository(folder: Path, environment: Environment, sandbox: Sandbox) -> Repository:
    return Repository(folder, environment, sandbox)


def rejected(verdict: Verdict) -> bool:
    """As it should be: an answer's own fault, with a reason."""
    return not verdict.passed and verdict.scorable and verdict.score == 0 and bool(verdict.reason)


@WAYS
@pytest.mark.parametrize("entry", named(repository_cheats.HONEST))
def test_honest_answers_pass_in_a_repository(entry: Entry, isolated: bool, repository: Repository) -> None:
    verdict = repository(repository_cheats.HONEST, 8, isolated)[entry.name]
    assert verdict.passed, (verdict.status, verdict.reason, verdict.stderr)


@WAYS
@pytest.mark.parametrize("entry", named(repository_cheats.CHEATS))
def test_cheats_do_not_pass_in_a_repository(entry: Entry, isolated: bool, repository: Repository) -> None:
    verdict = repository(repository_cheats.CHEATS, 0.5, isolated)[entry.name]
    assert rejected(verdict), (verdict.status, verdict.reason)


@pytest.mark.parametrize("entry", named(repository_cheats.BEYOND))
def test_what_one_process_cannot_stop_two_do(entry: Entry, repository: Repository) -> None:
    verdict = repository(repository_cheats.BEYOND, 5, isolated=True)[entry.name]
    assert rejected(verdict), (verdict.status, verdict.reason)


@pytest.mark.parametrize("entry", named(repository_cheats.BEYOND))
@pytest.mark.xfail(strict=True, reason="tests and answer share a process: docs/sandbox.md, what is not promised")
def test_what_one_process_cannot_stop(entry: Entry, repository: Repository) -> None:
    assert not repository(repository_cheats.BEYOND, 5, isolated=False)[entry.name].passed
