"""Verifying a program by what it prints for given inputs, in the form of programming contests, in any language.

The program is built once, then run once for each case, each time in a jail of its own with nothing but that case's
input. Its output is compared on this side: expected outputs never enter the jail, so there is nothing to find there, and
a program that ends early, prints a verdict or looks around has only not printed what was expected.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.core.errors import ConfigError, UnavailableError
from codemill.sandbox import Call, Outcome, Policy, Sandbox, Warm
from codemill.sandbox.build import Program, build_program
from codemill.sandbox.job import NotExecutableError
from codemill.sandbox.languages import language_of
from codemill.sandbox.policy import MIB
from codemill.sandbox.toolchain import find_toolchain
from codemill.tasks.harness import INSIDE, load_factor
from codemill.tasks.program import WARM_IMPORTS, refuse
from codemill.tasks.runs import (
    Compare,
    build_failure,
    difference,
    encoded,
    ended_badly,
    joint_verdict,
    program_text,
    unscorable,
    with_stderr,
)

_WARM = Warm(modules=(INSIDE / "run_stdio.py",), imports=(*WARM_IMPORTS, "bisect", "decimal", "fractions"))
_WARM_BYTES = MIB  # of input; more would have to go through the disk of a warm run, whose size is not the case's own
_OUTPUT_SLACK = MIB  # what a program may print beyond what is expected and still be told where it differs


class Case(BaseModel):
    """One input and the output that belongs to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", description="Id of its test result; empty for its number.")
    stdin: str = Field("", description="What the program reads.")
    stdout: str = Field(description="What it must print.")
    seconds: float | None = Field(
        None, gt=0, le=600, description="Wall limit of this case, instead of the general one."
    )


class StdioSpec(BaseModel):
    """How a program is verified by its output."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["stdio"]
    language: str = Field("python", description="What the program is written in.")
    cases: tuple[Case, ...] = Field(min_length=1, max_length=10_000)
    compare: Compare = Field("whitespace", description="How outputs are compared, see `runs.difference`.")
    tolerance: float = Field(1e-6, ge=0, le=1, description="For `float`: absolute, and relative to what is expected.")
    seconds: float = Field(2.0, gt=0, le=600, description="Wall limit of each case, widened on a busy machine.")
    memory_mb: int = Field(512, ge=16, le=65536, description="MiB for each case.")
    exit_code: int | None = Field(0, description="How the program must end, null for any way.")
    stop: bool = Field(
        False,
        description="Start no case after one that failed; they count as failed too. For training, where an endless loop "
        "would else cost its time limit once for each case.",
    )

    @field_validator("language")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return language_of(value).name
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("cases")
    @classmethod
    def _named_once(cls, value: tuple[Case, ...]) -> tuple[Case, ...]:
        names = [case.name or f"case {number}" for number, case in enumerate(value, 1)]
        if len(set(names)) < len(names):
            raise ValueError("two cases have the same name")
        return tuple(case.model_copy(update={"name": name}) for case, name in zip(value, names, strict=True))


@dataclass(frozen=True, slots=True)
class _Ran:
    """One case that was run; `outcome` is None where the program could not be executed."""

    status: Status
    message: str
    outcome: Outcome | None


async def _run_once(program: Program, stdin: bytes, policy: Policy, sandbox: Sandbox) -> Outcome:
    """Python in a fork of a warm interpreter, which takes a tenth of the time; what it does is the same."""
    if program.toolchain.language.name != "python" or len(stdin) > _WARM_BYTES:
        return await sandbox.run(program.job(policy, stdin=stdin))
    payload = len(program.text).to_bytes(4, "little") + program.text + stdin
    (outcome,) = await sandbox.run_warm(_WARM, (Call(entry="run_stdio:main", payload=payload, policy=policy),))
    return outcome


class StdioVerifier:
    """Verifies answers whose `completion` continues (or fills) a program."""

    def __init__(self, spec: StdioSpec) -> None:
        self._spec = spec

    async def verify(self, task: Task, answer: Answer, sandbox: Sandbox) -> Verdict:
        refused = refuse(task, answer)
        if refused is not None:
            return refused
        try:
            toolchain = await asyncio.to_thread(find_toolchain, self._spec.language)
        except UnavailableError as error:
            return unscorable(task, answer, str(error))
        program, built = await build_program(toolchain, program_text(task, answer), sandbox)
        if program is None:
            status, reason, words = build_failure(built, "build")
            tests = (TestResult(id="build", passed=False, message=words or reason), *self._not_run("not built"))
            return joint_verdict(
                task, answer, [built.outcome] if built.outcome else [], built.outcome, status, reason, tests
            )
        ran = await self._run_all(program, sandbox)
        return self._verdict(task, answer, ran, [built.outcome] if built.outcome else [])

    async def _run_all(self, program: Program, sandbox: Sandbox) -> list[_Ran]:
        """Every case, several at a time as the sandbox has room; with `stop`, in order until one fails."""
        if self._spec.stop:
            done: list[_Ran] = []
            for case in self._spec.cases:
                done.append(await self._run(program, case, sandbox))
                if done[-1].status is not Status.PASSED:
                    break
            return done
        runs = [asyncio.ensure_future(self._run(program, case, sandbox)) for case in self._spec.cases]
        try:
            return await asyncio.gather(*runs)
        finally:  # one that raises, or a cancellation, ends them all
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)

    async def _run(self, program: Program, case: Case, sandbox: Sandbox) -> _Ran:
        language, expected = program.toolchain.language, encoded(case.stdout)
        policy = self._policy(case, sandbox.policy, language.start_seconds, len(expected))
        try:
            outcome = await _run_once(program, encoded(case.stdin), policy, sandbox)
        except NotExecutableError as error:  # what was built is no program; its source decided that
            return _Ran(Status.FAILED, str(error), None)
        bad = ended_badly(outcome, language.out_of_memory, self._spec.exit_code)
        if bad is not None:
            return _Ran(bad[0], with_stderr(bad[1], outcome), outcome)
        if outcome.stdout_dropped:
            size = len(outcome.stdout) + outcome.stdout_dropped
            return _Ran(Status.FAILED, f"printed {size:,} bytes, expected {len(expected):,}", outcome)
        message = difference(expected, outcome.stdout, self._spec.compare, self._spec.tolerance)
        return _Ran(Status.FAILED if message else Status.PASSED, message, outcome)

    def _policy(self, case: Case, policy: Policy, start_seconds: float, expected: int) -> Policy:
        seconds = case.seconds or self._spec.seconds
        return dataclasses.replace(
            policy,
            wall_seconds=seconds * load_factor() + start_seconds,
            # Twice, for runtimes that compile and collect on threads of their own; wall time is what limits.
            cpu_seconds=2 * (seconds + start_seconds),
            memory_bytes=self._spec.memory_mb * MIB,
            output_bytes=expected + _OUTPUT_SLACK,
        )

    def _not_run(self, why: str, done: int = 0) -> tuple[TestResult, ...]:
        return tuple(
            TestResult(id=case.name, passed=False, message=f"not run: {why}") for case in self._spec.cases[done:]
        )

    def _verdict(self, task: Task, answer: Answer, ran: Sequence[_Ran], before: list[Outcome]) -> Verdict:
        pairs = list(zip(self._spec.cases, ran, strict=False))
        tests = tuple(
            TestResult(id=case.name, passed=run.status is Status.PASSED, message=run.message) for case, run in pairs
        )
        failed = [(case, run) for case, run in pairs if run.status is not Status.PASSED]
        shown = failed[0][1].outcome if failed else ran[-1].outcome
        outcomes = [*before, *(run.outcome for run in ran if run.outcome is not None)]
        if not failed:
            return joint_verdict(task, answer, outcomes, shown, Status.PASSED, "", tests)
        case, run = failed[0]
        tests += self._not_run(f"{case.name} failed", len(ran))
        bad = sum(not test.passed for test in tests)
        reason = f"{bad} of {len(tests)} cases failed; {case.name}: {run.message.splitlines()[0][:300]}"
        return joint_verdict(task, answer, outcomes, shown, run.status, reason, tests)
