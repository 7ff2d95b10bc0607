"""Which tests of a repository can be used, and what they enter; repositories that misbehave."""

from __future__ import annotations

from pathlib import Path

import pytest
from tasks_support import repository_files, write_files

from codemill.sandbox import Sandbox
from codemill.tasks.discover import MAX_TESTS, Discovery, Subject, discover
from codemill.tasks.environment import Environment
from codemill.tasks.functions import SourceFile, find_functions


class Finder:
    def __init__(self, folder: Path, environment: Environment, sandbox: Sandbox) -> None:
        self.folder, self._environment, self._sandbox = folder, environment, sandbox

    def __call__(self, files: dict[str, str], *, test_seconds: float = 2.0, suite_seconds: float = 20.0) -> Discovery:
        write_files(self.folder, files)
        subject = Subject(self.folder, self._environment.folder, str(self.folder))
        ((_, found),) = discover([subject], self._sandbox, test_seconds=test_seconds, suite_seconds=suite_seconds)
        return found


@pytest.fixture
def find(tmp_path: Path, environment: Environment, sandbox: Sandbox) -> Finder:
    return Finder(tmp_path / "repository", environment, sandbox)


@pytest.mark.parametrize("layout", ["src", "flat"])
def test_both_layouts(layout: str, find: Finder) -> None:
    top = "src/" if layout == "src" else ""
    files = repository_files(layout)
    found = find(files)
    assert not found.skipped
    assert dict(found.unused) == {"not passed": 3}  # skipped, xfail, failing
    names = {"balanced", "longest", "shouted", "squeeze[a  b-9-a b]", "squeeze[abc def-5-abc ~]"}
    modules = {"words": ["longest"], "numbers": ["clamp", "digits", "total"], "stack": ["Stack.push"]}
    assert set(found.tests) == {
        *(f"pytest:tests/test_words.py::test_{name}" for name in names),
        *(f"pytest:tests/test_stack.py::StackTests::test_{name}" for name in ("high", "pop")),
        *(f"doctest:{top}shapes/{module}.py::{name}" for module, own in modules.items() for name in own),
    }
    tests = {}
    for name in ("words", "stack"):
        path = f"{top}shapes/{name}.py"
        for function in find_functions(SourceFile(files[path], path)):
            tests[function.qualname] = found.tests_for(path, function)
    assert tests["longest"] == (f"doctest:{top}shapes/words.py::longest", "pytest:tests/test_words.py::test_longest")
    assert tests["balanced"] == ("pytest:tests/test_words.py::test_balanced",)
    assert tests["untested"] == ()
    assert "pytest:tests/test_words.py::test_balanced" in tests["Stack.pop"]  # entered through another module
    assert f"doctest:{top}shapes/stack.py::Stack.push" not in tests["Stack.pop"]


def test_at_most_so_many_tests_and_the_named_ones_first(find: Finder) -> None:
    bodies = "".join(f"def test_{i}():\n    assert f(1) == 2\n" for i in range(20))
    files = {"m.py": "def f(x):\n    y = x + 1\n    return y\n", "test_m.py": f"from m import f\n{bodies}"}
    files["test_m.py"] += "def test_f():\n    assert f(2) == 3\n"
    found = find(files)
    chosen = found.tests_for("m.py", find_functions(SourceFile(files["m.py"], "m.py"))[0])
    assert len(chosen) == MAX_TESTS
    assert chosen[0] == "pytest:test_m.py::test_f"


def test_flaky_tests_are_not_used(find: Finder) -> None:
    flaky = "import os, time\n\ndef test_good():\n    pass\n\ndef test_flaky():\n    import sys\n    assert sys.getprofile()\n"
    found = find({"m.py": "", "test_m.py": flaky})
    assert set(found.tests) == {"pytest:test_m.py::test_good"}
    assert dict(found.unused) == {"flaky": 1}


def test_a_hanging_test_costs_only_itself(find: Finder) -> None:
    hanging = (
        "import time\ndef test_hangs():\n    time.sleep(60)\ndef test_swallows():\n    try:\n        time.sleep(60)\n"
    )
    hanging += "    except Exception:\n        time.sleep(60)\ndef test_good():\n    pass\n"
    found = find({"m.py": "", "test_m.py": hanging}, test_seconds=0.5)
    assert (set(found.tests), dict(found.unused)) == ({"pytest:test_m.py::test_good"}, {"not passed": 2})


SKIPPED = {
    "no tests": ({"m.py": "x = 1\n"}, "it has no tests and no doctests"),
    "hangs on import": ({"test_m.py": "while True: pass\n"}, "the run of its tests ended early (timeout"),
    "does not import": ({"test_m.py": "import nothing_of_the_kind\n"}, "No module named 'nothing_of_the_kind'"),
    "broken conftest": ({"conftest.py": "1/0\n", "test_m.py": "def test_a(): pass\n"}, "ZeroDivisionError"),
    "ends the process": ({"test_m.py": "import os\nos._exit(0)\n"}, "the run of its tests ended early (exit code 0"),
    "only fails": ({"test_m.py": "def test_a():\n    assert 1 == 2\n"}, "no test passes twice (1 not passed)"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_repositories_that_cannot_be_used_say_why(name: str, find: Finder) -> None:
    files, reason = SKIPPED[name]
    found = find({"m.py": "", **files}, suite_seconds=3.0)
    assert reason in found.skipped
    assert not found.tests


def test_gigabytes_of_output_harm_nobody(find: Finder) -> None:
    loud = (
        "import os\ndef test_loud():\n    while True:\n        os.write(1, b'x' * 65536)\ndef test_good():\n    pass\n"
    )
    found = find({"m.py": "", "test_m.py": loud}, test_seconds=1.0)
    assert set(found.tests) == {"pytest:test_m.py::test_good"}


def test_what_was_found_is_kept(find: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    files = repository_files("flat")
    first = find(files)
    monkeypatch.setattr(Sandbox, "run_all", lambda self, jobs: iter(list(jobs) and 1 / 0))  # type: ignore[func-returns-value]
    assert find(files) == first
