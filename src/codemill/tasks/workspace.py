"""Verifying an answer inside its repository: its file is put in place and tests fixed in advance are run.

The repository is a pristine snapshot without version history. Only the answer's own file differs from it; tests,
configuration and the docstrings that doctests come from are the snapshot's. Control files must not be touched while the
tests run, not even to be put back, and the code of the test tools must stay what it is (`inside/integrity.py`). Every
expected test must report passed: missing, skipped and expected failures count as failed.

What this does not stop: tests run in the process that imported the answer, as they do for a developer, so an answer that
goes after the harness in its memory can fool it. Separating judge and candidate is a different verifier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.core.paths import safe_relative
from codemill.sandbox import Outcome, Sandbox
from codemill.tasks.environment import environment_folder
from codemill.tasks.harness import START_UP_SECONDS, Report, ending, load_factor, suite_run
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
        run = suite_run(
            self._workspace,
            environment_folder(self._spec.environment) if self._spec.environment else None,
            doctests=[name for name in self._spec.tests if name.startswith("doctest:")],
            pytest_ids=[name for name in self._spec.tests if name.startswith("pytest:")],
            files={self._spec.path: self.text(answer.completion or "")},
            wall_seconds=self._spec.seconds * load_factor() + START_UP_SECONDS,
            cpu_seconds=self._spec.seconds + START_UP_SECONDS,
        )
        outcome = await sandbox.run(run.job)
        report = run.report(outcome)
        tests = self._tests(report)
        status, reason = self._judge(outcome, report, tests)
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

    def _judge(self, outcome: Outcome, report: Report, tests: tuple[TestResult, ...]) -> tuple[Status, str]:
        decided = ending(outcome, report)
        if decided is not None:
            return decided
        failed = [test for test in tests if not test.passed]
        if not failed:
            return Status.PASSED, ""
        if report.problem:
            return Status.FAILED, report.problem
        first = failed[0].message.strip().split("\n")[0][:300]
        return Status.FAILED, f"{len(failed)} of {len(tests)} tests failed; {failed[0].id}: {first}"
