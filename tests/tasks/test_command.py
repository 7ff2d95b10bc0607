"""Answers verified by commands: programs with their tests behind them, and files beside others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.errors import InputError
from codemill.sandbox import Sandbox
from codemill.tasks.verifiers import verifier_for
from language_support import share_go_library, toolchain_or_skip

# The answer is the body of a function that doubles; the suffix tests it, in the manner of each language.
DOUBLE = {
    "python": ("def double(n):\n", "    return {} * n\n", "\nassert double(4) == 8\n"),
    "javascript": ("function double(n) {\n", "  return {} * n;\n}\n", "require('assert').equal(double(4), 8);\n"),
    "typescript": (
        "function double(n: number): number {\n",
        "  return {} * n;\n}\n",
        "declare var require: any;\nrequire('assert').equal(double(4), 8);\n",
    ),
    "bash": ("double() {\n", "  echo $(({} * $1))\n}\n", '[ "$(double 4)" = 8 ]\n'),
    "c": (
        "#include <assert.h>\nint twice(int n) {\n",
        "  return {} * n;\n}\n",
        "int main(void) { assert(twice(4) == 8); return 0; }\n",
    ),
    "c++": (
        "#include <cassert>\nint twice(int n) {\n",
        "  return {} * n;\n}\n",
        "int main() { assert(twice(4) == 8); }\n",
    ),
    "java": (
        "class Problem {\n  static int twice(int n) {\n",
        "    return {} * n;\n  }\n",
        "  public static void main(String[] a) {\n    if (twice(4) != 8) throw new AssertionError();\n  }\n}\n",
    ),
    "go": (
        "package main\n\nfunc twice(n int) int {\n",
        "\treturn {} * n\n}\n",
        '\nfunc main() {\n\tif twice(4) != 8 {\n\t\tpanic("wrong")\n\t}\n}\n',
    ),
    "rust": ("fn twice(n: i32) -> i32 {\n", "    {} * n\n}\n", "fn main() { assert_eq!(twice(4), 8); }\n"),
}


@pytest.fixture(scope="module", autouse=True)
def _go_library(cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CODEMILL_CACHE")
        share_go_library(cache)


def judged(
    text: str, sandbox: Sandbox, folder: Path = Path(), *, prefix: str = "", suffix: str = "", **spec: object
) -> Verdict:
    asked = Task(id="t", prefix=prefix, suffix=suffix, verifier={"kind": "command", "run": [{}], **spec})
    answer = Answer(task_id="t", completion=text)
    return asyncio.run(verifier_for(asked, folder).verify(asked, answer, sandbox))


@pytest.mark.parametrize("language", DOUBLE)
def test_a_program_with_its_tests_behind_it_runs_in_every_language(language: str, sandbox: Sandbox) -> None:
    toolchain_or_skip(language)
    prefix, body, suffix = DOUBLE[language]
    right = judged(body.replace("{}", "2"), sandbox, prefix=prefix, suffix=suffix, language=language)
    assert (right.status, right.score, [test.id for test in right.tests]) == (Status.PASSED, 1.0, ["run 1"]), right
    assert set(right.isolation) == set(sandbox.isolation)
    wrong = judged(body.replace("{}", "3"), sandbox, prefix=prefix, suffix=suffix, language=language)
    assert wrong.status in (Status.FAILED, Status.CRASHED), wrong  # an assertion in C aborts
    assert wrong.score == 0.0
    empty = judged("", sandbox, prefix=prefix, suffix=suffix, language=language)
    assert not empty.passed
    assert empty.scorable


def test_runs_have_arguments_input_and_expected_output(sandbox: Sandbox) -> None:
    text = "import sys; print(*sys.argv[1:], input()); raise SystemExit(int(sys.argv[1]))"
    runs = [
        {"name": "zero", "argv": ["0", "x"], "stdin": "in\n", "stdout": "0 x in\n"},
        {"name": "three", "argv": ["3"], "stdin": "in\n", "stdout": "3 in", "exit_code": 3},
        {"argv": ["4"], "stdin": "in\n", "exit_code": None},
        {"argv": ["0"], "stdin": "in\n", "stdout": "other\n"},
        {"argv": ["5"], "stdin": "in\n"},
    ]
    verdict = judged(text, sandbox, language="python", run=runs)
    assert verdict.status is Status.FAILED
    assert [(test.id, test.passed) for test in verdict.tests] == [
        ("zero", True),
        ("three", True),
        ("run 3", True),
        ("run 4", False),
        ("run 5", False),
    ]
    assert verdict.tests[3].message == 'line 1: expected "other", got "0 in"'
    assert verdict.tests[4].message == "exit code 5, expected 0"
    assert verdict.reason.startswith("2 of 5 runs failed; run 4: line 1")


def test_files_lie_beside_the_program_in_build_and_runs(sandbox: Sandbox) -> None:
    toolchain_or_skip("c")
    text = '#include "two.h"\n#include <stdio.h>\nint main(void) { char c = 0; FILE *f = fopen("data", "r");\n'
    text += "  if (f) c = fgetc(f); return c == 'x' ? TWO : 9; }\n"
    files = {"two.h": "#define TWO 2\n", "data": "x"}
    assert judged(text, sandbox, language="c", files=files, run=[{"exit_code": 2}]).passed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small project: the answer is `add.sh`, a build makes `made`, a test script looks at both."""
    project = tmp_path / "workspaces" / "project"
    (project / "tests").mkdir(parents=True)
    (project / "build.sh").write_text("#!/bin/sh\nset -e\n. ./add.sh\necho $(add 1 2) > made\n")
    (project / "build.sh").chmod(0o755)
    (project / "tests" / "check.sh").write_text(
        '#!/bin/sh\n. ./add.sh\n[ "$(add 20 22)" = 42 ] && [ "$(cat made)" = 3 ] && cat && exit 0\necho wrong sum >&2\nexit 1\n'
    )
    (project / "tests" / "check.sh").chmod(0o755)
    return tmp_path


PROJECT = {
    "workspace": "project",
    "path": "add.sh",
    "build": [["./build.sh"]],
    "run": [{"name": "check", "argv": ["./tests/check.sh"], "stdin": "proof {nonce}", "stdout": "proof {nonce}"}],
}
RIGHT = "add() { echo $(($1 + $2)); }\n"


def test_a_project_is_built_and_run_from_its_pristine_files(sandbox: Sandbox, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verdict = judged(RIGHT, sandbox, folder, **PROJECT)
    assert verdict.status is Status.PASSED, verdict
    wrong = judged("add() { echo $(($1 - $2)); }\n", sandbox, folder, **PROJECT)
    assert wrong.status is Status.FAILED
    assert wrong.tests[0].message == "exit code 1, expected 0\nwrong sum"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


CHEATS = {
    "rewrites the test": "echo 'cat; exit 0' > tests/check.sh\n",
    "puts a folder in its place": "rm -r tests; mkdir -p tests/check.sh\n",
    "puts a link in its place": "rm tests/check.sh; ln -s /bin/cat tests/check.sh\n",
    "takes the tests away": "rm -r tests\n",
    "rewrites itself": "echo 'add() { echo 42; }' > add.sh\n",
}


@pytest.mark.parametrize("vandalism", CHEATS.values(), ids=CHEATS)
def test_a_build_cannot_change_what_was_there(vandalism: str, sandbox: Sandbox, folder: Path) -> None:
    verdict = judged(f"{vandalism}add() {{ echo 3; }}\n", sandbox, folder, **PROJECT)
    assert verdict.status is Status.FAILED, verdict
    honest = judged(f"if [ ! -e made ]; then {vandalism.strip()}; fi\n{RIGHT}", sandbox, folder, **PROJECT)
    assert honest.scorable


def test_a_run_that_ends_early_has_not_shown_the_proof(sandbox: Sandbox, folder: Path) -> None:
    verdict = judged("if [ -e made ]; then exit 0; fi\nadd() { echo 3; }\n", sandbox, folder, **PROJECT)
    assert verdict.status is Status.FAILED
    assert "got the end of the output" in verdict.tests[0].message


def test_the_nonce_differs_from_run_to_run(sandbox: Sandbox) -> None:
    text = "import sys; print(sys.argv[1], input())"
    run = {"argv": ["{nonce}"], "stdin": "{nonce}\n", "stdout": "{nonce} {nonce}\n"}
    assert judged(text, sandbox, language="python", run=[run, {**run, "name": "again"}]).passed
    seen = [judged(text, sandbox, language="python", run=[{**run, "stdout": None}]).stdout for _ in range(2)]
    assert seen[0] != seen[1]
    assert len(seen[0].split()[0]) == 32


def test_a_run_starts_afresh(sandbox: Sandbox) -> None:
    command = ["sh", "-c", "[ ! -e left ] && : > left"]
    verdict = judged("x", sandbox, path="answer", run=[{"argv": command}, {"argv": command, "name": "2"}])
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("build", "status", "words"),
    [
        ([["sh", "-c", "echo broken >&2; exit 2"]], Status.FAILED, "build failed: broken"),
        ([["sh", "-c", "sleep 60"]], Status.TIMEOUT, "build: stopped after"),
        ([["./not-made"]], Status.FAILED, "build failed"),
        ([["no-such-tool"]], Status.HARNESS_ERROR, "build: no-such-tool: not inside the sandbox"),
        ([["true"], ["sh", "-c", "kill -9 $$"]], Status.FAILED, "build failed"),
    ],
    ids=["exit", "sleep", "product", "tool", "signal"],
)
def test_a_build_that_gives_nothing_says_why(
    build: list[list[str]], status: Status, words: str, sandbox: Sandbox
) -> None:
    verdict = judged("x", sandbox, path="answer", build=build, build_seconds=0.3, run=[{"argv": ["true"]}])
    assert verdict.status is status, verdict
    assert verdict.reason.startswith(words)
    assert [(test.id, test.passed) for test in verdict.tests] == [("build", False), ("run 1", False)]


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["no-such-tool"], Status.HARNESS_ERROR),
        (["./not-made"], Status.FAILED),
        (["./answer"], Status.FAILED),
        (["sleep", "60"], Status.TIMEOUT),
        (["sh", "-c", "kill -SEGV $$"], Status.CRASHED),
    ],
    ids=["tool", "product", "no-program", "sleep", "signal"],
)
def test_a_run_that_goes_wrong_has_its_status(argv: list[str], status: Status, sandbox: Sandbox) -> None:
    runs = [{"argv": ["true"]}, {"argv": argv, "seconds": 0.5, "name": "second"}]
    verdict = judged("x", sandbox, path="answer", run=runs)
    assert verdict.status is status, verdict
    assert [test.passed for test in verdict.tests] == [True, False]


def test_a_missing_workspace_or_tool_leaves_the_answer_unjudged(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = judged(RIGHT, sandbox, tmp_path, **PROJECT)
    assert missing.status is Status.HARNESS_ERROR
    assert "build the tasks again" in missing.reason
    monkeypatch.setenv("PATH", str(tmp_path))
    verdict = judged("x", sandbox, path="a", toolchains=["java"], run=[{"argv": ["java"]}])
    assert verdict.status is Status.HARNESS_ERROR
    assert "no javac on PATH" in verdict.reason


@pytest.mark.parametrize(
    ("language", "text", "build", "run"),
    [
        (
            "java",
            'class A { public static void main(String[] a) { System.out.print("ok"); } }',
            ["javac", "A.java"],
            ["java", "A"],
        ),
        ("rust", 'fn main() { print!("ok") }', ["rustc", "-C", "link-arg=-fuse-ld=bfd", "A.rs"], ["./A"]),
        ("javascript", "process.stdout.write('ok')", ["true"], ["node", "A.js"]),
        ("python", "print('ok', end='')", ["python3", "-m", "py_compile", "A.py"], ["python3", "A.py"]),
        ("c", '#include <stdio.h>\nint main(void) { printf("ok"); }', ["gcc", "-o", "A", "A.c"], ["./A"]),
    ],
    ids=["java", "rust", "javascript", "python", "c"],
)
def test_commands_find_the_tools_of_the_toolchains(
    language: str, text: str, build: list[str], run: list[str], sandbox: Sandbox
) -> None:
    toolchain_or_skip(language)
    path = "A." + {"java": "java", "rust": "rs", "javascript": "js", "python": "py", "c": "c"}[language]
    runs = [{"argv": run, "stdout": "ok"}]
    verdict = judged(text, sandbox, path=path, toolchains=[language], build=[build], run=runs)
    assert verdict.passed, verdict


BAD = {
    "neither form": ({"run": [{"argv": ["true"]}]}, "needs a `path`"),
    "both forms": ({"language": "c", "path": "x"}, "stands alone"),
    "no command": ({"path": "x"}, "every step needs an argv"),
    "no runs": ({"language": "c", "run": []}, "'run'"),
    "outside": ({"path": "../x", "run": [{"argv": ["true"]}]}, "unsafe path"),
    "files outside": ({"language": "c", "files": {"/etc/x": ""}}, "unsafe path"),
    "language": ({"language": "pearl"}, "cannot be run"),
    "names": ({"language": "c", "run": [{}, {"name": "run 1"}]}, "same name"),
    "workspace": ({"path": "x", "workspace": "../up", "run": [{"argv": ["true"]}]}, "unsafe path"),
    "unknown": ({"language": "c", "shell": True}, "shell"),
}


@pytest.mark.parametrize(("spec", "words"), BAD.values(), ids=BAD)
def test_malformed_descriptions_are_refused(spec: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        verifier_for(Task(id="t", verifier={"kind": "command", "run": [{}], **spec}), Path())
