"""The judge of a call test: runs the test code, unchanged in meaning, with the answer in another process.

Payload, marshalled (it comes from our own side): `test` and `setup`, code objects; `checks`, one (operator, swapped, line,
last line) for each assert statement; `names` under test; `missing`, names to look for in the answer when the test code
has none of its own; `seconds`. The asserts of the code call `@compare`, `@true` and `@false`, which no source can name.

Report, JSON lines on descriptor 3: `{"ready": true}` before anything of the answer is read, then one object with `end`,
`problem`, `seconds`, `passed` (numbers of asserts), `failed` (numbers with messages), `decisive` (the assert that the run
ended in, or null). `end` is `passed`, `failed`, `memory`,
`late`, or one of `Connection.over`.
"""

from __future__ import annotations

import _signal
import json
import marshal
import operator
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from codemill.tasks.inside import remote, wire
else:
    import remote
    import wire

TEST = "test.py"
_MESSAGE_CHARACTERS = 1900
_MAX_MESSAGES = 100  # of asserts that failed: bounds the report
_ALARM_AGAIN = 0.2  # seconds, in case the test code swallows the first

_OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "is": operator.is_,
    "is not": operator.is_not,
    "in": lambda left, right: left in right,
    "not in": lambda left, right: left not in right,
}


class Late(BaseException):
    """The time is up."""


def main(payload: bytes) -> None:
    _write({"ready": True})
    _write(Run(marshal.loads(payload)).report())


def _write(record: dict[str, Any]) -> None:
    data = (json.dumps(record) + "\n").encode()
    while data:
        data = data[os.write(3, data) :]


class Run:
    """One run of the test code."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._answer = remote.Connection(wire.Channel(4))
        self._checks = Checks(request["checks"], self._answer)
        self._armed = True

    def report(self) -> dict[str, Any]:
        started = time.monotonic()
        try:
            error = self._guarded(self._request["seconds"])
        except Late as late:  # it rang while another exception was handled
            error = late
        self._armed = False
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        seconds = time.monotonic() - started
        end, problem = self._end(error)
        failed = sorted(self._checks.failed.items())[:_MAX_MESSAGES]
        return {
            "end": end,
            "problem": problem[:_MESSAGE_CHARACTERS],
            "seconds": seconds,
            "passed": sorted(self._checks.passed - self._checks.failed.keys()),
            "failed": [(number, text[:_MESSAGE_CHARACTERS]) for number, text in failed],
            "decisive": self._checks.decisive,
        }

    def _guarded(self, seconds: float) -> BaseException | None:
        try:
            _signal.signal(_signal.SIGALRM, self._ring)
            _signal.setitimer(_signal.ITIMER_REAL, seconds, _ALARM_AGAIN)
            self._execute()
        except BaseException as error:
            return error
        return None

    def _ring(self, *_: object) -> None:
        if self._armed:
            raise Late

    def _execute(self) -> None:
        request, answer = self._request, self._answer
        module = sys.modules["tests"] = type(sys)("tests")
        namespace = Names(module.__dict__, request["missing"], answer) if request["missing"] else module.__dict__
        checks = self._checks
        namespace.update({"@compare": checks.compare, "@true": checks.true, "@false": checks.false})
        answer.meet()
        exec(request["setup"], namespace)  # noqa: S102 - meanwhile the program is loaded
        found = answer.reply()
        for name in request["names"]:
            namespace.pop(name, None)
            if name in found:
                namespace[name] = found[name]
        exec(request["test"], namespace)  # noqa: S102

    def _end(self, error: BaseException | None) -> tuple[str, str]:
        """How the run ended and why."""
        self._answer.quiet = True
        if self._answer.over:
            self._checks.blame(error, self._answer.problem)
            return self._answer.over, self._answer.problem
        if error is None:
            return "passed", ""
        if isinstance(error, Late):
            self._checks.blame(error, "the time was up")
            return "late", ""
        problem = described(error)
        self._checks.blame(error, problem)
        return "memory" if isinstance(error, MemoryError) else "failed", problem


class Names(dict):
    """Globals of the test code in which some names that it lacks are looked up in the answer, each time anew.

    The name of a standard-library module is that module, never something of the answer.
    """

    def __init__(self, names: dict[str, Any], missing: frozenset[str], answer: remote.Connection) -> None:
        super().__init__(names)
        self._missing, self._answer = missing, answer

    def __missing__(self, name: str) -> Any:
        if name not in self._missing:
            raise KeyError(name)
        return __import__(name) if name in sys.stdlib_module_names else self._answer.ask("global", 0, name)


class Checks:
    """What the asserts of the test code found. An assert that runs several times passes if it never failed."""

    def __init__(self, table: list[tuple[str, bool, int, int]], answer: remote.Connection) -> None:
        self._table, self._answer = table, answer
        self.passed: set[int] = set()
        self.failed: dict[int, str] = {}
        self.decisive: int | None = None

    def compare(self, number: int, left: Any, right: Any) -> bool:
        sign = self._table[number][0]
        if _OPERATORS[sign](left, right):
            self.passed.add(number)
            return True
        if self._table[number][1]:
            left, right = right, left
        self._fail(number, ("" if sign == "==" else f"{sign} ") + self._shown(right), self._shown(left))
        return False

    def true(self, number: int, value: Any) -> bool:
        if value:
            self.passed.add(number)
            return True
        self._fail(number, "a true value", self._shown(value))
        return False

    def false(self, number: int, value: Any) -> bool:
        if not value:
            self.passed.add(number)
            return True
        self._fail(number, "a false value", self._shown(value))
        return False

    def _fail(self, number: int, expected: str, got: str) -> None:
        self.failed.setdefault(number, f"  expected {expected}\n  got      {got}")

    def _shown(self, value: Any) -> str:
        try:  # noqa: SIM105 (no import just for this)
            value = remote.contents(value)
        except Exception:  # then it is shown as the object it is
            pass
        self._answer.quiet = True
        try:
            return remote.shown(value)
        finally:
            self._answer.quiet = False

    def blame(self, error: BaseException | None, problem: str) -> None:
        """Note the exception under the assert that it came out of, if it did."""
        for line in reversed(_test_lines(error)):
            for number, (_, _, first, last) in enumerate(self._table):
                if first <= line <= last:
                    self.failed.setdefault(number, "\n".join(f"  {part}" for part in problem.split("\n")))
                    self.decisive = number
                    return


def _test_lines(error: BaseException | None) -> list[int]:
    lines = []
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == TEST:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines


def described(error: BaseException) -> str:
    """The exception for people, with the answer's own trace where it came from there (a claim: only shown)."""
    text = remote.shown(error, str, 600)
    lines = [f"{type(error).__name__}: {text}" if text else type(error).__name__]
    trace = vars(error).get(remote.TRACE_KEY) if hasattr(error, "__dict__") else None
    lines += [f"  {line}" for line in trace.split("\n") if line] if trace else []
    return "\n".join(lines)
