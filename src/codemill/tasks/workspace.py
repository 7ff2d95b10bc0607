"""Verifying an answer inside its repository: its file is put in place and tests fixed in advance are run.

The repository is a pristine snapshot without version history. Only the answer's own file differs from it; tests,
configuration and the docstrings that doctests come from are the snapshot's. Every expected test must report passed:
missing, skipped and expected failures count as failed. There are two ways, and the task says which is its own:

*isolated*: the tests run in a judge process that never imports the answer. In the answered function's place stands a stub
that calls it in a second process, which has the program without its tests (`isolated.py`). What the function takes and
returns must be able to cross between the two; building tasks finds out by running the original code that way.

*in one process*: tests and answer share an interpreter, as they do for a developer. Control files must not be touched while the
tests run, not even to be put back, and the code of the test tools must stay what it is (`inside/integrity.py`); but an
answer that goes after the harness in its memory can fool it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.core.errors import InputError
from codemill.core.paths import safe_relative
from codemill.sandbox import Outcome, Policy, Sandbox
from codemill.tasks.call import gone, limit_broken
from codemill.tasks.environment import environment_folder
from codemill.tasks.harness import (
    START_UP_SECONDS,
    SUITE_MEMORY,
    Report,
    decoded,
    describe_end,
    ending,
    load_factor,
    read_report,
    suite_run,
)
from codemill.tasks.isolated import find_seam, isolated_run, warm_for
from codemill.tasks.layout import is_control
from codemill.tasks.program import refuse, verdict


class WorkspaceSpec(BaseModel):
    """How an answer is verified inside its repository."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["workspace"]
    workspace: str = Field(description="Folder name under `workspaces/` of the tasks folder.")
    environment: str | None = Field(description="Id of the installed dependencies, null for none.")
    path: str = Field(description="The file that the answer completes.")
    start: int = Field(ge=0, description="Offset in characters of the file's text where the answer begins.")
    end: int = Field(ge=0, description="Offset where the pristine text goes on.")
    tests: tuple[str, ...] = Field(min_length=1, description="Ids, `doctest:PATH::NAME` or `pytest:NODEID`.")
    seconds: float = Field(gt=0, le=3600, description="Wall limit, widened on a busy machine.")
    isolated: bool = Field(False, description="Tests and answer are kept in processes of their own.")


def can_be_isolated(task: Task, folder: Path) -> bool:
    """Whether a task's repository can be taken apart at all. That its values cross as well, only a run can tell."""
    spec = WorkspaceSpec.model_validate(dict(task.verifier))
    try:
        find_seam(folder / "workspaces" / spec.workspace, spec.path, spec.start, spec.end)
    except InputError:
        return False
    return True


class WorkspaceVerifier:
    """Verifies answers whose `completion` fills characters `start` to `end` of a repository's file."""

    def __init__(self, spec: WorkspaceSpec, folder: Path) -> None:
        safe_relative(spec.workspace, "verifier field 'workspace'")
        safe_relative(spec.path, "verifier field 'path'")
        self._spec = spec
        self._workspace = folder / "workspaces" / spec.workspace

    async def verify(self, task: Task, answer: Answer, sandbox: Sandbox) -> Verdict:
        refused = refuse(task, answer)
        if refused is not None:
            return refused
        fault = self._fault()
        if fault:
            return Verdict(task_id=task.id, sample=answer.sample, status=Status.HARNESS_ERROR, score=0.0, reason=fault)
        seconds = self._spec.seconds * load_factor() + START_UP_SECONDS
        environment = environment_folder(self._spec.environment) if self._spec.environment else None
        verify = self._isolated if self._spec.isolated else self._in_one_process
        return await verify(task, answer, sandbox, environment, seconds)

    async def _isolated(
        self, task: Task, answer: Answer, sandbox: Sandbox, environment: Path | None, seconds: float
    ) -> Verdict:
        spec = self._spec
        seam = find_seam(self._workspace, spec.path, spec.start, spec.end)
        text = seam.blanked[: spec.start] + (answer.completion or "") + seam.blanked[spec.end :]
        text = text[: seam.mark_at] + seam.mark + text[seam.mark_at :]
        policy = Policy(
            wall_seconds=seconds,
            cpu_seconds=spec.seconds + START_UP_SECONDS,
            memory_bytes=SUITE_MEMORY,
            processes=64,
        )
        run = isolated_run(self._workspace, environment, seam, spec.path, text, spec.tests, policy)
        judge, candidate = await sandbox.run_warm(warm_for(environment), run.calls)
        report = read_report(judge.result, run.nonce)
        tests = self._tests(report)
        status, reason = decide(judge, candidate, report) or self._by_tests(report, tests)
        return verdict(task, answer, candidate, status, reason, tests)

    async def _in_one_process(
        self, task: Task, answer: Answer, sandbox: Sandbox, environment: Path | None, seconds: float
    ) -> Verdict:
        run = suite_run(
            self._workspace,
            environment,
            doctests=[name for name in self._spec.tests if name.startswith("doctest:")],
            pytest_ids=[name for name in self._spec.tests if name.startswith("pytest:")],
            files={self._spec.path: self.text(answer.completion or "")},
            wall_seconds=seconds,
            cpu_seconds=self._spec.seconds + START_UP_SECONDS,
        )
        outcome = await sandbox.run(run.job)
        report = run.report(outcome)
        tests = self._tests(report)
        status, reason = ending(outcome, report) or self._by_tests(report, tests)
        return verdict(task, answer, outcome, status, reason, tests)

    def text(self, completion: str) -> str:
        """The whole text of the answer's file."""
        pristine = (self._workspace / self._spec.path).read_bytes().decode("utf-8")
        return pristine[: self._spec.start] + completion + pristine[self._spec.end :]

    def _fault(self) -> str:
        """What is missing on our side; nothing an answer can bring about."""
        if not (self._workspace / self._spec.path).is_file():
            return f"{self._workspace / self._spec.path} is missing; build the tasks again"
        if is_control(self._spec.path):
            return f"{self._spec.path} decides how answers are judged and cannot be one; build the tasks again"
        if self._spec.environment and not (environment_folder(self._spec.environment) / "manifest.json").is_file():
            folder = environment_folder(self._spec.environment)
            return f"{folder}: the dependencies are not installed; build the tasks again"
        return ""

    def _tests(self, report: Report) -> tuple[TestResult, ...]:
        """One result per expected test, in the order of the specification."""
        results = report.results or {}
        found = []
        for name in self._spec.tests:
            record = report.tests.get(name)
            passed = results.get(name, False) and not report.problem
            message = report.problem or (record.message if record else "")
            if not passed and not message:
                message = "\n".join(report.broken)[:2000] or "the test did not report"
            found.append(TestResult(id=name, passed=passed, message="" if passed else message))
        return tuple(found)

    def _by_tests(self, report: Report, tests: tuple[TestResult, ...]) -> tuple[Status, str]:
        failed = [test for test in tests if not test.passed]
        if not failed:
            return Status.PASSED, ""
        if report.problem:
            return Status.FAILED, report.problem
        first = failed[0].message.strip().split("\n")[0][:300]
        return Status.FAILED, f"{len(failed)} of {len(tests)} tests failed; {failed[0].id}: {first}"


def decide(judge: Outcome, candidate: Outcome, report: Report) -> tuple[Status, str] | None:
    """The verdict that the end of an isolated run alone decides, None when its tests decide.

    Our own fault is only what happens before anything of the answer has run. Everything later is the answer's doing.
    """
    broken = limit_broken(candidate) or limit_broken(judge)
    if report.results is None:
        if broken is not None:
            return broken
        if judge.end == "signal":  # also when its worker was brought down twice, see `Sandbox.run_warm`
            return Status.CRASHED, f"the judge was ended by {describe_end(judge)}"
        if report.ready:
            return Status.FAILED, f"the judge ended ({describe_end(judge)}) before its tests had reported"
    if report.results is None or report.fault or report.over == "absent":
        last = judge if report.over != "absent" else candidate
        words = decoded(last.stderr)[-300:].strip().replace("\n", " | ")
        return Status.HARNESS_ERROR, f"{report.fault or report.problem or 'the judge did not start'}: {words}"
    if report.over == "gone":
        return broken or gone(candidate)
    if broken is not None and broken[0] is Status.REFUSED:
        return broken
    if report.foreign:
        return Status.FAILED, "something other than the tests wrote to the result channel"
    return None
