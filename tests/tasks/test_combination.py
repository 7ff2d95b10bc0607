"""Weighted parts, each with a verifier of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.errors import InputError
from codemill.sandbox import Sandbox
from codemill.tasks.verifiers import verifier_for

PREFIX = "def add(a, b):\n"
TESTED = {"kind": "program", "test": "def check(add):\n    assert add(1, 2) == 3\n", "call": "check(add)"}
PRINTED = {"kind": "stdio", "cases": [{"stdin": "1", "stdout": "in"}, {"stdin": "2", "stdout": ""}]}
MISSING = {"kind": "workspace", "workspace": "none", "environment": None, "path": "a.py", "start": 0, "end": 0,
           "tests": ["pytest:a.py::t"], "seconds": 1}  # fmt: skip
RIGHT = "    return a + b\n"
WRONG = "    return a - b\n"
PRINTS = "import sys\nif sys.stdin.read() == '1': print('in')\n"


def judged(text: str, sandbox: Sandbox, *parts: dict[str, object]) -> Verdict:
    asked = Task(id="t", prefix=PREFIX, verifier={"kind": "combination", "parts": parts})
    return asyncio.run(
        verifier_for(asked, Path()).verify(asked, Answer(task_id="t", completion=text, sample=4), sandbox)
    )


TEST = {"name": "test", "verifier": TESTED, "weight": 3}
PRINT = {"name": "print", "verifier": PRINTED, "weight": 1}


@pytest.mark.parametrize(
    ("text", "status", "score", "passed"),
    [
        (RIGHT + PRINTS, Status.PASSED, 1.0, [True, True, True]),
        (RIGHT, Status.FAILED, 0.75, [True, False, True]),
        (WRONG + PRINTS, Status.FAILED, 0.25, [False, True, True]),
        (WRONG, Status.FAILED, 0.0, [False, False, True]),
        ("    return (", Status.FAILED, 0.0, [False, False, False]),
    ],
    ids=["both", "first", "second", "none", "broken"],
)
def test_the_score_is_the_weighted_share(
    text: str, status: Status, score: float, passed: list[bool], sandbox: Sandbox
) -> None:
    verdict = judged(text, sandbox, TEST, PRINT)
    assert (verdict.status, verdict.score, verdict.sample) == (status, score, 4)
    assert [test.id for test in verdict.tests] == ["test: check", "print: case 1", "print: case 2"]
    assert [test.passed for test in verdict.tests] == passed
    assert set(verdict.isolation) == set(sandbox.isolation)


def test_only_required_parts_decide_whether_it_passed(sandbox: Sandbox) -> None:
    verdict = judged(RIGHT, sandbox, TEST, {**PRINT, "required": False})
    assert (verdict.status, verdict.score, verdict.reason) == (Status.PASSED, 0.75, "")
    verdict = judged(WRONG + PRINTS, sandbox, TEST, {**PRINT, "required": False})
    assert (verdict.status, verdict.score) == (Status.FAILED, 0.25)
    assert verdict.reason.startswith("test: ")


def test_the_first_required_part_that_failed_gives_the_status(sandbox: Sandbox) -> None:
    spin = "    while a == 1: pass\n    return a + b\n"
    slow = {**TEST, "verifier": {**TESTED, "seconds": 0.3}}
    verdict = judged(spin, sandbox, {**PRINT, "required": False}, slow)
    assert verdict.status is Status.TIMEOUT
    assert judged(spin, sandbox, PRINT, slow).status is Status.FAILED


def test_what_was_not_judged_leaves_the_whole_unscorable(sandbox: Sandbox) -> None:
    verdict = judged(RIGHT, sandbox, TEST, {"name": "suite", "verifier": MISSING, "required": False})
    assert verdict.status is Status.HARNESS_ERROR
    assert not verdict.scorable
    assert verdict.score == 0.0
    assert verdict.reason.startswith("suite: ")
    assert [(test.id, test.passed) for test in verdict.tests] == [("test: check", True), ("suite", False)]


def test_a_part_that_was_refused_counts_as_failed(sandbox: Sandbox) -> None:
    asked = Task(id="t", verifier={"kind": "combination", "parts": [TEST, PRINT]})
    verdict = asyncio.run(verifier_for(asked, Path()).verify(asked, Answer(task_id="t", diff="x"), sandbox))
    assert (verdict.status, verdict.score) == (Status.REFUSED, 0.0)
    assert [test.id for test in verdict.tests] == ["test", "print"]


BAD = {
    "no parts": ([], "'parts'"),
    "same name": ([TEST, TEST], "two parts have the same name"),
    "weight": ([{**TEST, "weight": 0}], "weight"),
    "nested": ([{"name": "x", "verifier": {"kind": "combination", "parts": [TEST]}}], "cannot be a combination"),
    "unknown kind": ([{"name": "x", "verifier": {"kind": "guess"}}], "unknown verifier kind 'guess'"),
    "malformed part": ([{"name": "x", "verifier": {"kind": "stdio", "cases": []}}], "'cases'"),
    "unknown field": ([{**TEST, "wieght": 1}], "wieght"),
}


@pytest.mark.parametrize(("parts", "words"), BAD.values(), ids=BAD)
def test_malformed_descriptions_are_refused_before_any_run(parts: list[dict[str, object]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        verifier_for(Task(id="t", verifier={"kind": "combination", "parts": parts}), Path())
