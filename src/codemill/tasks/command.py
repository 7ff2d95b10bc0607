"""Verifying an answer by commands: build steps, then runs whose exit status and output are looked at.

Two forms. With a `language` the answer is a program, built and run by that language's toolchain, and each run gives its
arguments: benchmarks that put their tests behind the program are of this form. Without, the answer is the file `path`
beside others, and every step names its command.

The build has a jail of its own, and what it made reaches the runs through the judge: files it adds are kept, files that
were there before are as they were, so a build cannot rewrite a test. Each run starts from that state in a fresh jail.
What is expected never enters; `{nonce}` in a run's arguments, input and expected output is a fresh value for each run.

What this does not stop: where an exit status is all that is looked at, a program that ends itself with that status
before its tests began has passed. Ask for output that only the end of the tests can print, or use a verifier that
keeps tests and answer apart.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.core.errors import ConfigError, InputError, UnavailableError
from codemill.core.paths import safe_relative
from codemill.sandbox import Job, Outcome, Policy, Sandbox
from codemill.sandbox.build import Build, Built, build, build_policy, build_program
from codemill.sandbox.job import NotExecutableError
from codemill.sandbox.languages import language_of
from codemill.sandbox.policy import MIB
from codemill.sandbox.toolchain import Toolchain, find_toolchain, together
from codemill.tasks.harness import START_UP_SECONDS, load_factor
from codemill.tasks.program import refuse
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

_NONCE = "{nonce}"


class RunStep(BaseModel):
    """One run and how it must end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", description="Id of its test result; empty for its number.")
    argv: tuple[str, ...] = Field((), description="The command; with a `language`, arguments for the program.")
    stdin: str = Field("", description="What it reads.")
    exit_code: int | None = Field(0, description="The exit status it must end with, null for any.")
    stdout: str | None = Field(None, description="What it must print, null for anything.")
    seconds: float = Field(10.0, gt=0, le=3600, description="Wall limit, widened on a busy machine.")


class CommandSpec(BaseModel):
    """How an answer is verified by commands."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["command"]
    language: str | None = Field(None, description="What the answer is written in; its toolchain builds and runs it.")
    path: str | None = Field(None, description="The file that the answer is; needed without a `language`.")
    workspace: str | None = Field(None, description="Folder name under `workspaces/` of the tasks folder.")
    files: Mapping[str, str] = Field(default_factory=dict, description="Further files by path.")
    toolchains: tuple[str, ...] = Field((), description="Languages whose tools the commands use.")
    build: tuple[tuple[str, ...], ...] = Field((), description="Commands that build, in order; each must end with 0.")
    build_seconds: float = Field(60.0, gt=0, le=3600, description="Wall limit of the whole build.")
    run: tuple[RunStep, ...] = Field(min_length=1, max_length=1000)
    compare: Compare = Field("whitespace", description="How outputs are compared, see `runs.difference`.")
    tolerance: float = Field(1e-6, ge=0, le=1, description="For `float`: absolute, and relative to what is expected.")
    memory_mb: int = Field(1024, ge=16, le=65536, description="MiB for each run, at least as many for the build.")

    @model_validator(mode="after")
    def _one_form(self) -> CommandSpec:
        try:
            for name in (*self.toolchains, *([self.language] if self.language else [])):
                language_of(name)
            for name in (*self.files, *([self.path] if self.path else [])):
                safe_relative(name, "command")
        except (ConfigError, InputError) as error:
            raise ValueError(str(error)) from None
        if self.language:
            if self.path or self.workspace or self.build or self.toolchains:
                raise ValueError(
                    "`language` stands alone: leave out path, workspace, build and toolchains, or leave it out"
                )
        elif not self.path:
            raise ValueError("without a `language` the answer needs a `path`")
        elif not all(step.argv for step in self.run) or not all(self.build):
            raise ValueError("without a `language` every step needs an argv")
        if len({name for name, _ in self.named()}) < len(self.run):
            raise ValueError("two runs have the same name")
        return self

    def named(self) -> list[tuple[str, RunStep]]:
        return [(step.name or f"run {number}", step) for number, step in enumerate(self.run, 1)]


@dataclass(frozen=True, slots=True)
class _Ran:
    """One run; `outcome` is None where its command could not be executed."""

    status: Status
    message: str
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class _Ready:
    """A run's job but for what differs from run to run. `fixed` is the part of the command before its arguments."""

    job: Job
    fixed: tuple[str, ...]
    out_of_memory: str
    start_seconds: float


class CommandVerifier:
    """Verifies answers whose `completion` continues (or fills) a program or a file."""

    def __init__(self, spec: CommandSpec, folder: Path) -> None:
        if spec.workspace is not None:
            safe_relative(spec.workspace, "verifier field 'workspace'")
        self._spec = spec
        self._workspace = folder / "workspaces" / spec.workspace if spec.workspace else None

    async def verify(self, task: Task, answer: Answer, sandbox: Sandbox) -> Verdict:
        refused = refuse(task, answer)
        if refused is not None:
            return refused
        if self._workspace is not None and not self._workspace.is_dir():
            return unscorable(task, answer, f"{self._workspace} is missing; build the tasks again")
        names = [self._spec.language] if self._spec.language else list(self._spec.toolchains)
        try:
            toolchains = [await asyncio.to_thread(find_toolchain, name) for name in names]
        except UnavailableError as error:
            return unscorable(task, answer, str(error))
        text = program_text(task, answer)
        prepare = self._program if self._spec.language else self._files
        ready, built = await prepare(toolchains, text, sandbox)
        before = [built.outcome] if built.outcome else []
        if ready is None:
            status, reason, words = build_failure(built, "build")
            tests = (TestResult(id="build", passed=False, message=words or reason), *self._not_run())
            return joint_verdict(task, answer, before, built.outcome, status, reason, tests)
        ran = [await self._run(ready, step, sandbox) for step in self._spec.run]
        return self._verdict(task, answer, ran, before)

    async def _program(self, toolchains: list[Toolchain], text: str, sandbox: Sandbox) -> tuple[_Ready | None, Built]:
        (toolchain,) = toolchains
        files = {name: encoded(content) for name, content in self._spec.files.items()}
        seconds = self._spec.build_seconds * load_factor()
        program, built = await build_program(toolchain, text, sandbox, seconds=seconds, files=files)
        if program is None:
            return None, built
        job = program.job(self._policy(sandbox))
        language = toolchain.language
        return _Ready(job, job.argv, language.out_of_memory, language.start_seconds), built

    async def _files(self, toolchains: list[Toolchain], text: str, sandbox: Sandbox) -> tuple[_Ready | None, Built]:
        """The files of the runs: as given, or as the build left them."""
        spec, tools = self._spec, together(toolchains)
        assert spec.path is not None
        files = {**{name: encoded(content) for name, content in spec.files.items()}, spec.path: encoded(text)}
        workspace, built, policy = self._workspace, Built(), tools.limited(self._policy(sandbox))
        if spec.build:
            limits = build_policy(policy, spec.build_seconds * load_factor())
            request = Build(
                steps=spec.build,
                files=files,
                workspace=workspace,
                outputs=".",
                env=tools.environment(limits.memory_bytes),
                readable=tools.trees,
                self_exe=tools.self_exe,
                tools=(tools.version,),
            )
            built = await build(request, sandbox, limits)
            if built.folder is None:
                return None, built
            workspace, files = built.folder, {}
        job = Job(
            argv=("?",),  # each step has its own
            workspace=workspace,
            files=files,
            readable=tools.trees,
            env=tools.environment(policy.memory_bytes),
            self_exe=tools.self_exe,
            policy=policy,
        )
        return _Ready(job, (), tools.language.out_of_memory, START_UP_SECONDS), built

    def _policy(self, sandbox: Sandbox) -> Policy:
        expected = max(len(encoded(step.stdout or "")) for step in self._spec.run)
        return dataclasses.replace(sandbox.policy, memory_bytes=self._spec.memory_mb * MIB, output_bytes=expected + MIB)

    async def _run(self, ready: _Ready, step: RunStep, sandbox: Sandbox) -> _Ran:
        nonce = secrets.token_hex(16)
        argv = (*ready.fixed, *(word.replace(_NONCE, nonce) for word in step.argv))
        stdin = encoded(step.stdin.replace(_NONCE, nonce))
        policy = dataclasses.replace(
            ready.job.policy or sandbox.policy,
            wall_seconds=step.seconds * load_factor() + ready.start_seconds,
            cpu_seconds=2 * (step.seconds + ready.start_seconds),
        )
        try:
            outcome = await sandbox.run(dataclasses.replace(ready.job, argv=argv, stdin=stdin, policy=policy))
        except NotExecutableError as error:
            # A name without a slash is a tool of the machine's; anything else was for the answer or its build to make.
            ours = "/" not in argv[0]
            return _Ran(Status.HARNESS_ERROR if ours else Status.FAILED, str(error), None)
        bad = ended_badly(outcome, ready.out_of_memory, step.exit_code)
        if bad is not None:
            return _Ran(bad[0], with_stderr(bad[1], outcome), outcome)
        if step.stdout is None:
            return _Ran(Status.PASSED, "", outcome)
        if outcome.stdout_dropped:
            return _Ran(Status.FAILED, "printed far more than expected", outcome)
        expected = encoded(step.stdout.replace(_NONCE, nonce))
        message = difference(expected, outcome.stdout, self._spec.compare, self._spec.tolerance)
        return _Ran(Status.FAILED if message else Status.PASSED, message, outcome)

    def _not_run(self) -> tuple[TestResult, ...]:
        return tuple(TestResult(id=name, passed=False, message="not run: not built") for name, _ in self._spec.named())

    def _verdict(self, task: Task, answer: Answer, ran: Sequence[_Ran], before: list[Outcome]) -> Verdict:
        names = [name for name, _ in self._spec.named()]
        tests = tuple(
            TestResult(id=name, passed=run.status is Status.PASSED, message=run.message)
            for name, run in zip(names, ran, strict=True)
        )
        outcomes = [*before, *(run.outcome for run in ran if run.outcome is not None)]
        failed = [(name, run) for name, run in zip(names, ran, strict=True) if run.status is not Status.PASSED]
        if not failed:
            return joint_verdict(task, answer, outcomes, ran[-1].outcome, Status.PASSED, "", tests)
        # A command that is missing here leaves the answer unjudged, whatever the others say.
        name, run = next((pair for pair in failed if pair[1].status is Status.HARNESS_ERROR), failed[0])
        reason = f"{len(failed)} of {len(tests)} runs failed; {name}: {run.message.splitlines()[0][:300]}"
        return joint_verdict(task, answer, outcomes, run.outcome, run.status, reason, tests)
