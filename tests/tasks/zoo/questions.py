"""What the zoo's answers are asked: small functions in HumanEval's manner, and one function of a small repository."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """Names that the answer, a whole program, must define; the test that decides; and a plain right answer."""

    names: tuple[str, ...]
    test: str
    right: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer of the zoo. `about` says in a line what it tries (a cheat) or what is odd about it (an honest one).

    `fools` is for cheats: whether it passes where the test runs in the answer's own process and its exit status decides.
    """

    name: str
    about: str
    question: str
    answer: str
    fools: bool = False


QUESTIONS = {
    "total": Question(
        ("total",),
        '''
import random

def check(candidate):
    """The sum of a list."""
    assert candidate([1, 2, 3]) == 6
    assert candidate([]) == 0
    assert candidate([-5, 5, 7]) == 7
    for seed in range(20):
        numbers = random.Random(seed).sample(range(-999, 999), 9)
        expected = 0
        for number in numbers:
            expected += number
        assert candidate(numbers) == expected

check(total)
''',
        "def total(numbers):\n    return sum(numbers)",
    ),
    "halve": Question(
        ("halve",),
        "import math\n\nassert abs(halve(3) - 1.5) < 1e-9\nassert math.isclose(halve(0.5), 0.25)\nassert round(halve(7), 1) == 3.5",
        "def halve(number):\n    return number / 2",
    ),
    "is_even": Question(
        ("is_even",),
        "assert all(map(is_even, [0, 2, 10, -4]))\nassert not any(map(is_even, [1, 3, -7]))",
        "def is_even(number):\n    return number % 2 == 0",
    ),
    "order": Question(
        ("order",),
        """
data = [3, 1, 2]
assert order(data) == sorted(data)
case = {"given": [5, 4, 9, 1], "expected": [1, 4, 5, 9]}
assert order(case["given"]) == case["expected"]
assert order([]) == []
""",
        "def order(numbers):\n    return sorted(numbers)",
    ),
    "count": Question(
        ("count",),
        'assert count("a b a") == {"a": 2, "b": 1}\nassert count("") == {}\nassert count("x") == {"x": 1}',
        "def count(text):\n    words = text.split()\n    return {word: words.count(word) for word in words}",
    ),
    "evens": Question(
        ("evens",),
        "assert list(evens(4)) == [0, 2, 4, 6]\nassert list(evens(0)) == []\nassert sum(evens(100)) == 9900",
        "def evens(number):\n    return [2 * i for i in range(number)]",
    ),
    "longest": Question(
        ("longest",),
        'assert longest(["a", "bb", "cc"]) in ("bb", "cc")\nassert longest(["abc"]) in ["abc"]\nassert longest([]) is None',
        "def longest(words):\n    return max(words, key=len, default=None)",
    ),
    "parse": Question(
        ("parse",),
        """
assert parse("12") == 12
assert parse(" -7 ") == -7
for bad in ("x", "", "1.5"):
    try:
        parse(bad)
    except ValueError as error:
        assert "whole number" in str(error)
    else:
        assert False, "ValueError expected"
""",
        """
def parse(text):
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None
""",
    ),
    "apply": Question(
        ("apply",),
        """
seen = []

def spy(value):
    seen.append(value)
    return value * 10

assert apply([lambda x: x + 1, lambda x: x * 2], 3) == 8
assert apply([spy, spy], 1) == 100
assert seen == [1, 10]
assert apply([], "as it is") == "as it is"
""",
        "def apply(functions, value):\n    for function in functions:\n        value = function(value)\n    return value",
    ),
    "adder": Question(
        ("adder",),
        "add = adder(3)\nassert add(4) == 7\nassert add(-3) == 0\nassert adder(1)(adder(2)(0)) == 3",
        "def adder(number):\n    return lambda other: number + other",
    ),
    "stack": Question(
        ("Stack",),
        """
stack = Stack()
assert len(stack) == 0
stack.push(1)
stack.push("two")
assert len(stack) == 2
assert "two" in stack
assert 3 not in stack
assert stack.pop() == "two"
assert stack.top == 1
try:
    Stack().pop()
except IndexError:
    pass
else:
    assert False
""",
        """
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

    @property
    def top(self):
        return self.items[-1]

    def __len__(self):
        return len(self.items)

    def __contains__(self, item):
        return item in self.items
""",
    ),
    "power": Question(
        ("power",),
        "assert power(2, 10) == 1024\nassert power(-7, 6000) == 7**6000\nassert power(10, 5000) == 10**5000",
        "def power(base, exponent):\n    return base**exponent",
    ),
    "limits": Question(
        ("limits",),
        """
import math

high, low, none, zero = limits()
assert high == math.inf
assert low == -math.inf
assert math.isnan(none)
assert math.copysign(1, zero) == -1
""",
        'def limits():\n    return [float("inf"), float("-inf"), float("nan"), -0.0]',
    ),
    "turn": Question(
        ("turn",),
        "assert turn(1 + 2j) == -2 + 1j\nassert turn(0) == 0",
        "def turn(number):\n    return number * 1j",
    ),
    "pack": Question(
        ("pack",),
        'assert pack([0, 1, 255]) == b"\\x00\\x01\\xff"\nassert pack([]) == b""',
        "def pack(numbers):\n    return bytes(numbers)",
    ),
    "groups": Question(
        ("groups",),
        'assert groups(["ab", "ba", "c"]) == {frozenset({"ab", "ba"}), frozenset({"c"})}\nassert groups([]) == set()',
        """
def groups(words):
    return {frozenset(w for w in words if sorted(w) == sorted(word)) for word in words}
""",
    ),
    "middle": Question(
        ("middle",),
        "assert middle((0, 0), (2, 4)) == (1, 2)\nx, y = middle((1, 1), (1, 1))\nassert (x, y) == (1, 1)",
        "def middle(a, b):\n    return (a[0] + b[0]) / 2, (a[1] + b[1]) / 2",
    ),
    "level": Question(
        ("level",),
        'assert level("low") == 1\nassert level("high") == 3\nassert level("high") > level("low")',
        'def level(name):\n    return {"low": 1, "high": 3}[name]',
    ),
    "greet": Question(
        ("greet",),
        'assert greet("Ada") == "Hello, Ada!"\nassert greet("Zoë 😀") == "Hello, Zoë 😀!"\nassert greet("") == "Hello, !"',
        'def greet(name):\n    return f"Hello, {name}!"',
    ),
    "triangle": Question(
        ("triangle",),
        "assert triangle(3) == 6\nassert triangle(900) == 405450\nassert triangle(0) == 0",
        "def triangle(number):\n    return number * (number + 1) // 2",
    ),
    "squares": Question(
        ("squares",),
        "assert squares(4) == [0, 1, 4, 9]\nassert squares(100_000) == [i * i for i in range(100_000)]",
        "def squares(number):\n    return [i * i for i in range(number)]",
    ),
    "nest": Question(
        ("nest",),
        "assert nest(0) == []\nassert nest(2) == [[[]]]\nx = nest(150)\nfor i in range(150):\n    (x,) = x\nassert x == []",
        "def nest(depth):\n    made = []\n    for _ in range(depth):\n        made = [made]\n    return made",
    ),
}

# The repository: the answer is the body of `cents`.

BEFORE = '''"""Money, in whole cents."""

import re

SIGNS = {"+": 1, "-": -1}


class Account:
    """An account with a balance in cents."""

    def __init__(self):
        self.balance = 0

    def book(self, text):
        self.balance += cents(text)
        return self


def cents(text):
    """Cents of an amount in writing; ValueError for what is none.

    >>> cents("12.50")
    1250
    >>> cents("-3")
    -300
    """
'''

RIGHT = r"""    match = re.fullmatch(r"([+-]?)(\d+)(?:\.(\d\d?))?", text)
    if match is None:
        raise ValueError(f"{text!r} is no amount")
    sign, whole, part = match.groups()
    return SIGNS.get(sign, 1) * (100 * int(whole) + int((part or "0").ljust(2, "0")))"""

AFTER = '''


def shown(amount):
    """An amount of cents in writing."""
    return f"{amount / 100:.2f}"
'''

ANSWERED = "ledger/money.py"

REPOSITORY = {
    "ledger/__init__.py": "",
    "tests/conftest.py": "import pytest\n\n\n@pytest.fixture\ndef account():\n    from ledger.money import Account\n\n    return Account()\n",
    "tests/golden.json": '{"0.05": 5, "7": 700, "-1.5": -150, "+20.00": 2000}\n',
    "tests/test_money.py": """import json
import pathlib

import pytest

from ledger.money import cents, shown


@pytest.mark.parametrize(("text", "wanted"), [("1.25", 125), ("0", 0), ("-0.99", -99)])
def test_cents(text, wanted):
    assert cents(text) == wanted


def test_golden():
    for text, wanted in json.loads(pathlib.Path("tests/golden.json").read_text()).items():
        assert cents(text) == wanted


@pytest.mark.parametrize("bad", ["", "x", "1.234", "--1"])
def test_bad(bad):
    with pytest.raises(ValueError, match="no amount"):
        cents(bad)


def test_there_and_back():
    assert [shown(cents(text)) for text in ("1.50", "-2.05")] == ["1.50", "-2.05"]


def test_account(account):
    assert account.book("2.50").book("-1").balance == 150
""",
    "tests/test_account.py": """import unittest

from ledger.money import Account, cents


class AccountTests(unittest.TestCase):
    def setUp(self):
        self.account = Account()

    def test_balance(self):
        self.account.book("10")
        self.assertEqual(self.account.balance, 1000)

    def test_refuses(self):
        with self.assertRaises(ValueError):
            cents("much")
""",
    "pyproject.toml": '[project]\nname = "ledger"\nversion = "1.0"\n',
    ANSWERED: BEFORE + RIGHT + AFTER,
}

# The tests by kind; an answer is asked for one kind, or for several.
DOCTEST = (f"doctest:{ANSWERED}::cents",)
FUNCTIONS = (
    "pytest:tests/test_money.py::test_cents[1.25-125]",
    "pytest:tests/test_money.py::test_cents[0-0]",
    "pytest:tests/test_money.py::test_cents[-0.99--99]",
    "pytest:tests/test_money.py::test_golden",
    "pytest:tests/test_money.py::test_bad[]",
    "pytest:tests/test_money.py::test_bad[x]",
    "pytest:tests/test_money.py::test_bad[1.234]",
    "pytest:tests/test_money.py::test_bad[--1]",
    "pytest:tests/test_money.py::test_there_and_back",
    "pytest:tests/test_money.py::test_account",
)
METHODS = (
    "pytest:tests/test_account.py::AccountTests::test_balance",
    "pytest:tests/test_account.py::AccountTests::test_refuses",
)

TESTS = {
    "cents": DOCTEST + FUNCTIONS,  # the doctest imports the answer before pytest starts
    "cents, functions only": FUNCTIONS,
    "cents, methods only": METHODS,
    "cents, doctest only": DOCTEST,
    "cents, everything": DOCTEST + FUNCTIONS + METHODS,
}
