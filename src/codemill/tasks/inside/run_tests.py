"""Runs a repository's tests inside the jail and reports each of them on descriptor 3.

Request, JSON on standard input:
  nonce            repeated in every report
  paths            folders put on the import path: the environment's, absolute
  roots            import roots inside the working folder, relative
  doctests         [{id, module, name, path, line, text}]: docstrings taken from the pristine files by the judge
  doctest_flags    names of `doctest` option flags
  pytest           null, or {files, args, wanted}: files to collect ([] for what the repository's settings say) and the
                   test ids to run (null for all)
  compile          files of the answer: tests only start when these compile
  control          {path: sha256} of files that must be unchanged in the end
  trace            whether to report which functions each test enters
  test_seconds     limit for one test, null for none
  suite_seconds    no test is started after this many seconds, null for no limit

Report, JSON lines, each with the nonce: `{ready}` when the harness stands and before any of the repository runs; for each
test `{test, passed, message, seconds, enters}`; `{functions: [[index, path, line]]}` naming what `enters` refers to;
`{end, results}` last.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import signal
import sys
import time
import traceback

TYPE_CHECKING = False  # spares the jail the import of typing; type checkers know the name
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Guard(Protocol):
        """What is looked at while an answer shares the process, see `integrity`."""

        problem: str

        def look(self, final: bool = False) -> None: ...
        def look_at_code(self) -> None: ...
        def look_at_plugin(self, plugin: object) -> None: ...


MESSAGE_CHARACTERS = 1900
WATCHED_EVENTS = 50_000  # calls and returns of one test, C functions included; a longer test is watched no further
TESTS_PER_FUNCTION = 24  # further tests that enter the same function are not listed: bounds the report


class TestTimeout(BaseException):
    """Not an `Exception`, so that a test's own `except Exception` does not swallow it."""


class Reporter:
    """Writes the report and keeps the result of every test."""

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._write, self._dumps = os.write, json.dumps
        self.results: dict[str, bool] = {}

    def send(self, **record: Any) -> None:
        data = (self._dumps({"nonce": self._nonce, **record}) + "\n").encode()
        while data:
            data = data[self._write(3, data) :]

    def test(self, name: str, passed: bool, message: str, seconds: float, enters: list[int]) -> None:
        # Twice the same id (a rerun, a hand-made duplicate): only good when good both times.
        passed = passed and self.results.get(name, True)
        self.results[name] = passed
        self.send(
            test=name, passed=passed, message=message[:MESSAGE_CHARACTERS], seconds=round(seconds, 4), enters=enters
        )

    def end(self, problem: str, broken: list[str], **more: Any) -> None:
        texts = [text[:MESSAGE_CHARACTERS] for text in broken[:20]]
        self.send(end=True, results=self.results, problem=problem, broken=texts, **more)


class Tracer:
    """Which functions of the working folder were entered since `start`, as indices announced once each."""

    def __init__(self, reporter: Reporter, folder: str, enabled: bool) -> None:
        self._reporter, self._prefix, self._enabled = reporter, folder + os.sep, enabled
        self._entered: dict[int, Any] = {}
        self._known: dict[tuple[str, int], int] = {}
        self._times: dict[tuple[str, int], int] = {}

    def start(self) -> None:
        if self._enabled:
            import threading

            entered: dict[int, Any] = {}
            self._entered = entered

            remaining = WATCHED_EVENTS

            def profile(frame: Any, event: str, _: Any) -> None:
                nonlocal remaining
                remaining -= 1
                if event == "call":
                    code = frame.f_code
                    entered[id(code)] = code  # by identity: hashing a code object compares all of it
                elif remaining < 0:
                    sys.setprofile(None)

            threading.setprofile(profile)
            sys.setprofile(profile)

    def stop(self) -> list[int]:
        if not self._enabled:
            return []
        import threading

        sys.setprofile(None)
        threading.setprofile(None)
        keys = {
            (code.co_filename, code.co_firstlineno)
            for code in list(self._entered.values())
            if code.co_filename.startswith(self._prefix)
        }
        return sorted(index for index in map(self._index, sorted(keys)) if index is not None)

    def _index(self, key: tuple[str, int]) -> int | None:
        if key not in self._known:
            self._known[key] = len(self._known)
            self._reporter.send(functions=[[self._known[key], os.path.relpath(key[0], self._prefix), key[1]]])
        self._times[key] = self._times.get(key, 0) + 1
        return self._known[key] if self._times[key] <= TESTS_PER_FUNCTION else None


class Alarm:
    """Breaks into a test that runs too long, again every second in case it swallows the first."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def start(self) -> None:
        if self._seconds:
            signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, self._seconds, 1.0)

    def stop(self) -> None:
        if self._seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, *_: Any) -> None:
        raise TestTimeout(f"longer than {self._seconds or 0:g} s")


class Explainer:
    """Turns a failure into a short text for people: what was expected, what came, and where."""

    def __init__(self, folder: str) -> None:
        self._prefix = folder + os.sep

    def __call__(self, error: BaseException) -> str:
        try:
            lines = [f"{type(error).__name__}: {str(error)[:700]}".rstrip(": ")]
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(self._prefix)]
            if isinstance(error, AssertionError):
                lines += self._comparison(error.__traceback__)
            for frame in frames[-5:]:
                place = f"{os.path.relpath(frame.filename, self._prefix)}:{frame.lineno} in {frame.name}"
                lines.append(f"  {place}: {(frame.line or '').strip()[:160]}")
            return "\n".join(lines)[:MESSAGE_CHARACTERS]
        except TestTimeout:
            raise
        except BaseException:
            return "an exception that cannot be printed"

    def _comparison(self, trace: Any) -> list[str]:
        """Both sides of a plain `assert a == b`, evaluated once more in the frame that failed."""
        while trace.tb_next is not None:
            trace = trace.tb_next
        try:
            import linecache

            line = linecache.getline(trace.tb_frame.f_code.co_filename, trace.tb_lineno).strip()
            statement = ast.parse(line).body[0]
            test = statement.test if isinstance(statement, ast.Assert) else None
            sides = [test.left, *test.comparators] if isinstance(test, ast.Compare) else []
        except (SyntaxError, AttributeError, IndexError, ValueError):
            return []
        names = trace.tb_frame.f_globals, trace.tb_frame.f_locals
        try:
            codes = [compile(ast.Expression(side), "assert", "eval") for side in sides]
            values = [repr(eval(code, *names))[:300] for code in codes]  # noqa: S307
        except Exception:  # the second evaluation may well fail: then there is only the line
            return []
        return [f"  got      {values[0]}", f"  expected {values[1]}"] if len(values) == 2 else []


def run_doctest(spec: dict[str, Any], flags: int, tools: Tools) -> str:
    """One docstring's examples in a copy of its module's names; returns the message of the first failure or ''."""
    import doctest
    import io

    module = importlib.import_module(spec["module"])
    test = doctest.DocTestParser().get_doctest(
        spec["text"], dict(vars(module)), spec["name"], os.path.join(os.getcwd(), spec["path"]), spec["line"]
    )
    if not test.examples:
        return "no examples"
    failures: list[str] = []

    class Runner(doctest.DocTestRunner):
        def report_failure(self, out: Any, test: Any, example: Any, got: str) -> None:
            failures.append(
                f"{example.source.strip()}\n  expected {example.want.strip()[:500]}\n  got      {got.strip()[:500]}"
            )

        def report_unexpected_exception(self, out: Any, test: Any, example: Any, exc_info: Any) -> None:
            if isinstance(exc_info[1], TestTimeout):
                raise exc_info[1]
            failures.append(f"{example.source.strip()}\n{tools.explain(exc_info[1])}")

    runner = Runner(verbose=False, optionflags=flags)
    runner.run(test, out=io.StringIO().write, clear_globs=True)
    if not failures and not any(example.options.get(doctest.SKIP) is not True for example in test.examples):
        return "every example is skipped"
    return failures[0] if failures else ""


def run_doctests(specs: list[dict[str, Any]], flag_names: list[str], tools: Tools) -> None:
    import doctest

    flags = 0
    for name in flag_names:
        flags |= doctest.OPTIONFLAGS_BY_NAME.get(name, 0)
    for spec in specs:
        if tools.over():
            return
        started = time.monotonic()
        tools.tracer.start()
        try:
            tools.alarm.start()
            message = run_doctest(spec, flags, tools)
        except BaseException as error:
            message = tools.explain(error)
        finally:
            tools.alarm.stop()
        tools.reporter.test(spec["id"], not message, message, time.monotonic() - started, tools.tracer.stop())


class Plugin:
    """The judge's eyes in pytest: a test passes when its call passed and no part of it failed, skipped or was an xfail."""

    def __init__(self, wanted: list[str] | None, tools: Tools) -> None:
        self._wanted = None if wanted is None else set(wanted)
        self._tools = tools
        self.broken: list[str] = []
        self._session: Any = None

    def pytest_sessionstart(self, session: Any) -> None:
        self._session = session

    def pytest_plugin_registered(self, plugin: object) -> None:
        self._tools.guard.look_at_plugin(plugin)

    def pytest_collection_finish(self) -> None:
        self._tools.guard.look()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self._wanted is not None:
            items[:] = [item for item in items if "pytest:" + item.nodeid in self._wanted]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.broken.append(f"{report.nodeid}: {str(report.longrepr)[-MESSAGE_CHARACTERS + 200 :]}")

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self._called, self._good, self._message = False, True, ""
        self._started = time.monotonic()
        self._entered: list[int] = []
        if self._tools.over():
            self._session.shouldstop = "the suite's time is up"
        self._tools.alarm.start()
        self._tools.tracer.start()

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.when == "call" or call.excinfo is not None:
            self._entered = sorted({*self._entered, *self._tools.tracer.stop()})
        if call.excinfo is not None and not self._message:
            self._message = self._tools.explain(call.excinfo.value)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed" or hasattr(report, "wasxfail"):
            self._good = False
            self._message = self._message or f"{report.outcome} in {report.when}"
        elif report.when == "call":
            self._called = True

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self._tools.alarm.stop()
        passed = self._good and self._called
        message = "" if passed else self._message or "not run"
        seconds = time.monotonic() - self._started
        self._tools.reporter.test("pytest:" + nodeid, passed, message, seconds, self._entered)
        self._tools.guard.look_at_code()


def run_pytest(pytest: Any, request: dict[str, Any], tools: Tools) -> list[str]:
    plugin = Plugin(request["wanted"], tools)
    arguments = ["--rootdir=.", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "required_plugins=", "--assert=plain"]
    arguments += ["-q", "--no-header", "--tb=no", "--capture=no", "--continue-on-collection-errors"]
    try:
        status = int(pytest.main([*arguments, *request["args"], *request["files"]], plugins=[plugin]))
        if status not in (0, 1, 5):  # all passed, some failed, none found
            plugin.broken.append(f"pytest ended with status {status}, see its error output")
    except BaseException as error:
        plugin.broken.append(tools.explain(error))
    return plugin.broken


def compile_errors(paths: list[str]) -> str:
    """What does not compile among the answer's files: a quick end before the tests are loaded."""
    for path in paths:
        try:
            with open(path, encoding="utf-8", newline="") as file:
                compile(file.read(), path, "exec", dont_inherit=True)
        except BaseException as error:
            return f"{path} does not compile: {type(error).__name__}: {error}"[:MESSAGE_CHARACTERS]
    return ""


class Tools:
    def __init__(self, request: dict[str, Any], reporter: Reporter, folder: str, guard: Guard) -> None:
        self.reporter, self.guard = reporter, guard
        self.tracer = Tracer(reporter, folder, request["trace"])
        self.alarm = Alarm(request["test_seconds"])
        self.explain = Explainer(folder)
        limit, started, now = request["suite_seconds"], time.monotonic(), time.monotonic
        self.over = lambda: limit is not None and now() - started > limit


def beside(name: str) -> Any:
    """A module that lies beside this script, under no name that a repository could mean."""
    from importlib import util

    spec = util.spec_from_file_location(f"codemill {name}", os.path.join(os.path.dirname(__file__), f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def enter(request: dict[str, Any], folder: str) -> Any:
    """Put the repository and its environment on the import path; pytest, or None where it is not needed."""
    sys.path += request["paths"]
    # The harness loads what it needs before anything of the repository can stand in for it.
    if request["doctests"]:
        importlib.import_module("doctest")
    if request["trace"]:
        importlib.import_module("threading")
    pytest = importlib.import_module("pytest") if request["pytest"] is not None else None
    roots = [folder if root == "." else os.path.join(folder, root) for root in request["roots"]]
    sys.path[:0] = roots
    # For tests that start Python themselves; the working folder must stay free of compiled files.
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *request["paths"]])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    return pytest


def run_suite(pytest: Any, request: dict[str, Any], tools: Tools) -> list[str]:
    """Every test of the request; what could not be collected."""
    run_doctests(request["doctests"], request["doctest_flags"], tools)
    tools.guard.look()
    broken = run_pytest(pytest, request["pytest"], tools) if pytest is not None else []
    tools.guard.look(final=True)
    try:  # noqa: SIM105 (no import just for this)
        sys.stdout.flush()
    except BaseException:  # a test may have closed it
        pass
    return broken


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    folder = os.getcwd()
    reporter = Reporter(request.pop("nonce"))
    pytest = enter(request, folder)
    answered, tests = bool(request["compile"]), request["pytest"] is not None
    guard = beside("integrity").Guard(request["control"], watched=answered, with_pytest=tests)
    tools = Tools(request, reporter, folder, guard)
    leave = os._exit
    reporter.send(ready=True)
    problem = compile_errors(request["compile"])
    broken: list[str] = []
    if not problem:
        broken = run_suite(pytest, request, tools)
        problem = guard.problem
    reporter.end(problem, broken)
    leave(0)


if __name__ == "__main__":
    main()
