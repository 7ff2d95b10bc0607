"""Verifying functions by calling them from another process, with the test code that one process would use.

The test code runs in a judge that never holds the answer. The answer runs in a process of its own, in which no test and
no expected value ever is; its functions are called over a wire that carries builtin values only (see `inside/wire.py`),
and what they return is compared on the judge's side. So overridden operators, patched builtins, frame walking, exit codes and
forged reports decide nothing. Code such as HumanEval's and MBPP's runs unchanged; every assert of it is a test of its own.

What cannot cross, and then fails whatever the answer (task admission shows it: the original solution fails as well):
a function that is expected to change its arguments in place, because it works on copies; equality of objects of the
answer's own classes; objects of classes that the test defines, handed to the answer.
"""

from __future__ import annotations

import json
import math
import signal
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.sandbox import Call, Outcome, Policy, Sandbox, Warm
from codemill.tasks.asserts import Check, TestCode, compile_test
from codemill.tasks.harness import INSIDE, START_UP_SECONDS, decoded, describe_end, load_factor
from codemill.tasks.program import REFERENCE_SECONDS, WARM_IMPORTS, refuse, verdict

WARM = Warm(
    modules=tuple(INSIDE / f"{name}.py" for name in ("wire", "remote", "judge", "candidate", "rehearse")),
    imports=WARM_IMPORTS,
)
_REASON_CHARACTERS = 2000
_SOURCE_CHARACTERS = 400
_OVER = ("absent", "gone", "garbage", "left")
_END_ID = "end of the test"


class CallSpec(BaseModel):
    """How functions are verified by calling them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["call"]
    test: str = Field(description="Test code, its last statements included that run it, for instance `check(add)`.")
    names: tuple[str, ...] = Field(min_length=1, description="The answer's globals under test, for instance `add`.")
    setup: str = Field("", description="Code that the judge runs before the test: imports, and helpers of the prompt.")
    whole: bool = Field(False, description="The answer is a whole program: it does not continue the task's prefix.")
    seconds: float = Field(REFERENCE_SECONDS, gt=0, le=600, description="Wall limit, widened on a busy machine.")


@dataclass(frozen=True, slots=True)
class CallReport:
    """What the judge reported. `end` is '' without an end record; for the others see `inside/judge.py`."""

    ready: bool = False
    end: str = ""
    problem: str = ""
    seconds: float = 0.0
    passed: frozenset[int] = frozenset()
    failed: dict[int, str] = field(default_factory=dict)
    decisive: int | None = None  # the assert that the run ended in


class CallVerifier:
    """Verifies answers whose `completion` is, continues or fills a program with the functions under test.

    Raises `InputError` for test code that does not compile.
    """

    def __init__(self, spec: CallSpec, task_id: str) -> None:
        self._spec = spec
        self._code = compile_test(spec.test, spec.setup, f"task {task_id}")

    async def verify(self, task: Task, answer: Answer, sandbox: Sandbox) -> Verdict:
        refused = refuse(task, answer)
        if refused is not None:
            return refused
        limit = self._spec.seconds * load_factor()
        judge, candidate = await sandbox.run_warm(WARM, self._calls(task, answer, limit))
        report = read_call_report(judge.result)
        status, reason = decide(judge, candidate, report, limit)
        tests = _tests(self._code, self._spec.test, report, status)
        if status is not Status.PASSED:
            reason = "; ".join(filter(None, (reason, self._where(report)))) or "the test did not pass"
        return verdict(task, answer, candidate, status, reason[:_REASON_CHARACTERS], tests)

    def _where(self, report: CallReport) -> str:
        """The assert that decided, with what was expected and what came; else what ended the test outside of one."""
        if report.decisive is None:
            return "" if report.end in ("", *_OVER) else report.problem
        check = self._code.checks[report.decisive]
        return f"line {check.line}: {_text(self._spec.test, check)}\n{report.failed.get(report.decisive, '')}"

    def _calls(self, task: Task, answer: Answer, limit: float) -> tuple[Call, Call]:
        completion = answer.completion or ""
        program = completion if self._spec.whole else task.prefix + completion + (task.suffix or "")
        program = program.removeprefix("\ufeff") + "\n"  # a file may begin with a byte-order mark
        policy = Policy(wall_seconds=limit + START_UP_SECONDS, cpu_seconds=math.ceil(self._spec.seconds) + 2)
        request = json.dumps({"program": program, "names": self._spec.names}).encode()
        return (
            Call(entry="judge:main", payload=self._code.payload(self._spec.names, limit), policy=policy, result=True),
            Call(entry="candidate:main", payload=request, policy=policy),
        )


def read_call_report(data: bytes) -> CallReport:
    """Parse the judge's result channel; lines that are not its own report are as good as absent."""
    ready = False
    for line in data.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if record.get("ready"):
            ready = True
        elif "end" in record:
            return CallReport(
                ready=ready,
                end=record["end"],
                problem=record["problem"],
                seconds=record["seconds"],
                passed=frozenset(record["passed"]),
                failed={int(number): text for number, text in record["failed"]},
                decisive=record["decisive"],
            )
    return CallReport(ready=ready)


def decide(judge: Outcome, candidate: Outcome, report: CallReport, limit: float) -> tuple[Status, str]:
    """The status of a run and why, '' where a failed test says it.

    Our own fault is only what happens before anything of the answer has run. Everything later is the answer's doing.
    """
    broken = limit_broken(candidate) or limit_broken(judge)
    match report.end:
        case "passed" if report.seconds > limit:
            return Status.TIMEOUT, f"took {report.seconds:.1f} s, the limit is {limit:.1f} s"
        case "passed" if broken is not None and broken[0] is Status.REFUSED:
            return broken
        case "passed":
            return Status.PASSED, ""
        case "failed":
            return Status.FAILED, ""
        case "memory":
            return Status.MEMORY, ""
        case "late":
            return Status.TIMEOUT, f"took longer than {limit:.1f} s"
        case "left" | "garbage":
            return Status.FAILED, report.problem
        case "absent":
            words = decoded(candidate.stderr)[-300:].strip().replace("\n", " | ")
            return Status.HARNESS_ERROR, f"{report.problem} ({describe_end(candidate)}): {words}"
    if broken is not None:
        return broken
    if report.end == "gone":
        return gone(candidate)
    if judge.end == "signal":  # also when its worker was brought down twice, see `Sandbox.run_warm`
        return Status.CRASHED, f"the judge was ended by {describe_end(judge)}"
    if report.ready:
        return Status.FAILED, f"the judge ended ({describe_end(judge)}) before the test had reported"
    words = decoded(judge.stderr)[-300:].strip().replace("\n", " | ")
    return Status.HARNESS_ERROR, f"the judge did not start ({describe_end(judge)}): {words}"


def limit_broken(outcome: Outcome) -> tuple[Status, str] | None:
    """What a process did that the policy does not allow, None for one that ended otherwise."""
    match outcome.end:
        case "timeout":
            return Status.TIMEOUT, f"stopped after {outcome.seconds:.1f} s"
        case "signal" if outcome.signal == signal.SIGXCPU:  # the kernel's own processor limit was quicker
            return Status.TIMEOUT, f"stopped after {outcome.cpu_seconds:.1f} s of processor time"
        case "memory":
            return Status.MEMORY, f"stopped at {outcome.peak_bytes / 2**20:.0f} MiB of memory"
        case "processes" | "disk" | "output":
            return Status.REFUSED, f"broke the sandbox's limit: {outcome.end}"
    return None


def gone(candidate: Outcome) -> tuple[Status, str]:
    """The answer's process ended, or closed the wire, before the test was over."""
    if candidate.end == "signal" and candidate.signal != signal.SIGKILL:
        return Status.CRASHED, f"ended by {describe_end(candidate)}"
    # SIGKILL is the sandbox's own, after the judge had ended: a process cannot kill its namespace's first, itself.
    how = describe_end(candidate) if candidate.end == "exited" else "it closed the wire"
    return Status.FAILED, f"the process of the answer ended ({how}) before the test was over"


def _tests(code: TestCode, source: str, report: CallReport, status: Status) -> tuple[TestResult, ...]:
    """One result for each assert that ran; where the answer did not pass, for those that were not reached as well."""
    found = []
    for number, check in enumerate(code.checks):
        if number in report.passed:
            found.append(TestResult(id=_check_id(number, check), passed=True))
        elif status is not Status.PASSED:
            message = report.failed.get(number, "  not reached")
            found.append(
                TestResult(id=_check_id(number, check), passed=False, message=f"{_text(source, check)}\n{message}")
            )
    if status is Status.PASSED and not found:
        found.append(TestResult(id=_END_ID, passed=True))
    elif status is not Status.PASSED and not report.failed:
        found.insert(0, TestResult(id=_END_ID, passed=False, message=report.problem or "not reached"))
    return tuple(found)


def _check_id(number: int, check: Check) -> str:
    return f"assert {number + 1}, line {check.line}"


def _text(source: str, check: Check) -> str:
    lines = source.split("\n")[check.line - 1 : check.last_line]
    return "\n".join(line.strip() for line in lines)[:_SOURCE_CHARACTERS]
