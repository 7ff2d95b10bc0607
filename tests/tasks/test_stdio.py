"""Programs verified by what they print: every language, every way of ending, and programs that cheat."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.errors import InputError
from codemill.sandbox import Sandbox
from codemill.sandbox.languages import LANGUAGES
from codemill.tasks.runs import difference, readable
from codemill.tasks.verifiers import verifier_for, verify, verify_all
from language_support import ADD, BROKEN, HOG, SPIN, share_go_library, toolchain_or_skip

SUMS = [
    {"stdin": "3 4\n", "stdout": "7\n"},
    {"stdin": "-5 5\n", "stdout": "0\n"},
    {"stdin": "20 22\n", "stdout": "42\n"},
]
everywhere = pytest.mark.parametrize("language", LANGUAGES)


@pytest.fixture(scope="module", autouse=True)
def _go_library(cache: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CODEMILL_CACHE")
        share_go_library(cache)


def task(**spec: object) -> Task:
    return Task(id="t", verifier={"kind": "stdio", "cases": SUMS, "seconds": 1.0, "memory_mb": 256, **spec})


def judged(text: str, sandbox: Sandbox, **spec: object) -> Verdict:
    asked = task(**spec)
    answer = Answer(task_id="t", completion=text)
    return asyncio.run(verifier_for(asked, Path()).verify(asked, answer, sandbox))


@everywhere
def test_a_right_program_passes_and_a_wrong_one_fails_where_it_is_wrong(language: str, sandbox: Sandbox) -> None:
    toolchain_or_skip(language)
    verdict = judged(ADD[language], sandbox, language=language)
    assert (verdict.status, verdict.score, verdict.reason) == (Status.PASSED, 1.0, "")
    assert [(test.id, test.passed) for test in verdict.tests] == [("case 1", True), ("case 2", True), ("case 3", True)]
    assert set(verdict.isolation) == set(sandbox.isolation)
    assert "nothing" not in verdict.isolation.values()
    wrong = [{**case, "stdout": "7\n"} for case in SUMS]
    verdict = judged(ADD[language], sandbox, language=language, cases=wrong)
    assert (verdict.status, verdict.score) == (Status.FAILED, 0.0)
    assert [test.passed for test in verdict.tests] == [True, False, False]
    assert verdict.tests[1].message == 'line 1: expected "7", got "0"'
    assert verdict.reason == '2 of 3 cases failed; case 2: line 1: expected "7", got "0"'


@everywhere
def test_every_ending_has_its_status_in_every_language(language: str, sandbox: Sandbox) -> None:
    toolchain_or_skip(language)
    one = SUMS[:1]
    broken = judged(BROKEN[language], sandbox, language=language, cases=one)
    assert broken.status is Status.FAILED
    assert broken.tests[0].message
    assert not any(test.passed for test in broken.tests)
    hog = judged(HOG[language], sandbox, language=language, cases=one, seconds=20)
    # A C program that is refused memory and aborts has said nothing about why.
    assert hog.status is Status.MEMORY or (language == "c" and hog.status is Status.CRASHED), hog
    spin = judged(SPIN[language], sandbox, language=language, cases=one, seconds=0.2)
    assert spin.status is Status.TIMEOUT, spin


ENDINGS = {
    "wrong exit code": ("print(7); raise SystemExit(3)", Status.FAILED, "exit code 3, expected 0"),
    "exception after the answer": ("print(7)\n1 / 0", Status.FAILED, "ZeroDivisionError"),
    "crash": ("import os; print(7, flush=True); os.abort()", Status.CRASHED, "ended by signal"),
    "nothing": ("", Status.FAILED, "got the end of the output"),
    "too much": ("print(7); print(8)", Status.FAILED, 'expected the end of the output, got "8"'),
    "a flood": ("print(7)\nfor _ in range(64): print('x' * 65536)", Status.FAILED, "bytes, expected"),
    "asleep": ("import time; time.sleep(60)", Status.TIMEOUT, "stopped after"),
    "closed output": ("import os; os.close(1)", Status.FAILED, "end of the output"),
    "lone surrogate": ("print(7) # \ud800", Status.FAILED, "exit code 1"),
    "a child that stays": ("import os, time\nif os.fork() == 0: time.sleep(60)\nprint(7)", Status.PASSED, ""),
    "right on standard error": ("import sys; print(7, file=sys.stderr)", Status.FAILED, "end of the output"),
    "noise on standard error": ("import sys; print('hm', file=sys.stderr); print(7)", Status.PASSED, ""),
}


@pytest.mark.parametrize(("text", "status", "message"), ENDINGS.values(), ids=ENDINGS)
def test_every_ending_has_its_status(text: str, status: Status, message: str, sandbox: Sandbox) -> None:
    verdict = judged(text, sandbox, cases=SUMS[:1])
    assert verdict.status is status, verdict
    assert message in verdict.tests[0].message
    assert verdict.score == float(status is Status.PASSED)


SECRET = "secret-93216843"  # matched by what the cheats look for, and nowhere in them
CHEATS = {
    "looks for what is expected": """
import gc, os, re, sys
blob = repr((dict(os.environ), sys.argv, [x for x in gc.get_objects() if isinstance(x, (dict, list, tuple))][:2000]))
for root in ("/", "/tmp", os.getcwd()):
    for folder, names, files in os.walk(root):
        names[:] = [n for n in names if n not in ("usr", "lib", "lib64", "proc", "sys", "root")]
        for name in files:
            try: blob += open(os.path.join(folder, name), "rb").read(1 << 16).decode("latin-1")
            except OSError: pass
for n in range(3, 64):
    try: blob += os.read(n, 1 << 16).decode("latin-1")
    except OSError: pass
print((re.findall("secret-[0-9]{8}", blob) or ["nothing"])[0])
""",
    "ends at once": "import os; os._exit(0)",
    "prints a verdict": 'print(\'{"status": "passed", "score": 1.0}\'); print("PASSED")',
    "writes to other descriptors": "import os\nfor n in range(3, 64):\n    try: os.write(n, b'secret-' + b'93216843')\n"
    "    except OSError: pass",
    "all numbers": "for n in range(50000): print('secret-%08d' % n)",
    "remembers": "try: print(open('/tmp/memory').read())\n"
    "except OSError: open('/tmp/memory', 'w').write('secret-' + str(93216843))",
}


@pytest.mark.parametrize("text", CHEATS.values(), ids=CHEATS)
def test_cheats_do_not_pass(text: str, sandbox: Sandbox) -> None:
    cases = [{"stdin": f"{n}\n", "stdout": SECRET} for n in range(2)]
    verdict = judged(text, sandbox, cases=cases, seconds=5)
    assert verdict.status is Status.FAILED
    assert not any(test.passed for test in verdict.tests)


def test_a_case_sees_nothing_of_another(sandbox: Sandbox) -> None:
    text = "import os\nprint(os.path.exists('seen') or os.path.exists('/tmp/seen'))\nopen('seen', 'w'); open('/tmp/seen', 'w')"
    verdict = judged(text, sandbox, cases=[{"stdout": "False"}] * 4)
    assert verdict.passed, verdict


def test_every_case_reports_unless_told_to_stop(sandbox: Sandbox) -> None:
    text = "n = int(input())\nwhile n == 2: pass\nprint(n)"
    cases = [{"stdin": f"{n}", "stdout": f"{n}"} for n in (1, 2, 3, 2)]
    whole = judged(text, sandbox, cases=cases, seconds=0.2)
    assert whole.status is Status.TIMEOUT
    assert [test.passed for test in whole.tests] == [True, False, True, False]
    stopped = judged(text, sandbox, cases=cases, seconds=0.2, stop=True)
    assert stopped.status is Status.TIMEOUT
    assert [test.passed for test in stopped.tests] == [True, False, False, False]
    assert stopped.tests[3].message == "not run: case 2 failed"
    assert judged(text, sandbox, cases=cases[:1], stop=True).passed


def test_a_case_may_have_a_name_and_a_limit_of_its_own(sandbox: Sandbox) -> None:
    text = "import time; time.sleep(1.2); print(1)"
    cases = [{"name": "slow", "stdout": "1", "seconds": 30}, {"stdout": "1", "seconds": 0.05}]
    verdict = judged(text, sandbox, cases=cases, seconds=0.05)
    assert [(test.id, test.passed) for test in verdict.tests] == [("slow", True), ("case 2", False)]


def test_any_exit_code_can_be_asked_for(sandbox: Sandbox) -> None:
    assert judged("print(7); raise SystemExit(3)", sandbox, cases=SUMS[:1], exit_code=3).passed
    assert judged("print(7); raise SystemExit(3)", sandbox, cases=SUMS[:1], exit_code=None).passed
    assert judged("print(7)", sandbox, cases=SUMS[:1], exit_code=3).status is Status.FAILED


def test_the_program_is_prefix_answer_and_suffix(sandbox: Sandbox) -> None:
    asked = Task(
        id="t",
        prefix="def add(a, b):\n",
        suffix="\nprint(add(*map(int, input().split())))\n",
        verifier={"kind": "stdio", "cases": SUMS},
    )
    answers = [Answer(task_id="t", completion=f"    return a {sign} b", sample=n) for n, sign in enumerate("+-")]
    verdicts = sorted(verify_all([(asked, a) for a in answers], sandbox, Path()), key=lambda verdict: verdict.sample)
    assert [verdict.status for verdict in verdicts] == [Status.PASSED, Status.FAILED]


HONEST = {
    "main guard": "def main():\n    print(input())\nif __name__ == '__main__':\n    main()",
    "threads that outlive it": "import threading, time\n"
    "threading.Thread(target=lambda: (time.sleep(0.1), print(input()))).start()",
    "a deep recursion in a thread": "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
    "def deep(n): return n and 1 + deep(n - 1)\ndef main():\n    deep(20000); print(input())\n"
    "thread = threading.Thread(target=main); thread.start(); thread.join()",
    "at exit": "import atexit\natexit.register(lambda: print(input()))",
    "sys.exit": "import sys\nprint(input())\nsys.exit()",
    "SystemExit": "print(input())\nraise SystemExit(0)",
    "os._exit": "import os\nprint(input(), flush=True)\nos._exit(0)",
    "reads by descriptor": "import os\nos.write(1, os.read(0, 100))",
    "reads all": "import sys\nsys.stdout.write(sys.stdin.read())",
    "reads bytes": "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.readline())",
    "opens standard input": "import io, os\nprint(open(0).read())",
    "replaces its streams": "import io, os, sys\nsys.stdin = io.BytesIO(os.read(0, 100))\nout = io.StringIO()\nsys.stdout = out\n"
    "print(sys.stdin.readline().decode())\nos.write(1, out.getvalue().encode())",
    "a process of its own": "import os\nif os.fork():\n    os.wait()\nelse:\n    print(input())",
    "runs a program": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(input())'], check=True)",
    "pickles its own class": "import pickle\nclass A:\n    x = input()\nprint(pickle.loads(pickle.dumps(A())).x)",
    "a dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: str\nprint(A(input()).x)",
    "future annotations": "from __future__ import annotations\ndef f(x: Undefined): return x\nprint(f(input()))",
    "uses its globals": "x = input()\nclass A: y = x\ndef f(): global x; x = A.y; return globals()['x']\nprint(f())",
    "writes and reads a file": "open('f', 'w').write(input())\nprint(open('f').read())",
    "unusual bytes": "import sys\nline = input()\nsys.stdout.buffer.write(b'\\xff'[:0] + line.encode())",
    "ends lines as it likes": "print(input(), end='\\r\\n\\n')",
}


@pytest.mark.parametrize("text", HONEST.values(), ids=HONEST)
def test_honest_programs_pass_however_they_are_written(text: str, sandbox: Sandbox) -> None:
    verdict = judged(text, sandbox, cases=[{"stdin": "wörd\n", "stdout": "wörd\n"}], seconds=10)
    assert verdict.status is Status.PASSED, (verdict.reason, verdict.stderr)


def test_an_input_of_any_size_arrives_whole(sandbox: Sandbox) -> None:
    text = "import sys; data = sys.stdin.buffer.read(); print(len(data), sum(data))"
    cases = [{"stdin": "a" * n, "stdout": f"{n} {97 * n}"} for n in (0, 1, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1)]
    assert judged(text, sandbox, cases=cases, seconds=10).passed


def test_a_traceback_shows_the_programs_own_lines(sandbox: Sandbox) -> None:
    verdict = judged("def f():\n    return 1 / 0\nf()", sandbox, cases=[{"stdout": ""}])
    lines = verdict.tests[0].message.splitlines()
    assert lines[:3] == [
        "exit code 1, expected 0",
        "Traceback (most recent call last):",
        '  File "main.py", line 3, in <module>',
    ]
    assert "    return 1 / 0" in lines
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert not any("run_stdio" in line for line in lines)
    words = judged("raise SystemExit('own words')", sandbox, cases=[{"stdout": ""}])
    assert words.tests[0].message == "exit code 1, expected 0\nown words"


def test_a_large_input_and_output_pass_whole(sandbox: Sandbox) -> None:
    block = "".join(f"{n}\n" for n in range(300_000))
    verdict = judged(
        "import sys; sys.stdout.write(sys.stdin.read())", sandbox, cases=[{"stdin": block, "stdout": block}]
    )
    assert verdict.passed
    assert len(verdict.stdout) <= 2000


def test_answers_of_another_form_are_refused(sandbox: Sandbox) -> None:
    asked = task()
    verdict = asyncio.run(verify(asked, Answer(task_id="t", diff="x"), sandbox, Path()))
    assert verdict.status is Status.REFUSED


def test_a_missing_tool_leaves_the_answer_unjudged(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    verdict = judged("fn main() {}", sandbox, language="rust")
    assert verdict.status is Status.HARNESS_ERROR
    assert verdict.reason.startswith("rust: no rustc on PATH; install rustc")


def test_a_program_that_cannot_be_executed_is_the_answers_fault(sandbox: Sandbox) -> None:
    toolchain_or_skip("c")
    text = 'const char interp[] __attribute__((section(".interp"))) = "/nowhere/ld.so";\nint main(void) { return 0; }\n'
    verdict = judged(text, sandbox, language="c", cases=[{"stdout": ""}])
    assert verdict.status in (Status.FAILED, Status.PASSED)  # a linker may keep its own
    text = 'asm(".globl _start\\n.section .text\\n_start: hlt");\nint main(void) { return 0; }\n'
    assert judged(text, sandbox, language="c", cases=[{"stdout": ""}]).status is Status.FAILED


def test_builds_that_want_too_much_are_the_answers_fault(sandbox: Sandbox) -> None:
    toolchain_or_skip("c++")
    deep = (
        "template<int n> struct F { static const int v = F<n - 1>::v + F<n - 2>::v; };\nint main() { return F<1>::v; }"
    )
    assert judged(deep, sandbox, language="c++").status is Status.FAILED
    large = "char block[200 << 20] = {1};\nint main() { return block[0]; }"
    verdict = judged(large, sandbox, language="c++")
    assert verdict.status in (Status.FAILED, Status.CRASHED, Status.REFUSED)
    assert verdict.reason.startswith("build")
    assert [test.message for test in verdict.tests[1:]] == ["not run: not built"] * 3
    peek = '#include "/etc/shadow"\nint main() {}'
    verdict = judged(peek, sandbox, language="c++")
    assert verdict.status is Status.FAILED
    assert "root:" not in verdict.tests[0].message


BAD = {
    "cases": [],
    "language": "cobol",
    "compare": "roughly",
    "seconds": 0,
    "memory_mb": 1,
    "tolerance": -1,
    "unknown": 1,
}


@pytest.mark.parametrize("field", BAD)
def test_a_malformed_description_is_refused_by_name(field: str) -> None:
    with pytest.raises(InputError, match=f"task t: verifier field '{field}'"):
        verifier_for(task(**{field: BAD[field]}), Path())


def test_names_of_cases_must_differ() -> None:
    with pytest.raises(InputError, match="two cases have the same name"):
        verifier_for(task(cases=[{"stdout": ""}, {"name": "case 1", "stdout": ""}]), Path())


# Comparison -------------------------------------------------------------------------------------------------------

SAME = [
    ("exact", b"a\n", b"a\n"),
    ("whitespace", b"a\n", b"a"),
    ("whitespace", b"a  b\nc", b" a\tb \r\nc\n\n"),
    ("whitespace", b"", b" \n\n"),
    ("float", b"1.0 x", b"1 x"),
    ("float", b"0.3333333", b".33333334"),
    ("float", b"1e6", b"1000000.5"),
    ("float", b"nan", b"nan"),
    ("float", b"0", b"-0.0"),
]
DIFFERENT = [
    ("exact", b"a\n", b"a", 'line 2: expected "", got the end of the output'),
    ("exact", b"a b", b"a  b", 'line 1: expected "a b", got "a  b"'),
    ("exact", b"a", b"a\r", 'line 1: expected "a", got "a\\r"'),
    ("whitespace", b"a b", b"ab", 'line 1: expected "a b", got "ab"'),
    ("whitespace", b"a\nb", b"a b", 'line 1: expected "a", got "a b"'),
    ("whitespace", b"1", b"1.0", 'line 1: expected "1", got "1.0"'),
    ("whitespace", b"a\n\nb", b"a\nb", 'line 2: expected "", got "b"'),
    ("whitespace", b"a\nb\nc", b"a\nb", 'line 3: expected "c", got the end of the output'),
    ("float", b"1.0", b"1.1", 'line 1: expected "1.0", got "1.1"'),
    ("float", b"1", b"nan", 'line 1: expected "1", got "nan"'),
    ("float", b"nan", b"1", 'line 1: expected "nan", got "1"'),
    ("float", b"1", b"inf", 'line 1: expected "1", got "inf"'),
    ("float", b"1e999", b"2e999", 'line 1: expected "1e999", got "2e999"'),
    ("float", b"1000", b"1_000", 'line 1: expected "1000", got "1_000"'),
    ("float", b"1 2", b"1", 'line 1: expected "1 2", got "1"'),
    ("float", b"0x10", b"16", 'line 1: expected "0x10", got "16"'),
    ("exact", b"\xff", b"\xfe", 'line 1: expected "\ufffd", got "\ufffd"'),
]


@pytest.mark.parametrize(("compare", "expected", "got"), SAME)
def test_outputs_that_agree(compare: str, expected: bytes, got: bytes) -> None:
    assert difference(expected, got, compare, 1e-6) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(("compare", "expected", "got", "words"), DIFFERENT)
def test_outputs_that_differ_say_where(compare: str, expected: bytes, got: bytes, words: str) -> None:
    assert difference(expected, got, compare, 1e-6) == words  # type: ignore[arg-type]


def test_the_tolerance_is_relative_to_what_is_expected() -> None:
    assert difference(b"1e9", b"1.0000005e9", "float", 1e-6) == ""
    assert difference(b"1e9", b"1.000005e9", "float", 1e-6) != ""
    assert difference(b"1e-9", b"9e-7", "float", 1e-6) == ""
    assert difference(b"1e-9", b"2e-9", "float", 0.0) != ""


def test_hostile_output_is_compared_at_once_and_quoted_short() -> None:
    for got in (
        b"9" * 3_000_000,
        b"\n" * 3_000_000,
        b" 1" * 1_000_000,
        b"1" * 399 + b"e" * 2_000_000,
        b"\0" * 1_000_000,
    ):
        message = difference(b"1\n2\n", got, "float", 1e-6)
        assert 0 < len(message) < 1000


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_comparison_never_raises_and_its_ways_are_ordered(expected: bytes, got: bytes) -> None:
    exact, loose, number = (difference(expected, got, way, 0.0) == "" for way in ("exact", "whitespace", "float"))  # type: ignore[arg-type]
    assert exact <= loose <= number
    assert exact == (expected == got)


def test_messages_are_cut_and_cleaned() -> None:
    assert readable("\x1b[31merror\x1b[0m\0 \u202e here\x07\n") == "error \u202e here"
    text = readable("a" * 5000 + "z")
    assert len(text) < 1600
    assert text.startswith("aaa")
    assert text.endswith("z")
