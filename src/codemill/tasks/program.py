"""Verifying a program by running it with a test, in the form HumanEval made usual.

Semantics of the reference: prefix, answer and suffix are executed once in a fresh namespace, the test follows in the
same one; passed means that no exception came within 3.0 s. Three things are stricter here, none of which an honest
program notices: test code is compiled apart from the program, so that an answer cannot swallow or decorate it; the test
sees Python's own builtins; and the proof is a nonce reported after the test's last statement, never an exit status.

What this does not stop: answer and test share one process, so an answer that walks frames for the nonce, or returns an
object equal to everything, can pass. `codemill.tasks.call` separates the two processes.
"""

from __future__ import annotations

import json
import math
import secrets
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.sandbox import Call, Outcome, Policy, Sandbox, Warm
from codemill.tasks.harness import INSIDE, START_UP_SECONDS, Report, ending, load_factor, read_report, tail

REFERENCE_SECONDS = 3.0
MAX_ANSWER_CHARACTERS = 1 << 20
# What the programs of HumanEval and MBPP import, so that no run has to pay for it.
WARM_IMPORTS = ("typing", "math", "re", "collections", "itertools", "functools", "random", "string", "heapq", "copy")
WARM = Warm(modules=(INSIDE / "run_program.py", INSIDE / "rehearse.py"), imports=WARM_IMPORTS)


class ProgramSpec(BaseModel):
    """How a program is verified."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["program"]
    test: str = Field(description="Test code, executed after the program in its namespace.")
    call: str = Field(description="The statement that runs the test, for instance `check(add)`.")
    seconds: float = Field(REFERENCE_SECONDS, gt=0, le=600, description="Wall limit, widened on a busy machine.")


class ProgramVerifier:
    """Verifies answers whose `completion` continues (or fills) a program."""

    def __init__(self, spec: ProgramSpec) -> None:
        self._spec = spec

    async def verify(self, task: Task, answer: Answer, sandbox: Sandbox) -> Verdict:
        refused = refuse(task, answer)
        if refused is not None:
            return refused
        limit = self._spec.seconds * load_factor()
        nonce = secrets.token_hex(16)
        (outcome,) = await sandbox.run_warm(WARM, (self._call(task, answer, nonce, limit),))
        report = read_report(outcome.result, nonce)
        status, reason = self._judge(outcome, report, limit)
        return verdict(task, answer, outcome, status, reason, _tests(report))

    def _call(self, task: Task, answer: Answer, nonce: str, limit: float) -> Call:
        program = task.prefix + (answer.completion or "") + (task.suffix or "")
        request = {"nonce": nonce, "program": program + "\n", "test": f"{self._spec.test}\n{self._spec.call}\n"}
        return Call(
            entry="run_program:main",
            payload=json.dumps(request).encode(),
            policy=Policy(wall_seconds=limit + START_UP_SECONDS, cpu_seconds=math.ceil(self._spec.seconds) + 2),
            result=True,
        )

    def _judge(self, outcome: Outcome, report: Report, limit: float) -> tuple[Status, str]:
        decided = ending(outcome, report)
        if decided is not None:
            return decided
        if report.memory:
            return Status.MEMORY, "MemoryError"
        if report.seconds > limit:
            return Status.TIMEOUT, f"took {report.seconds:.1f} s, the limit is {limit:.1f} s"
        if report.results != {"check": True}:
            check = report.tests.get("check")
            return Status.FAILED, check.message if check and check.message else "the test did not report"
        return Status.PASSED, ""


def _tests(report: Report) -> tuple[TestResult, ...]:
    return tuple(TestResult(id=test.id, passed=test.passed, message=test.message) for test in report.tests.values())


def refuse(task: Task, answer: Answer) -> Verdict | None:
    """The verdict of an answer that is not worth a run: of another form, or of an absurd size."""
    if answer.completion is None:
        reason = "this task is answered by a completion, not by edits or a diff"
    elif len(answer.completion) > MAX_ANSWER_CHARACTERS:
        reason = f"the answer has {len(answer.completion):,} characters, the limit is {MAX_ANSWER_CHARACTERS:,}"
    else:
        return None
    return Verdict(task_id=task.id, sample=answer.sample, status=Status.REFUSED, score=0.0, reason=reason)


def verdict(
    task: Task, answer: Answer, outcome: Outcome, status: Status, reason: str, tests: tuple[TestResult, ...]
) -> Verdict:
    """A verdict with what the run left: tails of its output, its seconds, the isolation in force."""
    return Verdict(
        task_id=task.id,
        sample=answer.sample,
        status=status,
        score=1.0 if status is Status.PASSED else 0.0,
        reason=reason,
        tests=tests,
        stdout=tail(outcome.stdout),
        stderr=tail(outcome.stderr),
        seconds=round(outcome.seconds, 4),
        isolation=dict(outcome.isolation),
    )
