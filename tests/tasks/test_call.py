"""Functions called from another process: right answers in any style pass, wrong ones fail with a reason, no cheat passes."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.core.contracts import Answer, Status, Task, Verdict
from codemill.core.errors import InputError
from codemill.sandbox import Outcome, Sandbox
from codemill.tasks.asserts import compile_test
from codemill.tasks.benchmarks import load_tasks, read_humaneval, read_mbpp
from codemill.tasks.call import CallReport, CallSpec, CallVerifier, decide, read_call_report
from codemill.tasks.inside import wire
from codemill.tasks.verifiers import verifier_for, verify_all

DATA = Path(__file__).parents[3] / "shared" / "data"
HUMANEVAL, MBPP = DATA / "humaneval", DATA / "mbpp-sanitized"
ADD = "assert add(1, 2) == 3\nassert add(5, -5) == 0\nassert add('a', 'b') == 'ab'\n"


def judged(
    sandbox: Sandbox, program: str, test: str, names: str = "add", setup: str = "", seconds: float = 3
) -> Verdict:
    spec = CallSpec(kind="call", test=test, names=tuple(names.split()), setup=setup, whole=True, seconds=seconds)
    task = Task(id="t", verifier=spec.model_dump())
    answer = Answer(task_id="t", completion=program)
    return asyncio.run(CallVerifier(spec, "t").verify(task, answer, sandbox))


def passes(sandbox: Sandbox, program: str, test: str, names: str = "f", setup: str = "") -> None:
    verdict = judged(sandbox, program, test, names, setup)
    assert verdict.passed, (verdict.status, verdict.reason, verdict.stderr)
    assert verdict.score == 1
    assert all(t.passed for t in verdict.tests)


ENDINGS = {
    "right": ("def add(a, b): return a + b", Status.PASSED),
    "wrong": ("def add(a, b): return a - b", Status.FAILED),
    "nothing": ("", Status.FAILED),
    "another name": ("def plus(a, b): return a + b", Status.FAILED),
    "no program": ("def add(a, b: return a + b", Status.FAILED),
    "lone surrogate": ("def add(a, b): return a + b  # \ud800", Status.FAILED),
    "fails to load": ("def add(a, b): return a + b\nraise ValueError('at the end')", Status.FAILED),
    "endless": ("def add(a, b):\n    while True: pass", Status.TIMEOUT),
    "endless load": ("while True: pass", Status.TIMEOUT),
    "asleep": ("import time\ndef add(a, b): time.sleep(60)", Status.TIMEOUT),
    "swallows everything": (
        "def add(a, b):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
        Status.TIMEOUT,
    ),
    "memory": ("def add(a, b): return [0] * 10**9", Status.MEMORY),
    "memory at load": ("x = [0] * 10**9", Status.MEMORY),
    "crash": ("def add(a, b):\n    import faulthandler; faulthandler._read_null()", Status.CRASHED),
    "stack": ("def add(a, b): return add(a, b)", Status.FAILED),
    "closes the wire": ("import os\ndef add(a, b): os.close(4); return a + b", Status.FAILED),
    "flood": ("import os\ndef add(a, b):\n    while True: os.write(4, b'x' * 65536)", Status.FAILED),
    "endless iterator": ("def add(a, b):\n    while True: yield a", Status.FAILED),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending_has_its_status(name: str, sandbox: Sandbox) -> None:
    program, status = ENDINGS[name]
    verdict = judged(sandbox, program, ADD, seconds=0.5)
    assert verdict.status is status, verdict.reason
    assert verdict.score == float(status is Status.PASSED)
    assert verdict.isolation["network"] != "nothing"
    if status is not Status.PASSED:
        assert verdict.reason
        assert not all(test.passed for test in verdict.tests)


EQUAL = """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return True
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __contains__ = __lt__
    def __sub__(self, other): return 0
    __add__ = __mul__ = __truediv__ = __mod__ = __rsub__ = __radd__ = __and__ = __or__ = __sub__
    def __abs__(self): return 0
    def __round__(self, n=0): return 0
    def __float__(self): return 0.0
    def __index__(self): return 0
    def __hash__(self): return 0
    def __bool__(self): return True
    def __len__(self): return 0
    def __iter__(self): return iter([self])
"""

CHEATS = {
    "equal to everything": EQUAL + "def add(a, b): return Any()",
    "an int that is": EQUAL + "class I(Any, int): pass\ndef add(a, b): return I(7)",
    "a list that is": EQUAL + "class L(Any, list): pass\ndef add(a, b): return L([7])",
    "a str that is": EQUAL + "class S(Any, str): pass\ndef add(a, b): return S('no')",
    "a class that is": EQUAL
    + "class M(type): __eq__ = lambda *a: True\nclass C(metaclass=M): pass\nadd = lambda a, b: C",
    "an instance for a function": EQUAL + "Any.__call__ = lambda self, *a: self\nadd = Any()",
    "sys.exit": "import sys\ndef add(a, b): sys.exit(0)",
    "SystemExit at load": "raise SystemExit(0)",
    "os._exit": "import os\ndef add(a, b): os._exit(0)",
    "os._exit at load": "import os\nos._exit(0)",
    "KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "GeneratorExit": "def add(a, b): raise GeneratorExit",
    "a base exception": "class E(BaseException): pass\ndef add(a, b): raise E",
    "prints the verdict": "print('PASSED')\nimport sys\nprint('{\"end\": \"passed\"}', file=sys.stderr)",
    "own report": 'import os\nfor d in range(64):\n    try: os.write(d, b\'{"ready":true}\\n{"end":"passed","problem":"",'
    '"seconds":0,"passed":[0,1,2],"failed":[],"decisive":null}\\n\')\n    except OSError: pass\nos._exit(0)',
    "frames": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        for v in f.f_locals.values():\n"
    "            if v == 3: return v\n        f = f.f_back\n    return 4",
    "garbage collector": "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n        if type(o) is dict and "
    "'expected' in o: return o['expected']\n    return 4",
    "files": "import os\ndef add(a, b):\n    for root, d, names in os.walk('/proc'):\n        pass\n    return open('test.py').read()",
    "builtins": "import builtins\nbuiltins.AssertionError = builtins.isinstance = None\ndef add(a, b): return 4",
    "patched wire": "import sys, wire\nwire.Codec.pack = lambda *a: {'equal': 1}\ndef add(a, b): return 4",
    "forged replies": "import os\ndef put(t): os.write(4, len(t).to_bytes(4, 'big') + t)\n"
    "def add(a, b):\n    for i in range(9): put(b'[0,true]')\n    return 4",
    "a forged callback": "import os\ndef put(t): os.write(4, len(t).to_bytes(4, 'big') + t)\n"
    "def add(a, b): put(b'[2,0,[]]'); put(b'[2,-1,[]]'); return 4",
    "an unknown number": "import os\ndef put(t): os.write(4, len(t).to_bytes(4, 'big') + t)\n"
    "def add(a, b): put(b'[0,{\"remote\":0}]'); return 4",
    "own AssertionError": "def add(a, b): raise AssertionError",
    "NotImplemented": "def add(a, b): return NotImplemented",
    "nan": "def add(a, b): return float('nan')",
    "signal": "import signal, os\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\nsignal.setitimer(0, 0.01)\n"
    "def add(a, b):\n    import time\n    time.sleep(0.2)",
    "a new process": "import os, sys\ndef add(a, b): os.execv(sys.executable, [sys.executable, '-c', 'pass'])",
    "another thread ends it": "import threading, os, time\nthreading.Thread(target=os._exit, args=(0,)).start()\n"
    "def add(a, b): time.sleep(0.2)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
    "keyword tricks": "def add(a, b, /, *, expected=None): return expected",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(name: str, sandbox: Sandbox) -> None:
    verdict = judged(sandbox, CHEATS[name], ADD)
    assert verdict.status in (Status.FAILED, Status.CRASHED), (verdict.status, verdict.reason)


@pytest.mark.parametrize(
    "program",
    [
        "def f(x): raise StopIteration",
        "class Own(StopIteration): pass\ndef f(x): raise Own(x)",
        "class f:\n    def __new__(cls, x): return next(iter([]))",
        "def f(x, it=iter([])): return next(x)",
    ],
)
@pytest.mark.parametrize(
    "test",
    [
        "assert all(map(f, [1, 2]))",
        "for y in map(f, [1]): assert y == 3",
        "assert sum(map(f, [iter([])])) == 0",
        "assert list(filter(f, [iter([])])) == []",
        "x = list(map(f, [iter([]), 2]))",
        "assert sorted([2, 1], key=lambda x: all(map(f, [iter([])])))",
    ],
)
def test_an_answer_does_not_end_the_tests_loops(program: str, test: str, sandbox: Sandbox) -> None:
    verdict = judged(sandbox, program, test, "f")
    assert verdict.status is Status.FAILED, verdict.reason


@pytest.mark.parametrize(
    "test",
    [
        "assert abs(f(1) - 0.5) < 1e-6",
        "assert f(1) < 3",
        "assert 3 > f(1)",
        "assert 0 <= f(1) <= 9",
        "assert 3 in f(1)",
        "assert f(1) in [3]",
        "assert f(1) in {3: 4}",
        "assert f(1) == [3] or f(1) == 4",
        "assert {f(1)} == {3}",
        "assert sorted(f(1)) == [3]",
        "assert set(f(1)) == {3}",
        "assert [f(1)] == [3]",
        "assert (f(1), 2) == (3, 2)",
        "assert not f(1) != 3",
        "assert not f(1)",
        "assert len(f(1)) == 3",
        "assert round(f(1), 2) == 3",
        "assert f(1) is None",
        "assert isinstance(f(1), int)",
        "assert all(a == b for a, b in zip(f(1), [3]))",
        "import math\nassert math.isclose(f(1), 3)",
        "assert f(1) % 2 == 1",
        "assert 1 + f(1) == 4",
        "assert max(f(1), 3) == 3",
    ],
)
def test_an_object_of_the_answer_never_stands_in_for_a_value(test: str, sandbox: Sandbox) -> None:
    verdict = judged(sandbox, EQUAL + "def f(x): return Any()", test, "f")
    assert verdict.status is Status.FAILED, verdict.reason


def test_no_operand_reaches_an_object_of_the_answer(sandbox: Sandbox) -> None:
    program = "class Spy:\n    def __getattr__(self, name): print('asked', name)\n"
    for operator in (
        "eq",
        "ne",
        "lt",
        "sub",
        "rsub",
        "add",
        "radd",
        "contains",
        "and",
        "or",
        "mod",
        "mul",
        "hash",
        "bool",
    ):
        program += f"    def __{operator}__(self, *operands): print('saw', operands); return True\n"
    program += "def f(): return Spy()"
    for test in (
        "f() == 12345",
        "12345 == f()",
        "f() in [12345]",
        "12345 in f()",
        "f() - 12345",
        "f() < 12345",
        "not f()",
    ):
        verdict = judged(sandbox, program, f"x = {test}\nassert False", "f")
        assert verdict.status is Status.FAILED
        assert "12345" not in verdict.stdout
        assert "saw" not in verdict.stdout


HONEST = {
    "prints": ("print('loading')\ndef add(a, b):\n    print(a, b)\n    return a + b", ADD),
    "threads": (
        "import threading\ndef add(a, b):\n    out = []\n    t = threading.Thread(target=lambda: out.append(a + b))\n"
        "    t.start(); t.join()\n    return out[0]",
        ADD,
    ),
    "lambda": ("add = lambda a, b: a + b", ADD),
    "callable instance": ("class A:\n    def __call__(self, a, b): return a + b\nadd = A()", ADD),
    "partial": ("import functools, operator\nadd = functools.partial(operator.add)", ADD),
    "builtin function": ("import operator\nadd = operator.add", ADD),
    "class with new": ("class add:\n    def __new__(cls, a, b): return a + b", ADD),
    "cached": ("import functools\n@functools.lru_cache\ndef add(a, b): return a + b", ADD),
    "main guard": ("def add(a, b): return a + b\nif __name__ == '__main__':\n    raise SystemExit(1)", ADD),
    "subclasses": (
        "class I(int): pass\nclass S(str): pass\ndef add(a, b): return (S if isinstance(a, str) else I)(a + b)",
        ADD,
    ),
    "enum": ("import enum\nclass E(enum.IntEnum):\n    A = 3\n    B = 0\ndef add(a, b): return E(a + b) if a != 'a' else 'ab'", ADD),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(5000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)",
        "assert f(4000) == 4000",
    ),
    "closed output": ("import sys\nsys.stdout.close()\ndef f(): return 1", "assert f() == 1"),
    "other output": ("import sys, io\nsys.stdout = io.StringIO()\nsys.stderr = None\ndef f(): print(1); return 1", "assert f() == 1"),
    "low recursion limit": (
        "import sys\nsys.setrecursionlimit(60)\ndef g(n): return 1 + g(n - 1) if n else 0\ndef f(n):\n    x = []\n"
        "    for i in range(n): x = [x]\n    return x",
        "x = f(190)\nfor i in range(190): (x,) = x\nassert x == []\nassert g(10) == 10\ntry: g(70)\nexcept RecursionError: pass\n"
        "else: assert False",
    ),
    "big integers": (
        "import sys\nsys.set_int_max_str_digits(0)\ndef f(n): return [10 ** n, -(7 ** n)]",
        "assert f(9000) == [10 ** 9000, -(7 ** 9000)]",
    ),
    "nan": ("def f(): return [float('nan'), float('inf'), -0.0]", "a, b, c = f()\nassert a != a\nassert b > 1e308\nassert str(c) == '-0.0'"),
    "generator": ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]\nassert next(iter(f(2))) == 0"),
    "endless generator": (
        "import itertools\ndef f(): return itertools.count(5)",
        "g = f()\nassert [next(g), next(g)] == [5, 6]\nfor i, x in zip(range(3), g): assert x == 7 + i",
    ),
    "generator is one": (
        "def f(): yield 1",
        "import types, collections.abc\nassert isinstance(f(), types.GeneratorType)\nassert isinstance(f(), collections.abc.Iterator)",
    ),
    "map and zip": ("def f(x): return zip(x, map(str, x))", "assert list(f([1, 2])) == [(1, '1'), (2, '2')]"),
    "views": ("d = {'a': 1}\ndef f(): return d.keys()", "assert f() == {'a'}\nassert list(f()) == ['a']"),
    "mutable default": ("def f(x, seen=[]):\n    seen.append(x)\n    return seen", "assert f(1) == [1]\nassert f(2) == [1, 2]"),
    "global state": ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert f() == 1\nassert f() == 2\nassert n == 2"),
    "counter": ("from collections import Counter\ndef f(x): return Counter(x)", "assert f('aab') == {'a': 2, 'b': 1}\nassert f('aab').most_common(1) == [('a', 2)]"),
    "keyword arguments": ("def f(a, *, b=1, **c): return a, b, c", "assert f(1, b=2, d=3) == (1, 2, {'d': 3})\nassert f(a=0) == (0, 1, {})"),
    "self as keyword": ("def f(self, number): return self + number", "assert f(self=1, number=2) == 3"),
    "exception": (
        "def f(x):\n    if x < 0: raise ValueError('negative', x)\n    return {}['k']",
        "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert e.args == ('negative', -1)\n"
        "try: f(1)\nexcept KeyError as e: assert str(e) == \"'k'\"\nelse: assert False",
    ),
    "own exception": (
        "class Low(ValueError):\n    def __str__(self): return 'too low'\ndef f(): raise Low(1)",
        "try: f()\nexcept Low as e: assert str(e) == 'too low'\nelse: assert False\n"
        "try: f()\nexcept ValueError: pass\nelse: assert False",
    ),
    "own exception, slow to make": (
        "class E(Exception):\n    def __init__(self, a, *, b): super().__init__(a)\ndef f(): raise E(1, b=2)",
        "try: f()\nexcept E as e: assert e.args == (1,)\nelse: assert False",
    ),
    "syntax error by name": ("def f(s): return eval(s)", "try: f('1 +')\nexcept SyntaxError: pass\nelse: assert False"),
    "an iterator of its own": (
        "class f:\n    def __init__(self, n): self.n = n\n    def __iter__(self): return self\n    def __next__(self):\n"
        "        if not self.n: raise StopIteration\n        self.n -= 1\n        return self.n",
        "assert list(f(3)) == [2, 1, 0]\nx = f(1)\nassert x.__next__() == 0\ntry: x.__next__()\nexcept StopIteration: pass\nelse: assert False\n"
        "assert next(f(0), 7) == 7",
    ),
    "stop iteration": ("def f(): return iter([])", "try: next(f())\nexcept StopIteration: pass\nelse: assert False\nassert next(f(), 5) == 5"),
    "callback": ("def f(g, xs): return [g(x) for x in xs]", "assert f(lambda x: x * 2, [1, 2]) == [2, 4]\nassert f(len, ['a', 'bc']) == [1, 2]\nassert f(str, [1]) == ['1']"),
    "nested callbacks": (
        "def f(g, n): return g(n) if n else 0",
        "def g(n): return 1 + f(g, n - 1)\nassert f(g, 12) == 12",
    ),
    "callback that raises": (
        "def f(g):\n    try: return g()\n    except KeyError as e: return e.args[0]",
        "def g(): raise KeyError('k')\nassert f(g) == 'k'\n"
        "def h(): raise ZeroDivisionError\ntry: f(h)\nexcept ZeroDivisionError: pass\nelse: assert False",
    ),
    "an exception of the test's own passes through": (
        "def f(g):\n    try: return g()\n    except KeyError: raise ValueError",
        "class Own(Exception): pass\nown = Own(1, 2)\ndef g(): raise own\ntry: f(g)\nexcept Own as e: assert e is own\n"
        "else: assert False\ndef h(): raise KeyError\ntry: f(h)\nexcept ValueError: pass\nelse: assert False",
    ),
    "iterators go in": ("def f(xs): return sum(xs)", "assert f(x * x for x in range(4)) == 14\nassert f(iter([1, 2])) == 3\nassert f(map(int, '12')) == 3"),
    "only as far as asked": (
        "def f(xs): return next(xs), next(xs)",
        "import itertools\nc = itertools.count()\nassert f(c) == (0, 1)\nassert next(c) == 2",
    ),
    "returned function": ("def f(n): return lambda x: x + n", "assert f(2)(3) == 5\ng = f(1)\nassert g(g(1)) == 3\nassert callable(g)"),
    "function of functions": ("def f(*fs):\n    def g(x):\n        for h in fs: x = h(x)\n        return x\n    return g", "assert f(abs, lambda x: x + 1)(-3) == 4"),
    "decorator": ("def f(g):\n    def h(*a): return g(*a) + 1\n    return h", "@f\ndef g(a): return a * 2\nassert g(4) == 9"),
    "class": (
        "class Stack:\n    def __init__(self, *xs): self.xs = list(xs); self.n = 0\n    def push(self, x): self.xs.append(x); return self\n"
        "    def __len__(self): return len(self.xs)\n    def __getitem__(self, i): return self.xs[i]\n"
        "    def __contains__(self, x): return x in self.xs\n    def __repr__(self): return f'Stack{tuple(self.xs)}'\n"
        "    @property\n    def top(self): return self.xs[-1]\n    @classmethod\n    def of(cls, n): return cls(*range(n))\n",
        "s = Stack(1)\ns.push(2).push(3)\nassert len(s) == 3\nassert s.top == 3\nassert s[0] == 1\nassert [*s] == [1, 2, 3]\n"
        "assert 2 in s\nassert 9 not in s\nassert repr(s) == 'Stack(1, 2, 3)'\nassert str(s) == 'Stack(1, 2, 3)'\ns.n = 5\nassert s.n == 5\n"
        "assert len(Stack.of(4)) == 4\nassert isinstance(s, Stack)\nassert not isinstance(s, list)\nassert not isinstance(3, Stack)\n"
        "assert s == s\nassert s != Stack(1, 2, 3)\nassert f'{s}' == str(s)\nassert not hasattr(s, 'nothing')\n"
        "assert getattr(s, 'nothing', 7) == 7",
    ),
    "a class that is a list": (
        "class Stack(list):\n    def push(self, x): self.append(x); return self\n    @property\n    def top(self): return self[-1]\n"
        "    @classmethod\n    def of(cls, *xs): return cls(xs)\n    def double(self): return Stack(self + self)\ndef f(s): return s",
        "s = Stack.of(1)\nassert s.push(2) is s\nassert s == [1, 2]\nassert [1, 2] == s\nassert s != [1]\nassert s == Stack.of(1, 2)\nassert s.top == 2\n"
        "assert len(s) == 2 and s and not Stack()\nassert s + [3] == [1, 2, 3]\nassert s.double() == [1, 2, 1, 2]\nassert sorted(s) == [1, 2]\n"
        "assert s < [5]\nassert f(s) is s\nassert (s, 1) == ([1, 2], 1)\nassert s.pop() == 2\nassert s == [1]",
    ),
    "a class that is a named tuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int\n    y: int = 2\ndef f(): return [P(1), {'p': P(3)}]",
        "p = P(1)\nassert p == (1, 2)\nassert p == P(1)\nassert p.x == 1\nassert p in [(1, 2)]\nassert {p: 1}[(1, 2)] == 1\nx, y = p\nassert y == 2\n"
        "assert f()[0].y == 2\nassert f() == [(1, 2), {'p': (3, 2)}]\nassert repr(p) == 'P(x=1, y=2)'",
    ),
    "an enum of numbers": (
        "import enum\nclass Level(enum.IntEnum):\n    LOW = 1\n    HIGH = 2\ndef f(x): return Level.HIGH if x else Level.LOW",
        "assert f(1) == Level.HIGH\nassert f(1) is Level.HIGH\nassert f(0) == 1\nassert f(0) < f(1)\nassert f(0).name == 'LOW'\nassert f(0).value == 1",
    ),
    "a byte-order mark": ("\ufeffdef f(): return 1", "assert f() == 1"),
    "objects go back": (
        "class Node:\n    def __init__(self, v, next=None): self.v, self.next = v, next\ndef total(n): return 0 if n is None else n.v + total(n.next)",
        "n = Node(1, Node(2))\nassert total(n) == 3\nassert n.next.next is None\nassert n.next is n.next\nn.next.v = 5\nassert total(n) == 6",
    ),
    "names": ("def f():\n    'what it does'\nimport math\nLIMIT = 5", "assert f.__name__ == 'f'\nassert f.__doc__ == 'what it does'\nassert LIMIT == 5\nassert math.pi > 3\nassert math.floor(2.5) == 2"),
    "slow but right": ("import time\ndef f():\n    time.sleep(0.3)\n    return 1", "assert f() == 1"),
    "no newline, tabs, unicode": ("def f(größe):\n\treturn größe * '✓'", "assert f(2) == '✓✓'"),
    "future": ("from __future__ import annotations\ndef f(x: Nothing) -> Nowhere: return 1", "from __future__ import annotations\nassert f(1) == 1"),
    "dataclass": ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    def twice(self): return self.x * 2", "assert P(2).twice() == 4\nassert P(3).x == 3\nassert repr(P(1)) == 'P(x=1)'"),
    "named tuple": ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)", "assert f() == (1, 2)"),
    "many": ("def f(n): return list(range(n))", "assert f(200_000) == list(range(200_000))\nfor i in range(500): assert f(1) == [0]"),
    "shared objects": ("def f():\n    a = []\n    return [a, a]", "x = f()\nx[0].append(1)\nassert x == [[1], []] or x == [[1], [1]]"),
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_honest_answers_pass(name: str, sandbox: Sandbox) -> None:
    program, test = HONEST[name]
    names = "add" if test is ADD else "total" if "total" in test else "f"
    names += "".join(f" {name}" for name in ("Stack", "P", "Level") if f"class {name}" in program)
    passes(sandbox, program, test, names)


# The test code means what it meant ----------------------------------------------------------------------------------


def test_asserts_keep_order_and_laziness(sandbox: Sandbox) -> None:
    passes(
        sandbox,
        "def f(x): return x",
        """
seen = []
def note(x):
    seen.append(x)
    return x
assert note(1) == note(1), note(99)
assert note(2) < note(3) < note(4)
assert not note(0)
assert note(0) or note(5)
assert (n := f(6)) == 6 and n == 6
assert note(7) in [note(7)], "never"
assert note(None) is None
assert True, note(98)
class Checked:
    def __private(self): return 8
    def look(self):
        assert self.__private() == 8
        return [x for x in [1] if x]
assert Checked().look()
assert (lambda: f(9))() == 9
assert seen == [1, 1, 2, 3, 4, 0, 0, 5, 7, 7, None], seen
""",
    )


def test_the_message_is_evaluated_when_an_assert_fails(sandbox: Sandbox) -> None:
    program = "def f(x): return x"
    verdict = judged(sandbox, program, "assert f(1) == 2, f('why')", "f")
    assert verdict.status is Status.FAILED
    passes(
        sandbox,
        program,
        "try:\n    assert f(1) == 2, f('why')\nexcept AssertionError as error:\n    why = error.args\nassert why == ('why',)",
    )


def test_bare_except_does_not_hide_the_end_of_the_answer(sandbox: Sandbox) -> None:
    verdict = judged(sandbox, "def f(): raise SystemExit(0)", "try:\n    f()\nexcept:\n    pass", "f")
    assert verdict.status is Status.FAILED
    assert "SystemExit" in verdict.reason
    verdict = judged(sandbox, "def f():\n    while True: pass", "try:\n    f()\nexcept:\n    pass\n", "f", seconds=0.3)
    assert verdict.status is Status.TIMEOUT


def test_setup_stays_with_the_judge(sandbox: Sandbox) -> None:
    setup = "import math\ndef helper(x):\n    return x * 2\ndef f(x):\n    pass\n"
    passes(
        sandbox,
        "def f(x): return x * 2\ndef helper(x): return 0",
        "assert f(2) == helper(2)\nassert math.pi",
        "f",
        setup,
    )
    verdict = judged(sandbox, "", "assert f(2) is None", "f", setup)  # the empty function is not the answer's
    assert verdict.status is Status.FAILED
    assert "NameError" in verdict.reason


def test_arguments_are_copies(sandbox: Sandbox) -> None:
    test = "xs = [3, 1]\nassert f(xs) == [1, 3]\nassert xs == [3, 1]"
    passes(sandbox, "def f(xs):\n    xs.sort()\n    return xs", test)


def test_what_cannot_cross_says_so(sandbox: Sandbox) -> None:
    program = "def f(x): return x"
    verdict = judged(sandbox, program, "class Own: pass\nassert f(Own()) == 1", "f")
    assert "an object of class Own cannot cross to the answer" in verdict.reason
    verdict = judged(sandbox, "def f():\n    x = []\n    x.append(x)\n    return x", "assert f() == 1", "f")
    assert "cannot cross" in verdict.reason
    verdict = judged(sandbox, "class P: pass\ndef f(): return P()", "assert f() == 5", "f")
    assert "expected 5" in verdict.reason
    assert "an object of class P, not a builtin value" in verdict.reason
    verdict = judged(sandbox, "def f(): return ' ' * (17 << 20)", "assert f() == 1", "f")
    assert "cannot cross at once" in verdict.reason


def test_modules_that_a_test_uses_are_not_the_answers(sandbox: Sandbox) -> None:
    program = "class math:\n    isclose = lambda *a: True\n    pi = 7\ndef f(): return 7"
    for test in ("assert math.isclose(f(), 1)", "assert f() == math.pi"):
        assert judged(sandbox, program, test, "f").status is Status.FAILED
    verdict = judged(sandbox, "def f(): return 1", "assert nothing == 1", "f")
    assert "NameError: name 'nothing' is not defined" in verdict.reason


# What an agent gets to read ----------------------------------------------------------------------------------------


def test_each_assert_is_a_test(sandbox: Sandbox) -> None:
    test = "def check(f):\n    assert True, 'never mind'\n    assert f(1) == 1\n    for i in (1, 2):\n        assert f(i) < 2\n    assert f(9) == 9\n\ncheck(f)\n"
    verdict = judged(sandbox, "def f(x): return x", test, "f")
    found = [(t.id, t.passed) for t in verdict.tests]
    assert found == [("assert 1, line 3", True), ("assert 2, line 5", False), ("assert 3, line 6", False)]
    assert verdict.tests[1].message == "assert f(i) < 2\n  expected < 2\n  got      2"
    assert verdict.tests[2].message.endswith("not reached")
    assert verdict.reason.startswith("line 5: assert f(i) < 2")


def test_a_wrong_value_is_explained(sandbox: Sandbox) -> None:
    verdict = judged(sandbox, "def f(x): return [x]", "assert f(3) == (\n    [4]\n)", "f")
    assert verdict.reason == "line 1: assert f(3) == (\n[4]\n)\n  expected [4]\n  got      [3]"
    verdict = judged(sandbox, "def f(x): return [x]", "assert [4] == f(3)", "f")
    assert verdict.reason.endswith("  expected [4]\n  got      [3]")
    verdict = judged(sandbox, "def f(x): return 0", "assert f(3)", "f")
    assert verdict.reason.endswith("  expected a true value\n  got      0")
    verdict = judged(sandbox, "def f(x): return 'x' * 10000", "assert not f(3)", "f")
    assert "expected a false value" in verdict.reason
    assert len(verdict.reason) < 600


def test_an_exception_is_explained_with_the_answers_own_lines(sandbox: Sandbox) -> None:
    program = "def g(x):\n    return {}[x]\n\ndef f(x):\n    print('here')\n    return g(x)\n"
    verdict = judged(sandbox, program, "assert f(2) == 1", "f")
    assert verdict.reason == (
        "line 1: assert f(2) == 1\n  KeyError: 2\n    program.py:6 in f: return g(x)\n    program.py:2 in g: return {}[x]"
    )
    assert verdict.stdout == "here\n"
    verdict = judged(sandbox, "x = 1\ndef f(:\n", "assert f(2) == 1", "f")
    assert "SyntaxError: invalid syntax (program.py, line 2)" in verdict.reason


def test_output_and_place_of_what_ran_too_long(sandbox: Sandbox) -> None:
    program = "print('loaded')\ndef f(x):\n    while x: pass\n    return x\n"
    verdict = judged(sandbox, program, "assert f(0) == 0\nassert f(1) == 1", "f", seconds=0.3)
    assert verdict.status is Status.TIMEOUT
    assert "line 2: assert f(1) == 1" in verdict.reason
    assert [t.passed for t in verdict.tests] == [True, False]
    assert verdict.stdout == "loaded\n"


# Descriptions, reports, decisions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": []}, "task t: verifier field 'names'"),
        ({"test": "def ("}, "task t: the test does not compile"),
        ({"setup": "\0"}, "task t: the test does not compile"),
        ({"test": "(" * 5000}, "task t: the test does not compile"),
        ({"magic": 1}, "task t: verifier field 'magic'"),
        ({"seconds": 1e9}, "task t: verifier field 'seconds'"),
    ],
)
def test_a_malformed_description_is_an_input_error(change: dict[str, object], message: str) -> None:
    task = Task(id="t", verifier={"kind": "call", "test": ADD, "names": ["add"], **change})
    with pytest.raises(InputError, match=message):
        verifier_for(task, Path())


def test_prefix_and_suffix_make_the_program(sandbox: Sandbox) -> None:
    verifier = {"kind": "call", "test": ADD, "names": ["add"]}
    task = Task(id="t", prefix="def add(a, b):\n", suffix="    return c\n", verifier=verifier)
    (verdict,) = verify_all([(task, Answer(task_id="t", completion="    c = a + b\n"))], sandbox, Path())
    assert verdict.passed
    (verdict,) = verify_all([(task, Answer(task_id="t", diff="---"))], sandbox, Path())
    assert verdict.status is Status.REFUSED


def test_names_that_a_test_lacks() -> None:
    code = compile_test(
        "import re\ndef check(c):\n    x = helper(len(c))\n    return [y for y in x] + re.findall(z, z)\ncheck(f)\ny = 1\n",
        "def helper(x): ...",
        "t",
    )
    assert code.missing == {"f", "z"}


EXITED = Outcome(end="exited", exit_code=0)
KILLED = Outcome(end="signal", signal=9)


@pytest.mark.parametrize(
    ("judge", "candidate", "report", "status"),
    [
        (EXITED, KILLED, CallReport(ready=True, end="passed"), Status.PASSED),
        (EXITED, KILLED, CallReport(ready=True, end="passed", seconds=2.0), Status.TIMEOUT),
        (EXITED, Outcome(end="processes"), CallReport(ready=True, end="passed"), Status.REFUSED),
        (EXITED, KILLED, CallReport(ready=True, end="failed"), Status.FAILED),
        (EXITED, EXITED, CallReport(ready=True, end="gone"), Status.FAILED),
        (EXITED, KILLED, CallReport(ready=True, end="gone"), Status.FAILED),
        (EXITED, Outcome(end="signal", signal=11), CallReport(ready=True, end="gone"), Status.CRASHED),
        (EXITED, Outcome(end="signal", signal=24), CallReport(ready=True, end="gone"), Status.TIMEOUT),
        (EXITED, Outcome(end="memory"), CallReport(ready=True, end="gone"), Status.MEMORY),
        (KILLED, Outcome(end="memory"), CallReport(ready=True), Status.MEMORY),
        (KILLED, Outcome(end="disk"), CallReport(ready=True), Status.REFUSED),
        (Outcome(end="timeout"), KILLED, CallReport(ready=True), Status.TIMEOUT),
        (Outcome(end="memory"), KILLED, CallReport(ready=True), Status.MEMORY),
        (Outcome(end="signal", signal=11), KILLED, CallReport(ready=True), Status.CRASHED),
        (KILLED, KILLED, CallReport(), Status.CRASHED),  # a worker that was brought down twice
        (Outcome(end="exited", exit_code=1), KILLED, CallReport(ready=True), Status.FAILED),
        (Outcome(end="exited", exit_code=125), KILLED, CallReport(), Status.HARNESS_ERROR),
        (EXITED, Outcome(end="exited", exit_code=125), CallReport(ready=True, end="absent"), Status.HARNESS_ERROR),
    ],
)
def test_only_what_comes_before_the_answer_is_our_fault(
    judge: Outcome, candidate: Outcome, report: CallReport, status: Status
) -> None:
    assert decide(judge, candidate, report, 1.0)[0] is status


def test_no_end_record_is_no_pass() -> None:
    for data in (b"", b"\xff", b'{"ready": true}\n', b'{"ready": true}\n{"end": "pas', b"[" * 9999):
        assert read_call_report(data).end == ""


# The judge's side of the wire against a liar -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote() -> Iterator[ModuleType]:
    """The judge's module as it is loaded in the jail: beside a module named `wire`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wire", wire)
        import codemill.tasks.inside.remote as module

        yield module


def exchanged(remote: ModuleType, data: bytes) -> Any:
    """What a request gives when the other side has sent `data` and is gone."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        connection = remote.Connection(wire.Channel(ours.fileno()))
        return connection, connection.ask("call", 0, 1)


def framed(*bodies: bytes) -> bytes:
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


@pytest.mark.parametrize(
    ("data", "over"),
    [
        (b"", "gone"),
        (b"\x00\x00", "gone"),
        (b"\xff\xff\xff\xff", "garbage"),
        (framed(b"[]"), "garbage"),
        (framed(b"[0]"), "garbage"),
        (framed(b"[0,1,2]"), "garbage"),
        (framed(b'["0",1]'), "garbage"),
        (framed(b"[4,1]"), "garbage"),
        (framed(b"[2,0,[]]"), "garbage"),  # no such callback
        (framed(b"[4,0]"), "garbage"),  # nothing was raised
        (framed(b"[1,1,[],1,1]"), "garbage"),
        (framed(b'[1,{"type":"int"},[],"",""]'), "garbage"),
        (framed(b'[1,{"type":"SystemExit"},[],"",""]'), "left"),
        (framed(b'[0,{"object":[0,"function"]}]'), "garbage"),
        (framed(b'[0,{"object":[0,"magic","X"]}]'), "garbage"),
        (framed(b'[0,{"object":[[],"class","X"]}]'), "garbage"),
        (framed(b'[0,{"object":[0,"class",7]}]'), "garbage"),
        (framed(b'[0,{"exception":[0,"X","int"]}]'), "garbage"),
        (framed(b'[0,{"exception":[0,"X\\u0000","ValueError"]}]'), "garbage"),
        (framed(b'[0,{"remote":0}]'), "garbage"),
    ],
)
def test_what_is_no_reply_ends_the_run(remote: ModuleType, data: bytes, over: str) -> None:
    with pytest.raises(remote.Ended) as caught:
        exchanged(remote, data)
    connection = caught.value.__traceback__.tb_next.tb_frame.f_locals["connection"]  # type: ignore[union-attr]
    assert connection.over == over
    with pytest.raises(remote.Ended):
        connection.ask("call", 0)


@pytest.mark.parametrize(
    "expression", ["x - 5", "5 - x", "x + 5", "x == 5", "5 == x", "x != 5", "x < 5", "x in [5]", "hash(x)"]
)
def test_what_claims_to_hold_a_value_is_not_shown_the_operand(remote: ModuleType, expression: str) -> None:
    """A liar says that its object is a value, and sends objects whenever it is asked for what they hold."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        bodies = [b'[0,{"object":[%d,"value","Liar"]}]' % number for number in range(9)]
        theirs.sendall(framed(*bodies))
        connection = remote.Connection(wire.Channel(ours.fileno()))
        with pytest.raises(TypeError, match="holds no builtin value"):
            eval(expression, {"x": connection.ask("call", 0)})  # noqa: S307
        ours.close()
        told = b""
        while data := theirs.recv(4096):
            told += data
    assert b"5" not in told


REPLIES = st.lists(
    st.sampled_from([0, 1, 2, "", None, [], ["x"], 1.5])
    | st.sampled_from(["ValueError", "OSError", "UnicodeDecodeError", "ExceptionGroup", "SystemExit", "int"]).map(
        lambda name: {"type": name}
    )
    | st.sampled_from(["function", "class", "generator", "module", "object"]).map(
        lambda kind: {"object": [3, kind, "os"]}
    )
    | st.sampled_from(["ValueError", "BaseException", "OSError"]).map(lambda name: {"exception": [4, "Own", name]}),
    max_size=6,
)


@given(st.lists(REPLIES, max_size=3), st.binary(max_size=5))
@settings(max_examples=300, deadline=None)
def test_arbitrary_replies_never_break_the_judge(remote: ModuleType, messages: list[list[Any]], rest: bytes) -> None:
    """A request ends with a value, an `Exception` as an answer may raise one, or the end of the run; it never hangs."""
    encoder = wire.Codec(repr, {})
    raised: BaseException | None = None
    value: Any = None
    try:
        _, value = exchanged(remote, framed(*map(encoder.dumps, messages)) + rest)
    except (remote.Ended, Exception) as error:
        raised = error
        str(error)
    allowed = ("Ended", "ValueError", "OSError", "RuntimeError", "UnicodeDecodeError", "ExceptionGroup", "Own")
    assert raised is None or type(raised).__name__ in allowed
    assert isinstance(value, remote.Remote | type) or value in (0, 1, 2, "", None, [], ["x"], 1.5)


# The benchmarks ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not HUMANEVAL.exists(), reason=f"{HUMANEVAL} is not there")
def test_humaneval_solutions_pass_and_empty_answers_fail(sandbox: Sandbox) -> None:
    tasks = read_humaneval(HUMANEVAL)
    assert {task.verifier["kind"] for task in tasks} == {"call"}
    assert [t.id for t in tasks if t.verifier["setup"]] == ["HumanEval/32", "HumanEval/38", "HumanEval/50"]
    solved = [(one, Answer(task_id=one.id, completion=one.gold)) for one in tasks]
    empty = [(one, Answer(task_id=one.id, completion="    pass\n", sample=1)) for one in tasks]
    verdicts = list(verify_all([*solved, *empty], sandbox, Path()))
    assert len(verdicts) == 328
    assert not [(v.task_id, v.status, v.reason) for v in verdicts if v.passed != (v.sample == 0)]
    assert all(v.tests and all(t.passed for t in v.tests) for v in verdicts if v.passed)


@pytest.mark.skipif(not MBPP.exists(), reason=f"{MBPP} is not there")
def test_mbpp_solutions_pass_and_wrong_answers_fail(sandbox: Sandbox) -> None:
    tasks, _ = load_tasks(f"mbpp:{MBPP}")
    assert len(tasks) == 427
    solved = [(one, Answer(task_id=one.id, completion=one.gold)) for one in tasks]
    wrong = "class Odd:\n    pass\n"
    for task in tasks:
        solved.append((task, Answer(task_id=task.id, completion=wrong + "".join(
            f"def {name}(*a): return Odd()\n" for name in task.verifier["names"]
        ), sample=1)))  # fmt: skip
    assert [t.verifier["setup"] for t in tasks if t.id == "MBPP/596"] == ["import sys"]
    verdicts = list(verify_all(solved, sandbox, Path()))
    assert not [(v.task_id, v.status, v.reason) for v in verdicts if v.passed != (v.sample == 0)]


def test_mbpp_answers_are_whole_programs_that_do_not_see_the_tests(tmp_path: Path, sandbox: Sandbox) -> None:
    problem = (
        '[{"task_id": 7, "prompt": "Add.", "code": "def add(a, b):\\n  return a + b", "test_imports": ["import math"], '
    )
    problem += '"test_list": ["assert add(1, 2) == 3", "assert math.isclose(add(1, 1.5), 2.5)"]}]'
    (tmp_path / "sanitized-mbpp.json").write_text(problem)
    (task,) = read_mbpp(tmp_path)
    assert task.id == "MBPP/7"
    assert "assert add(1, 2) == 3" in task.prefix
    look = "def add(a, b):\n    print(__doc__)\n    return a + b\n"
    (verdict,) = verify_all([(task, Answer(task_id=task.id, completion=look))], sandbox, tmp_path)
    assert verdict.passed
    assert verdict.stdout == "None\nNone\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "not a list"),
        ("[]", "not a list"),
        ("[1]", "problem 1: field 'task_id'"),
        ('[{"task_id": 1, "prompt": "", "code": "", "test_imports": [], "test_list": [1]}]', "must hold text"),
        ('[{"task_id": 1, "prompt": "", "code": "(", "test_imports": [], "test_list": ["f"]}]', "is not Python"),
        ('[{"task_id": 1, "prompt": "", "code": "x = 1", "test_imports": [], "test_list": ["f"]}]', "use nothing"),
    ],
)
def test_a_malformed_mbpp_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_mbpp(tmp_path / "m.json")
