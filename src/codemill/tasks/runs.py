"""What the verifiers of programs in any language share: comparing output, reading endings, putting verdicts together.

All of it works on bytes that came out of the jail, on this side. What was expected never goes in.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from codemill.core.contracts import Answer, Status, Task, TestResult, Verdict
from codemill.sandbox import Outcome
from codemill.sandbox.build import Built
from codemill.tasks.harness import decoded, tail

Compare = Literal["exact", "whitespace", "float"]

_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,5})?")
_LONGEST_NUMBER = 400  # characters; what is longer is compared as text
_QUOTED = 120
_MESSAGE = 1500
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


def difference(expected: bytes, got: bytes, compare: Compare, tolerance: float) -> str:
    """The first line in which two outputs differ, in words; empty when they agree.

    `exact` compares bytes. `whitespace` ignores how much of it stands between words, at the ends of lines and around
    the whole. `float` does so too, and takes two words for equal if both are finite decimal numbers whose difference
    is at most `tolerance`, or `tolerance` times the expected one.
    """
    if expected == got:
        return ""
    if compare != "exact":
        expected, got = expected.strip(), got.strip()
    wanted, found = (data.split(b"\n") if data else [] for data in (expected, got))
    for number, (want, have) in enumerate(zip(wanted, found, strict=False), 1):
        if want != have and not _same_line(want, have, compare, tolerance):
            return f"line {number}: expected {_quoted(want)}, got {_quoted(have)}"
    if len(wanted) == len(found):
        return ""
    number = min(len(wanted), len(found))
    if len(found) < len(wanted):
        return f"line {number + 1}: expected {_quoted(wanted[number])}, got the end of the output"
    return f"line {number + 1}: expected the end of the output, got {_quoted(found[number])}"


def _same_line(want: bytes, have: bytes, compare: Compare, tolerance: float) -> bool:
    if compare == "exact":
        return False
    words, others = want.split(), have.split()
    if compare == "whitespace" or len(words) != len(others):
        return words == others
    return all(_same_number(*pair, tolerance) for pair in zip(words, others, strict=True))


def _same_number(want: bytes, have: bytes, tolerance: float) -> bool:
    if want == have:
        return True
    if max(len(want), len(have)) > _LONGEST_NUMBER or not (_NUMBER.fullmatch(want) and _NUMBER.fullmatch(have)):
        return False
    first, second = float(want), float(have)
    if not (math.isfinite(first) and math.isfinite(second)):
        return False
    return abs(first - second) <= tolerance * max(1.0, abs(first))


def _quoted(line: bytes) -> str:
    cut = line[:_QUOTED].decode("utf-8", "replace")
    return json.dumps(cut, ensure_ascii=False) + (f"... ({len(line):,} bytes)" if len(line) > _QUOTED else "")


def readable(text: str, limit: int = _MESSAGE) -> str:
    """A program's or a compiler's words without control characters; the start, which says most, and the end."""
    clean = _CONTROL.sub("", text).strip()
    if len(clean) <= limit:
        return clean
    head = limit * 3 // 4
    return f"{clean[:head]}\n... ({len(clean) - limit:,} characters) ...\n{clean[head - limit :]}"


def ended_badly(outcome: Outcome, out_of_memory: str, exit_code: int | None = 0) -> tuple[Status, str] | None:
    """Status and reason of a run that did not end by itself with `exit_code` (None: with any), else None.

    `out_of_memory` is the pattern of what the language's runtime says when it gives up: the program's own word, which
    tells one way of failing from another and never a success.
    """
    gave_up = re.search(out_of_memory, decoded(outcome.stderr)) is not None
    match outcome.end:
        case "timeout":
            return Status.TIMEOUT, f"stopped after {outcome.seconds:.1f} s"
        case "memory":
            return Status.MEMORY, f"stopped at {outcome.peak_bytes / 2**20:.0f} MiB of memory"
        case "signal" if gave_up:
            return Status.MEMORY, "gave up for lack of memory"
        case "signal":
            return Status.CRASHED, f"ended by signal {outcome.signal}"
        case "exited":
            code = outcome.exit_code
        case other:
            return Status.REFUSED, f"broke the sandbox's limit: {other}"
    if exit_code is None or code == exit_code:
        return None
    if gave_up:
        return Status.MEMORY, "gave up for lack of memory"
    return Status.FAILED, f"exit code {code}, expected {exit_code}"


def with_stderr(reason: str, outcome: Outcome) -> str:
    """A reason and, where there is one, what the program said about it."""
    said = readable(decoded(outcome.stderr))
    return f"{reason}\n{said}" if said else reason


def build_failure(built: Built, name: str, out_of_memory: str = r"(?!)") -> tuple[Status, str, str]:
    """Status, reason and the tools' own words for a build that gave nothing. `name` is what it is called."""
    outcome = built.outcome
    assert outcome is not None
    words = readable(decoded(outcome.stderr) + "\n" + decoded(outcome.stdout))
    if not built.started or built.missing:
        reason = f"{built.missing}: not inside the sandbox; install it" if built.missing else f"did not start: {words}"
        return Status.HARNESS_ERROR, f"{name}: {reason[:300]}", words
    bad = ended_badly(outcome, out_of_memory, exit_code=None)
    if bad is not None:
        return bad[0], f"{name}: {bad[1]}", words
    if built.problem:
        return Status.FAILED, f"{name}: {built.problem}", words
    first = next((line for line in words.split("\n") if "error" in line.lower()), words.split("\n")[0])
    return Status.FAILED, f"{name} failed: {first.strip()[:300]}", words


def isolation_of(all_of: Iterable[dict[str, str]]) -> dict[str, str]:
    """The isolation of several runs: by axis, what enforced it in each of them, "nothing" if in one nothing did."""
    axes: dict[str, dict[str, None]] = {}
    for isolation in all_of:
        for axis, enforced_by in isolation.items():
            axes.setdefault(axis, {})[enforced_by] = None
    return {axis: "nothing" if "nothing" in kinds else "; ".join(kinds) for axis, kinds in axes.items()}


def joint_verdict(
    task: Task,
    answer: Answer,
    outcomes: Sequence[Outcome],
    shown: Outcome | None,
    status: Status,
    reason: str,
    tests: tuple[TestResult, ...],
) -> Verdict:
    """One verdict on several runs. `shown` is the run whose output is kept."""
    return Verdict(
        task_id=task.id,
        sample=answer.sample,
        status=status,
        score=1.0 if status is Status.PASSED else 0.0,
        reason=reason,
        tests=tests,
        stdout=tail(shown.stdout) if shown else "",
        stderr=tail(shown.stderr) if shown else "",
        seconds=round(sum(outcome.seconds for outcome in outcomes), 4),
        isolation=isolation_of(dict(outcome.isolation) for outcome in outcomes),
    )


def unscorable(task: Task, answer: Answer, reason: str) -> Verdict:
    """The verdict where something of ours is missing."""
    return Verdict(
        task_id=task.id, sample=answer.sample, status=Status.HARNESS_ERROR, score=0.0, reason=" ".join(reason.split())
    )


def encoded(text: str) -> bytes:
    """UTF-8; lone surrogates become bytes that do not decode."""
    return text.encode("utf-8", "surrogatepass")


def program_text(task: Task, answer: Answer) -> str:
    return task.prefix + (answer.completion or "") + (task.suffix or "")
