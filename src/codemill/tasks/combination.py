"""Verifying an answer in several ways at once: weighted parts, each with a verifier of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.sandbox import Sandbox
from codemill.tasks.runs import isolation_of


class Part(BaseModel):
    """One of the ways an answer is verified."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="Stands before the ids of its tests.")
    verifier: Mapping[str, Any] = Field(description="The description of its verifier, of any kind but this one.")
    weight: float = Field(1.0, gt=0, le=1e6, description="Its share of the score, relative to the other parts.")
    required: bool = Field(True, description="Whether the answer can pass without it.")

    @field_validator("verifier")
    @classmethod
    def _no_combination(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        if value.get("kind") == "combination":
            raise ValueError("a part cannot be a combination; list its parts instead")
        return value


class CombinationSpec(BaseModel):
    """How an answer is verified in parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["combination"]
    parts: tuple[Part, ...] = Field(min_length=1, max_length=100)

    @field_validator("parts")
    @classmethod
    def _named_once(cls, value: tuple[Part, ...]) -> tuple[Part, ...]:
        if len({part.name for part in value}) < len(value):
            raise ValueError("two parts have the same name")
        return value


class PartVerifier(Protocol):
    async def verify(self, task: Task, answer: Answer, sandbox: Sandbox) -> Verdict: ...


class CombinationVerifier:
    """The score is the weighted share of the parts that passed; the answer passes if every required part does.

    `make` gives the verifier of a task, as `verifiers.verifier_for` does. Raises what it raises, before any run.
    """

    def __init__(self, spec: CombinationSpec, task: Task, make: Callable[[Task], PartVerifier]) -> None:
        self._parts = [
            (part, part_task, make(part_task))
            for part in spec.parts
            for part_task in [dataclasses.replace(task, verifier=part.verifier)]
        ]

    async def verify(self, task: Task, answer: Answer, sandbox: Sandbox) -> Verdict:
        """One part after the other: a part may itself have many runs, and they fill the sandbox."""
        verdicts = [(part, await verifier.verify(own, answer, sandbox)) for part, own, verifier in self._parts]
        weight = sum(part.weight for part, _ in verdicts)
        score = sum(part.weight for part, verdict in verdicts if verdict.passed) / weight
        unscorable = [(part, verdict) for part, verdict in verdicts if not verdict.scorable]
        failed = [(part, verdict) for part, verdict in verdicts if part.required and not verdict.passed]
        status, reason, shown = Status.PASSED, "", verdicts[-1][1]
        if unscorable or failed:  # what a part that was not judged would have said is not known
            part, shown = (unscorable or failed)[0]
            status, reason = shown.status, f"{part.name}: {shown.reason}"
        return Verdict(
            task_id=task.id,
            sample=answer.sample,
            status=status,
            score=0.0 if unscorable else round(score, 12),
            reason=reason,
            tests=tuple(test for part, verdict in verdicts for test in _tests(part, verdict)),
            stdout=shown.stdout,
            stderr=shown.stderr,
            seconds=round(sum(verdict.seconds for _, verdict in verdicts), 4),
            isolation=isolation_of(dict(verdict.isolation) for _, verdict in verdicts),
        )


def _tests(part: Part, verdict: Verdict) -> tuple[TestResult, ...]:
    """The part's tests under its name; the part itself is one where they do not tell how it ended."""
    tests = tuple(dataclasses.replace(test, id=f"{part.name}: {test.id}") for test in verdict.tests)
    if tests and all(test.passed for test in tests) == verdict.passed:
        return tests
    return (*tests, TestResult(id=part.name, passed=verdict.passed, message=verdict.reason))
