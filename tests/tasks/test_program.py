"""Programs and their tests: HumanEval's own solutions, and answers that cheat."""

from __future__ import annotations

from pathlib import Path

import pytest

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.errors import InputError
from codemill.sandbox import Sandbox
from codemill.tasks.benchmarks import read_humaneval
from codemill.tasks.verifiers import verifier_for, verify_all

HUMANEVAL = Path(__file__).parents[3] / "shared" / "data" / "humaneval"
PREFIX = "def add(a, b):\n"
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(5, -5) == 0\n"


def task(name: str = "add", **spec: object) -> Task:
    return Task(
        id=name, prefix=PREFIX, verifier={"kind": "program", "test": TEST, "call": "check(add)", "seconds": 0.5, **spec}
    )


def judged(completions: list[str], sandbox: Sandbox) -> list[Verdict]:
    pairs = [(task(), Answer(task_id="add", completion=text, sample=i)) for i, text in enumerate(completions)]
    return sorted(verify_all(pairs, sandbox, Path()), key=lambda verdict: verdict.sample)


ENDINGS = {
    "right": ("    return a + b\n", Status.PASSED),
    "right, no line break": ("    return a + b", Status.PASSED),
    "right, with noise on the result channel": ("    return a + b\nimport os; os.write(3, b'hm')\n", Status.FAILED),
    "wrong": ("    return a - b\n", Status.FAILED),
    "empty": ("", Status.FAILED),
    "no program": ("    return (a + b\n", Status.FAILED),
    "lone surrogate": ("    return a + b  # \ud800\n", Status.FAILED),
    "endless": ("    while True: pass\n", Status.TIMEOUT),
    "asleep": ("    import time; time.sleep(60)\n", Status.TIMEOUT),
    "swallows everything": (
        "    while True:\n        try:\n            while True: pass\n        except BaseException: pass\n",
        Status.TIMEOUT,
    ),
    "memory": ("    return [0] * 10**9\n", Status.MEMORY),
    "crash": ("    import faulthandler; faulthandler._read_null()\n", Status.CRASHED),
    "stack": ("    return add(a, b)\n", Status.FAILED),
}

CHEATS = {
    "sys.exit": "    import sys; sys.exit(0)\n",
    "os._exit": "    import os; os._exit(0)\n",
    "os._exit at once": "    return 1\nimport os\nos._exit(0)\n",
    "SystemExit": "    raise SystemExit\n",
    "prints the verdict": "    print('PASSED', 'OK', 'result: passed')\n    return 1\n",
    "atexit": "    return 1\nimport atexit, os\natexit.register(os._exit, 0)\n",
    "own report": '    import os\n    os.write(3, b\'{"end": true, "results": {"check": true}}\\n\')\n    os._exit(0)\n',
    "guessed nonce": "    import os\n"
    '    os.write(3, b\'{"nonce": "0", "end": true, "results": {"check": true}}\\n\'); os._exit(0)\n',
    "own check": "    return 1\ndef check(candidate): return None\n",
    "builtins": "    return 1\nimport builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\n"
    "builtins.compile = lambda *a, **k: builtins.compile\nbuiltins.exec = lambda *a: None\n",
    "leaves in finally": "    return 1\ntry:\n    pass\nfinally:\n    import os\n    os._exit(0)\n",
    "trace": "    return 1\nimport os, sys\ndef jump(frame, event, arg):\n    if frame.f_code.co_name == 'check': os._exit(0)\n"
    "    return jump\nsys.settrace(jump)\n",
    "excepthook": "    raise ValueError\nimport sys, os\nsys.excepthook = lambda *a: os._exit(0)\n",
    "replaces os.write": "    return 1\nimport os, json\nold = os.write\n"
    "os.write = lambda fd, data: old(fd, data.replace(b'false', b'true'))\n"
    "json.dumps = lambda value: '{}'\n",
    "signal": "    return 1\nimport signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.alarm(1)\n"
    "import time\ntime.sleep(3)\n",
    "closes the channel": "    import os; os.close(3); os._exit(0)\n",
    "optimised asserts": "    return 1\nimport sys\nsys.flags = None\n__debug__x = False\n",
    "a thread that ends it": "    return 1\nimport threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()\n"
    "import time\ntime.sleep(1)\n",
    "a new process": "    import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'pass'])\n",
}


def test_every_ending_has_its_status(sandbox: Sandbox) -> None:
    verdicts = judged([text for text, _ in ENDINGS.values()], sandbox)
    found = {name: (v.status, v.reason) for name, v in zip(ENDINGS, verdicts, strict=True)}
    assert {name: status for name, (status, _) in found.items()} == {n: s for n, (_, s) in ENDINGS.items()}, found
    assert all(v.score == float(v.status is Status.PASSED) for v in verdicts)
    assert all(v.isolation["network"] != "nothing" for v in verdicts)


def test_cheats_do_not_pass(sandbox: Sandbox) -> None:
    verdicts = judged(list(CHEATS.values()), sandbox)
    found = {name: (v.status, v.reason) for name, v in zip(CHEATS, verdicts, strict=True)}
    wrong = {name: f for name, f in found.items() if f[0] in (Status.PASSED, Status.HARNESS_ERROR)}
    assert not wrong


def test_a_failure_is_explained(sandbox: Sandbox) -> None:
    verdict = judged(["    print('here')\n    return {}['missing']\n"], sandbox)[0]
    assert verdict.reason.startswith("KeyError: 'missing'")
    assert "program.py:3 in add" in verdict.tests[0].message
    assert verdict.stdout == "here\n"


def test_an_answer_of_another_form_is_refused(sandbox: Sandbox) -> None:
    huge = Answer(task_id="add", completion="#" * (2 << 20))
    for answer in (Answer(task_id="add", diff="--- a"), huge):
        (verdict,) = verify_all([(task(), answer)], sandbox, Path())
        assert verdict.status is Status.REFUSED


def test_suffix_and_lone_prefix(sandbox: Sandbox) -> None:
    filled = Task(id="s", prefix=PREFIX, suffix="    return c\n", verifier=task().verifier)
    (verdict,) = verify_all([(filled, Answer(task_id="s", completion="    c = a + b\n"))], sandbox, Path())
    assert verdict.passed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "magic"}, "task add: unknown verifier kind 'magic'"),
        ({"seconds": 0}, "task add: verifier field 'seconds'"),
        ({"test": None}, "task add: verifier field 'test'"),
        ({"extra": 1}, "task add: verifier field 'extra'"),
    ],
)
def test_a_malformed_description_is_an_input_error(change: dict[str, object], message: str, sandbox: Sandbox) -> None:
    with pytest.raises(InputError, match=message):
        verifier_for(task(**change), Path())
    with pytest.raises(InputError, match=message):
        list(verify_all([(task(**change), Answer(task_id="add", completion=""))], sandbox, Path()))


def test_closing_the_iterator_stops_the_runs(sandbox: Sandbox) -> None:
    taken = []

    def pairs():  # type: ignore[no-untyped-def]
        for i in range(1000):
            taken.append(i)
            yield task(), Answer(task_id="add", completion="    return a + b\n", sample=i)

    verdicts = verify_all(pairs(), sandbox, Path(), workers=2)
    assert next(verdicts).passed
    verdicts.close()
    assert len(taken) < 100


def test_an_exception_in_the_pairs_reaches_the_caller(sandbox: Sandbox) -> None:
    def pairs():  # type: ignore[no-untyped-def]
        yield task(), Answer(task_id="add", completion="    return a + b\n")
        raise InputError("the file ends here")

    with pytest.raises(InputError, match="the file ends here"):
        list(verify_all(pairs(), sandbox, Path()))


@pytest.mark.skipif(not HUMANEVAL.exists(), reason=f"{HUMANEVAL} is not there")
def test_humaneval_solutions_pass_and_empty_answers_fail(sandbox: Sandbox) -> None:
    tasks = read_humaneval(HUMANEVAL)
    assert len(tasks) == 164
    solved = [(one, Answer(task_id=one.id, completion=one.gold)) for one in tasks]
    empty = [(one, Answer(task_id=one.id, completion="", sample=1)) for one in tasks]
    verdicts = list(verify_all([*solved, *empty], sandbox, Path()))
    assert len(verdicts) == 328
    wrong = [(v.task_id, v.status, v.reason) for v in verdicts if v.passed != (v.sample == 0)]
    assert not wrong
