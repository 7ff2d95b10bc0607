"""Answers inside a repository: what passes, what fails, and cheating."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from tasks_support import repository_files, write_files

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.errors import InputError
from codemill.sandbox import Sandbox
from codemill.tasks.environment import Environment
from codemill.tasks.functions import SourceFile, find_functions
from codemill.tasks.verifiers import verifier_for, verify_all

PATH = "src/shapes/words.py"
SQUEEZE = (
    "pytest:tests/test_words.py::test_squeeze[a  b-9-a b]",
    "pytest:tests/test_words.py::test_squeeze[abc def-5-abc ~]",
)
LONGEST = (f"doctest:{PATH}::longest", "pytest:tests/test_words.py::test_longest")
BALANCED = ("pytest:tests/test_words.py::test_balanced",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    write_files(made / "workspaces" / "shapes", repository_files("src"))
    return made


class Asker:
    """Makes body tasks of the repository and judges answers to them."""

    def __init__(self, folder: Path, environment: Environment, sandbox: Sandbox) -> None:
        self.folder, self._environment, self.sandbox = folder, environment, sandbox

    def task(self, name: str, tests: tuple[str, ...], seconds: float = 5.0, **spec: object) -> Task:
        path = str(spec.get("path", PATH))
        text = (self.folder / "workspaces/shapes" / path).read_text()
        body = next((f.body for f in find_functions(SourceFile(text, path)) if f.qualname == name), None)
        assert body is not None
        fixed = {"kind": "workspace", "workspace": "shapes", "environment": self._environment.id, "path": path}
        place = {"start": body.start, "end": body.end, "tests": list(tests), "seconds": seconds}
        gold, prefix, suffix = text[body.start : body.end], text[: body.start], text[body.end :]
        return Task(id=name, verifier={**fixed, **place, **spec}, prefix=prefix, suffix=suffix, gold=gold)

    def verdicts(self, task: Task, answers: Mapping[str, str]) -> dict[str, Verdict]:
        pairs = [(task, Answer(task_id=task.id, completion=text, sample=i)) for i, text in enumerate(answers.values())]
        found = {verdict.sample: verdict for verdict in verify_all(pairs, self.sandbox, self.folder)}
        return {name: found[i] for i, name in enumerate(answers)}


@pytest.fixture(scope="module")
def ask(folder: Path, environment: Environment, sandbox: Sandbox) -> Asker:
    return Asker(folder, environment, sandbox)


# Each is a wrong body of `longest`, or a body with something wrong behind it, that tries to pass all the same.
CHEATS = {
    "exits": "    import os\n    os._exit(0)",
    "exits on import": "    return words[0]\nimport os\nos._exit(0)",
    "raises SystemExit": "    raise SystemExit(0)",
    "SystemExit on import": "    return words[0]\nraise SystemExit(0)",
    "skips": "    import pytest\n    pytest.skip('no')",
    "skips the module": "    return words[0]\nimport pytest\npytest.skip('no', allow_module_level=True)",
    "expects to fail": "    import pytest\n    pytest.xfail('no')",
    "ends pytest": "    import pytest\n    pytest.exit('fine', returncode=0)",
    "prints": "    print('1 passed', 'OK')\n    return words[0]",
    "own docstring": "    return words[0]\nlongest.__doc__ = '>>> 1\\n1\\n'",
    "skip flag for doctest": "    return words[0]\nimport doctest\ndoctest.DocTestRunner.run = lambda *a, **k: None\n"
    "doctest.OutputChecker.check_output = lambda *a: True",
    "writes conftest": "    return words[0]\nopen('tests/conftest.py', 'a').write(\n"
    "    'import pytest\\n@pytest.hookimpl(tryfirst=True)\\ndef pytest_pyfunc_call(pyfuncitem): return True\\n')",
    "new conftest": "    return words[0]\nopen('conftest.py', 'w').write(\n"
    "    'import pytest\\n@pytest.hookimpl(tryfirst=True)\\ndef pytest_pyfunc_call(pyfuncitem): return True\\n')",
    "rewrites the test": "    return words[0]\nopen('tests/test_words.py', 'w').write('def test_longest(): pass\\n')",
    "pytest.ini": "    return words[0]\nopen('pytest.ini', 'w').write('[pytest]\\naddopts = --collect-only\\n')",
    "sitecustomize": "    return words[0]\nopen('sitecustomize.py', 'w').write('import os; os._exit(0)\\n')",
    "own report": '    import os\n    os.write(3, b\'{"test": "x", "passed": true}\\n{"end": true}\\n\')\n    os._exit(0)',
    "atexit": "    return words[0]\nimport atexit, os\natexit.register(os._exit, 0)",
    "patches os.write": "    return words[0]\nimport os\nold = os.write\n"
    "os.write = lambda fd, data: old(fd, data.replace(b'false', b'true'))",
    "patches builtins": "    return words[0]\nimport builtins\nbuiltins.AssertionError = Exception",
    "conftest in its own place": "    return words[0]\ndef pytest_pyfunc_call(pyfuncitem): return True",
}


def test_the_original_passes_and_cheats_do_not(ask: Asker) -> None:
    task = ask.task("longest", LONGEST)
    found = ask.verdicts(task, {"gold": task.gold or "", **CHEATS})
    assert found.pop("gold").passed
    ended = {name: (v.status, v.reason) for name, v in found.items()}
    assert not {n: e for n, e in ended.items() if e[0] in (Status.PASSED, Status.HARNESS_ERROR)}


def test_line_breaks_behind_the_answer_do_not_matter(ask: Asker) -> None:
    task = ask.task("longest", LONGEST)
    gold = task.gold or ""
    assert not gold.endswith("\n")
    found = ask.verdicts(task, {"none": gold, "one": gold + "\n", "more": gold + "\n\n\n", "comment": gold + "  # end"})
    assert {name: v.status for name, v in found.items()} == dict.fromkeys(found, Status.PASSED)


def test_every_ending_has_its_status(ask: Asker) -> None:
    wanted = {
        "    return text\n": Status.FAILED,
        "": Status.FAILED,
        "    return (": Status.FAILED,
        "    return '\ud800'": Status.FAILED,
        "    return '\0'": Status.FAILED,
        "    while True: pass": Status.TIMEOUT,
        "    import ctypes; ctypes.string_at(0)": Status.CRASHED,
        "    import nothing": Status.FAILED,
    }
    found = ask.verdicts(ask.task("squeeze", SQUEEZE, seconds=0.5), {text: text for text in wanted})
    assert {text: v.status for text, v in found.items()} == wanted, {t: v.reason for t, v in found.items()}


def test_what_is_told_about_a_failure(ask: Asker) -> None:
    verdict = ask.verdicts(ask.task("longest", LONGEST), {"": "    print('hm')\n    return 'dd'"})[""]
    doctest, pytest_ = verdict.tests
    assert verdict.reason.startswith("2 of 2 tests failed; doctest:src/shapes/words.py::longest")
    assert "expected 'ccc'" in doctest.message
    assert "'dd'" in doctest.message
    assert "got      'dd'" in pytest_.message
    assert "expected 'bb'" in pytest_.message
    assert "tests/test_words.py:17 in test_longest" in pytest_.message
    assert "hm\n" in verdict.stdout
    assert all(len(test.message.encode()) <= 2000 for test in verdict.tests)
    assert verdict.isolation["network"] != "nothing"


@pytest.mark.parametrize("name", ["test_skipped", "test_expected_to_fail", "test_not_there", "test_fails"])
def test_only_a_test_that_reports_passed_counts(name: str, ask: Asker) -> None:
    task = ask.task("squeeze", (*SQUEEZE, f"pytest:tests/test_words.py::{name}"))
    verdict = ask.verdicts(task, {"gold": task.gold or ""})["gold"]
    assert verdict.status is Status.FAILED
    assert [test.passed for test in verdict.tests] == [True, True, False]


def test_fixtures_methods_and_unittest_classes(ask: Asker) -> None:
    tests = ("pytest:tests/test_stack.py::StackTests::test_pop", *BALANCED)
    task = ask.task("Stack.pop", tests, path="src/shapes/stack.py")
    found = ask.verdicts(task, {"gold": task.gold or "", "wrong": "        return None"})
    assert {name: v.passed for name, v in found.items()} == {"gold": True, "wrong": False}


@pytest.mark.parametrize(
    "change", [{"workspace": "gone"}, {"environment": "gone"}, {"path": "tests/test_words.py", "end": 9}]
)
def test_what_is_missing_on_our_side_is_a_harness_error(change: dict[str, object], ask: Asker) -> None:
    task = ask.task("longest", LONGEST)
    broken = dataclasses.replace(task, verifier={**task.verifier, **change})
    verdict = ask.verdicts(broken, {"gold": task.gold or ""})["gold"]
    assert (verdict.status, verdict.scorable) == (Status.HARNESS_ERROR, False)


@pytest.mark.parametrize("change", [{"workspace": "../x"}, {"path": "/etc/passwd"}, {"tests": []}, {"start": -1}])
def test_a_hostile_description_is_an_input_error(change: dict[str, object], ask: Asker) -> None:
    task = ask.task("longest", LONGEST)
    with pytest.raises(InputError):
        verifier_for(dataclasses.replace(task, verifier={**task.verifier, **change}), ask.folder)


def test_the_pristine_repository_stays_as_it_is(ask: Asker) -> None:
    root = ask.folder / "workspaces/shapes"
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    found = ask.verdicts(
        ask.task("longest", LONGEST), {"writes": "    open('new.txt', 'w').write('x')\n    return words[0]"}
    )
    assert not found["writes"].passed
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert not os.path.exists("new.txt")
