"""Tests of a repository and the answer in two processes: what crosses, what is there to be found, what makes a task unfit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tasks_support import write_files

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.errors import IsolationError
from codemill.core.progress import Progress
from codemill.sandbox import Call, Layers, Sandbox, Warm
from codemill.sandbox.sandbox import MAX_IDLE
from codemill.tasks.admission import admit, is_isolated
from codemill.tasks.candidates import Candidate
from codemill.tasks.environment import Environment
from codemill.tasks.functions import SourceFile, find_functions
from codemill.tasks.verifiers import verify_all

MODULE = '''"""Odds and ends."""

import functools
from contextlib import contextmanager

from odds.errors import Broken

_nothing = object()
seen = []


def pick(items, key, default=_nothing, /, *more, strict=True, sep=_nothing, **rest):
    """What is asked for.

    >>> pick({"a": 1}, "a")[0]
    1
    """
    if default is _nothing and key not in items:
        raise Broken(key, where="pick")
    return items.get(key, default), more, strict, sep is _nothing, rest


def tidy(words):
    words.sort()
    words.append("end")
    return words


def deep(table):
    table["rows"][0].append(len(table))
    table["new"] = {1, 2}


def counting(start, step=1):
    value = start
    while True:
        yield value
        value += step


def mapped(function, values):
    total = 0
    for value in values:
        total += function(value)
    return total


def same(value):
    kept = value
    return kept


@functools.lru_cache
def squared(number):
    result = number * number
    return result


@contextmanager
def noted(word):
    seen.append(word)
    yield word.upper()


def through_others(words):
    first = same(list(words))
    return tidy(first)


def boxed(value):
    box = Box(value)
    return box


class Box:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Box) and self.value == other.value

    def put(self, value):
        self.value = value
        return self

    @staticmethod
    def volume(*sides):
        result = 1
        for side in sides:
            result *= side
        return result


def outside():
    return through_others(["b", "a"])
'''

ERRORS = """class Broken(LookupError):
    def __init__(self, key, where):
        super().__init__(f"{key} in {where}")
        self.key = key
        self.where = where
"""

TEST = """import operator

import pytest

import odds
from odds import misc
from odds.errors import Broken
from odds.misc import Box, pick, tidy


def test_pick():
    assert pick({"a": 1}, "a") == (1, (), True, True, {})
    assert pick({}, "a", None, 4, 5, strict=False, sep=".", x=1) == (None, (4, 5), False, False, {"x": 1})
    with pytest.raises(Broken, match="b in pick") as caught:
        pick({}, "b")
    assert (caught.value.key, caught.value.where, type(caught.value)) == ("b", "pick", Broken)


def test_tidy():
    words = ["b", "a"]
    assert tidy(words) is words
    assert words == ["a", "b", "end"]
    assert misc.outside() == odds.misc.through_others("ba")


def test_deep():
    row = []
    table = {"rows": [row]}
    assert misc.deep(table) is None
    assert row == [1]
    assert table == {"rows": [[1]], "new": {1, 2}}


def test_counting():
    numbers = misc.counting(3, step=2)
    assert [next(numbers) for _ in range(3)] == [3, 5, 7]


def test_mapped():
    calls = []

    def function(value):
        calls.append(value)
        if value > 3:
            raise KeyError("too much")
        return -value

    assert misc.mapped(function, iter([1, 2])) == -3
    assert calls == [1, 2]
    assert misc.mapped(operator.neg, [1]) == -1
    with pytest.raises(KeyError, match="too much"):
        misc.mapped(function, [4])


def test_same():
    assert misc.same(test_same) is test_same
    assert misc.same(operator.add) is operator.add
    assert misc.same(Box) is Box
    for value in ([1], {}, (1, [2])):
        assert misc.same(value) is value


def test_squared():
    assert [misc.squared(n) for n in (2, 2, 3)] == [4, 4, 9]
    assert misc.squared.cache_info().hits == 1
    assert misc.squared.__name__ == "squared"


def test_noted():
    with misc.noted("word") as word:
        assert word == "WORD"
    error = ValueError("comes back as it is")
    with pytest.raises(ValueError) as caught, misc.noted("word"):
        raise error
    assert caught.value is error


def test_boxed():
    assert misc.boxed(3) == Box(3)


def test_box():
    box = Box([1])
    assert isinstance(box, Box)
    assert box.put([2]) is box
    assert box.value == [2]


def test_box_equal():
    assert Box(3).put(4) == Box(4)


def test_volume():
    assert Box.volume(2, 3) == 6


def test_wants_type_error():
    with pytest.raises(TypeError):
        misc.same(object())
"""

FILES = {
    "odds/__init__.py": "from odds.misc import through_others\n",
    "odds/misc.py": MODULE,
    "odds/errors.py": ERRORS,
    "odds/data/words.txt": "kept\n",
    "odds/data/__init__.py": "",
    "tests/test_misc.py": TEST,
    "tests/golden.txt": "what the tests expect\n",
    "README.md": "    >>> pick({}, 'golden')\n    'expected'\n",
    "expected/golden.json": "[]\n",
    "pyproject.toml": "[project]\nname = 'odds'\n",
}
# By function: its tests, and an answer that is wrong.
FIT = {
    "pick": (("pick",), "    return items[key], more, strict, sep is _nothing, rest"),
    "tidy": (("tidy",), '    return [*sorted(words), "end"]'),
    "deep": (("deep",), '    table["new"] = {1, 2}'),
    "counting": (("counting",), "    return iter([start, start])"),
    "mapped": (("mapped",), "    return -sum(values)"),
    "same": (("same",), "    return list(value)"),
    "squared": (("squared",), "    return 4"),
    "noted": (("noted",), "    yield word"),
    "through_others": (("tidy",), "    return words"),
    "Box.put": (("box",), "        return self"),
    "Box.volume": (("volume",), "        return sum(sides)"),
}
UNFIT = {"boxed": "boxed", "Box.put": "box_equal", "same": "wants_type_error"}


class Asker:
    def __init__(self, folder: Path, environment: Environment, sandbox: Sandbox) -> None:
        self.folder, self._environment, self.sandbox = folder, environment, sandbox

    def task(self, name: str, tests: tuple[str, ...], isolated: bool = True) -> Task:
        functions = find_functions(SourceFile(MODULE, "misc.py"))
        body = next(function.body for function in functions if function.qualname == name)
        assert body is not None
        own = ["doctest:odds/misc.py::pick"] if name == "pick" else []
        spec = {
            "kind": "workspace",
            "workspace": "odds",
            "environment": self._environment.id,
            "path": "odds/misc.py",
            "start": body.start,
            "end": body.end,
            "tests": [*own, *(f"pytest:tests/test_misc.py::test_{test}" for test in tests)],
            "seconds": 8,
            "isolated": isolated,
        }
        prefix, gold, suffix = MODULE[: body.start], MODULE[body.start : body.end], MODULE[body.end :]
        return Task(id=name, verifier=spec, prefix=prefix, gold=gold, suffix=suffix)

    def verdicts(self, pairs: list[tuple[Task, str | None]]) -> list[Verdict]:
        listed = [(t, Answer(task_id=t.id, completion=text, sample=i)) for i, (t, text) in enumerate(pairs)]
        return sorted(verify_all(listed, self.sandbox, self.folder), key=lambda verdict: verdict.sample)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("isolated")
    write_files(made / "workspaces/odds", FILES)
    return made


@pytest.fixture(scope="module")
def ask(folder: Path, environment: Environment, sandbox: Sandbox) -> Asker:
    return Asker(folder, environment, sandbox)


def test_what_crosses(ask: Asker) -> None:
    """Defaults that are objects, changes in place, generators, callbacks, identity, decorators, exceptions of its own."""
    tasks = [ask.task(name, tests) for name, (tests, _) in FIT.items()]
    found = ask.verdicts([(task, task.gold) for task in tasks])
    assert {v.task_id: (v.status, v.reason) for v in found if not v.passed} == {}


def test_wrong_answers_fail(ask: Asker) -> None:
    found = ask.verdicts([(ask.task(name, tests), wrong) for name, (tests, wrong) in FIT.items()])
    assert {v.task_id: v.status for v in found} == dict.fromkeys(FIT, Status.FAILED)
    assert not [v.reason for v in found if "cannot" in v.reason]


def test_what_cannot_cross_makes_a_task_unfit_and_passes_nothing(ask: Asker) -> None:
    tasks = [(ask.task(name, (test,)), ask.task(name, (test,), isolated=False)) for name, test in UNFIT.items()]
    apart = ask.verdicts([(task, task.gold) for task, _ in tasks])
    assert [v.status for v in apart] == [Status.FAILED] * len(UNFIT)
    assert all("the tests cannot be run apart from the answer" in v.reason for v in apart[1:]), apart
    together = ask.verdicts([(task, task.gold) for _, task in tasks[:2]])
    assert all(v.passed for v in together)


def test_what_the_answer_finds(ask: Asker) -> None:
    """The program and its data, not the tests, what they expect, or the original."""
    answer = """    import os, sys, time
    texts = []
    for folder, _, names in os.walk(".."):
        for name in names:
            path = os.path.join(folder, name)
            print("FILE", path)
            if "misc" not in name:
                texts.append(open(path, errors="replace").read())
    print("GOLDEN", any("expect" in text for text in texts), "TESTS", "pytest" in sys.modules, sorted(os.environ))
    print("DOC", pick.__doc__.split())
    print("ORIGINAL", "items.get(key, " + "default)" in open(__file__).read())
    return dict(items).get(key), more, strict, True, rest"""
    (verdict,) = ask.verdicts([(ask.task("pick", ("pick",)), answer)])
    assert not verdict.passed
    files = {line.split("/codemill/")[-1] for line in verdict.stdout.split("\n") if line.startswith("FILE")}
    wanted = {"__init__.py", "misc.py", "errors.py", "data/words.txt", "data/__init__.py"}
    assert files == {f"odds/{name}" for name in wanted}
    assert "GOLDEN False TESTS False" in verdict.stdout
    assert "CODEMILL_READABLE" not in verdict.stdout
    assert """DOC ['What', 'is', 'asked', 'for.', '>>>', 'pick({"a":', '1},', '"a")[0]']""" in verdict.stdout
    assert "ORIGINAL False" in verdict.stdout


def test_what_is_told_of_a_failure(ask: Asker) -> None:
    (raised, wrong) = ask.verdicts([
        (ask.task("squared", ("squared",)), "    return number * missing"),
        (ask.task("squared", ("squared",)), "    return number"),
    ])  # fmt: skip
    assert "NameError: name 'missing' is not defined" in raised.tests[0].message
    assert "odds/misc.py:" in raised.tests[0].message
    assert "return number * missing" in raised.tests[0].message
    assert "__codemill" not in raised.tests[0].message
    assert "got      [2, 2, 3]" in wrong.tests[0].message
    assert "expected [4, 4, 9]" in wrong.tests[0].message


LIES = (
    [0, [4]],
    [0, [4, [[0, 1]]]],
    [0, [{"tuple": [4, 4, 9]}, [{"tuple": [7, [1]]}, {"tuple": ["x", 1]}, 5]]],
    [0, [{"argument": 1}, []]],
    [0, [{"yours": 0}, []]],
    [0, [{"name": ["unittest.mock", "_ANY"]}, []]],
    [0, [{"error": [{"type": "KeyError"}, [], "", 0]}, []]],
    [1, {"exception": [9, "Skipped", "Exception", "_pytest.outcomes"]}, ["not today"], "", ""],
    [1, {"exception": [9, "SkipTest", "Exception", "unittest.case"]}, ["not today"], "", ""],
    [1, {"exception": [9, "Exit", "Exception", "_pytest.outcomes"]}, [], "", ""],
    [1, {"exception": [9, "Broken", "LookupError", 5]}, [], "", ""],
    [1, {"exception": [9, "Broken", "LookupError", "odds.errors"]}, [], "", "", {"dict": [["args", 3], [1, 2]]}],
    [1, {"exception": [9, "Broken", "LookupError", "odds.errors"]}, [], "", "", 7, 8, 9],
    [2, 0, [], [], []],
    [4, 0],
)


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_what_is_no_honest_reply_fails(lie: list[Any], ask: Asker) -> None:
    answer = f"""    import json, os, time
    body = json.dumps({lie!r}).encode()
    os.write(4, len(body).to_bytes(4, "big") + body)
    time.sleep(9)"""
    (verdict,) = ask.verdicts([(ask.task("squared", ("squared",)), answer)])
    assert (verdict.status, verdict.scorable) == (Status.FAILED, True), verdict.reason
    assert verdict.seconds < 5
    assert "skipped in" not in verdict.tests[0].message


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where private folders are made that are the host's."""
    made = Path(tempfile.mkdtemp(prefix="codemill-test-"))
    made.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize(
    ("layers", "met"),
    [
        (Layers(mounts=False), "PermissionError"),
        (Layers(namespaces=False), "PermissionError"),
        (Layers(landlock=0), "FileNotFoundError"),
    ],
    ids=["mountless", "bare", "no-landlock"],
)
def test_with_fewer_layers_the_two_have_folders_of_their_own(
    layers: Layers, met: str, boxes: Path, folder: Path, environment: Environment
) -> None:
    """And nothing is left of them."""
    try:
        sandbox = Sandbox(layers=layers)
    except IsolationError as error:
        pytest.skip(f"this machine cannot isolate with fewer layers: {error}")
    with sandbox:
        ask = Asker(folder, environment, sandbox)
        spy = """    import glob, os
    box = os.path.dirname(os.getcwd())
    for place in (box, box + "-beside"):
        try: open(place + "/codemill/tests/test_misc.py")
        except OSError as error: print("MET", type(error).__name__)
    print("FOUND", [*glob.glob(box + "*/**/test_misc.py", recursive=True)])
    return words"""
        task = ask.task("tidy", ("tidy",))
        right, wrong, again = ask.verdicts([(task, task.gold), (task, spy), (task, task.gold)])
        assert (right.passed, wrong.passed, again.passed) == (True, False, True), (right.reason, again.reason)
        assert f"MET FileNotFoundError\nMET {met}\nFOUND []" in wrong.stdout
        assert not [path for path in boxes.rglob("*") if path.is_file()]
    assert not [*boxes.iterdir()]


def test_admission_finds_out_which_tasks_are_fit(ask: Asker) -> None:
    """By running the original code; what is not fit stays, in one process."""
    asked = [("tidy", "tidy"), ("boxed", "boxed"), ("Box.put", "box"), ("same", "pick")]

    class Maker:
        def make(self, candidate: Candidate) -> Task:
            return ask.task(candidate.function.qualname, candidate.tests, isolated=False)

    candidates = []
    for name, test in asked:
        functions = find_functions(SourceFile(MODULE, "misc.py"))
        function = next(function for function in functions if function.qualname == name)
        assert function.body is not None
        cluster = f"{name}:{test}"
        candidates.append(Candidate("r", "odds/misc.py", function, function.body, (test,), "train", cluster, 0.5, ""))
    maker: Any = Maker()
    admission = admit(candidates, {"train": 9}, maker, ask.sandbox, ask.folder, Progress("admission", 9))
    assert {admitted.task.id: is_isolated(admitted.task) for admitted in admission.admitted} == {
        "tidy": True,
        "boxed": False,
        "Box.put": True,
    }
    assert [(r.qualname, r.reason) for r in admission.rejected] == [
        ("same", "an answer that does nothing passes its tests")
    ]


def test_warm_interpreters_of_many_environments_do_not_pile_up(tmp_path: Path) -> None:
    script = tmp_path / "shows.py"
    script.write_text("import os, json\ndef main(data):\n    [place] = json.loads(os.environ['CODEMILL_READABLE'])\n")
    script.write_text(script.read_text() + "    os.write(1, open(place + '/name').read().encode())\n")
    with Sandbox(workers=1) as sandbox:
        for turn in range(2):
            for number in range(MAX_IDLE + 3):
                folder = write_files(tmp_path / str(number), {"name": f"environment {number}"})
                folder.chmod(0o755)
                warm = Warm(modules=(script,), readable=(folder,))
                (outcome,) = sandbox.run_warm_blocking(warm, (Call(entry="shows:main", payload=b""),))
                assert outcome.stdout.decode() == f"environment {number}", (turn, outcome.stderr)
        idle = [worker for workers in sandbox._idle.values() for worker in workers]
        assert len(idle) == MAX_IDLE
        assert {warm.readable[0].name for warm in sandbox._idle} == {str(number) for number in range(3, 3 + MAX_IDLE)}
    assert all(worker._process.poll() is not None for worker in idle)
