"""A small repository with every kind of test, and helpers to build and verify on it."""

from __future__ import annotations

import compileall
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from codemill.core.artifact import write_manifest
from codemill.tasks.environment import Environment, environment_folder

MIT = """MIT License

Copyright (c) 2024 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

WORDS = '''"""Words."""

from shapes.stack import Stack


def longest(words):
    """The longest word, the first of equals.

    >>> longest(["a", "ccc", "bbb"])
    'ccc'
    """
    best = ""
    for word in words:
        if len(word) > len(best):
            best = word
    return best


def squeeze(text, limit):
    parts = text.split()
    joined = " ".join(parts)
    if len(joined) > limit:
        joined = joined[: limit - 1] + "~"
    return joined


def balanced(text):
    """Whether brackets match."""
    stack = Stack()
    for letter in text:
        if letter == "(":
            stack.push(letter)
        elif letter == ")" and not stack.pop():
            return False
    return not stack.items


def untested(text):
    cleaned = text.strip()
    return cleaned.lower().replace("-", "_")


def shouted(text):
    """Never looked at by the test that calls it."""
    loud = text.upper()
    return loud + "!" * len(loud)
'''

STACK = '''"""A stack."""


class Stack:
    """Last in, first out."""

    def __init__(self):
        self.items = []
        self.high = 0

    def push(self, item):
        """Put one on top.

        >>> stack = Stack()
        >>> stack.push(3)
        >>> stack.items
        [3]
        """
        self.items.append(item)
        self.high = max(self.high, len(self.items))

    def pop(self):
        if not self.items:
            return None
        top = self.items[-1]
        del self.items[-1]
        return top
'''

NUMBERS = '''"""Numbers."""


def total(values, start=0):
    """Sum with a start.

    >>> total([1, 2, 3], start=4)
    10
    """
    result = start
    for value in values:
        result += value
    return result


def clamp(value, low, high):
    """
    >>> clamp(5, 0, 3), clamp(-1, 0, 3), clamp(2, 0, 3)
    (3, 0, 2)
    """
    if value < low:
        return low
    if value > high:
        return high
    return value


def digits(number):
    """
    >>> digits(305)
    [3, 0, 5]
    """
    found = []
    for letter in str(number):
        found.append(int(letter))
    return found
'''

# The body of `squeeze` once more, indented and wrapped in another way, under another name.
COPY = '''"""Old names."""


class Old:
    def shorten(self, text, limit):
            parts = text.split()

            joined = " ".join(
                parts)
            if len(joined) > limit:
                # too long
                joined = joined[: limit - 1] + "~"
            return joined

    def name(self):
        return "old"
'''

GUIDE = """# Guide

How `squeeze` works:

    parts = text.split()
    joined = " ".join(parts)
    if len(joined) > limit:
        joined = joined[: limit - 1] + "~"
    return joined

That is all.
"""

TEST_WORDS = """import pytest

from shapes.words import balanced, longest, shouted, squeeze


@pytest.mark.parametrize(("text", "limit", "wanted"), [("a  b", 9, "a b"), ("abc def", 5, "abc ~")])
def test_squeeze(text, limit, wanted):
    assert squeeze(text, limit) == wanted


def test_balanced(brackets):
    assert balanced(brackets)
    assert not balanced(brackets + ")")


def test_longest():
    assert longest(["a", "bb"]) == "bb"


def test_shouted():
    shouted("quiet")


@pytest.mark.skip(reason="not today")
def test_skipped():
    assert squeeze("a", 1)


@pytest.mark.xfail
def test_expected_to_fail():
    assert squeeze("a", 1) == "b"


def test_fails():
    assert squeeze("a", 1) == "c"
"""

TEST_STACK = """import unittest

from shapes.stack import Stack


class StackTests(unittest.TestCase):
    def setUp(self):
        self.stack = Stack()

    def test_pop(self):
        self.stack.push(1)
        self.stack.push(2)
        self.assertEqual(self.stack.pop(), 2)
        self.assertEqual(self.stack.pop(), 1)
        self.assertIsNone(self.stack.pop())

    def test_high(self):
        for item in range(3):
            self.stack.push(item)
        self.assertEqual(self.stack.high, 3)
"""

CONFTEST = """import pytest


@pytest.fixture
def brackets():
    return "(a(b))"
"""

PROJECT = """[project]
name = "shapes"
version = "1.0"
license = "MIT"
"""


def repository_files(layout: str) -> dict[str, str]:
    """Texts by path, the package under `src/` or at the top."""
    top = "src/" if layout == "src" else ""
    return {
        "pyproject.toml": PROJECT,
        "LICENSE": MIT,
        "guide.md": GUIDE,
        f"{top}shapes/__init__.py": "",
        f"{top}shapes/words.py": WORDS,
        f"{top}shapes/stack.py": STACK,
        f"{top}shapes/numbers.py": NUMBERS,
        f"{top}shapes/old.py": COPY,
        "tests/conftest.py": CONFTEST,
        "tests/test_words.py": TEST_WORDS,
        "tests/test_stack.py": TEST_STACK,
    }


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def installed_pytest() -> Environment:
    """pytest as it is installed here, as an environment of the task room: no package index is asked."""
    identity = "pytest-of-this-machine"
    folder = environment_folder(identity)
    for name in ("pytest", "pluggy", "iniconfig", "packaging", "pygments"):
        for file in metadata.files(name) or []:
            source = Path(str(file.locate()))
            if ".." not in file.parts and source.suffix != ".pyc":
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / file)
    compileall.compile_dir(folder, quiet=2)
    write_manifest(folder, kind="environment", config={}, facts={"installed": []})
    return Environment(identity, folder, ())
