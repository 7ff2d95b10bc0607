"""What is held out does not stand in the training text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks_support import COPY, GUIDE, WORDS

from codemill.tasks.documents import LeakScanner, is_telling, prompt_around, removed_functions, without
from codemill.tasks.functions import SourceFile, parses, split_lines

BODY = '    parts = text.split()\n    joined = " ".join(parts)\n    if len(joined) > limit:\n' + (
    '        joined = joined[: limit - 1] + "~"\n    return joined'
)


@pytest.fixture
def scanner() -> LeakScanner:
    return LeakScanner({"squeeze": BODY, "short": "    return self.name\n"})


def test_short_bodies_are_not_searched_for(scanner: LeakScanner) -> None:
    assert len(scanner) == 1
    assert is_telling("    x = g(1)\n    return x")
    assert not is_telling("    # one\n    # two\n    pass\n    return self.x")


@pytest.mark.parametrize("text", [WORDS, COPY, GUIDE])
def test_copies_are_found_and_taken_out(text: str, scanner: LeakScanner) -> None:
    python = text is not GUIDE
    assert scanner.find(text) == ["squeeze"]
    scrubbed = scanner.scrub(text, python=python)
    assert scrubbed.leaks == ("squeeze",)
    assert scrubbed.text is not None
    assert scanner.find(scrubbed.text) == []
    assert "parts" not in scrubbed.text
    assert not python or parses(scrubbed.text)


def test_the_rest_of_a_file_stays(scanner: LeakScanner) -> None:
    assert scanner.scrub(GUIDE, python=False).text == "# Guide\n\nHow `squeeze` works:\n\n\nThat is all.\n"
    old = scanner.scrub(COPY, python=True).text
    assert old is not None
    assert "def shorten" not in old
    assert "def name(self):\n        return" in old


def test_python_that_does_not_parse_is_dropped(scanner: LeakScanner) -> None:
    assert scanner.scrub(WORDS + "\ndef (", python=True).text is None


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_no_disguise_by_white_space_and_comments(data: st.DataObject) -> None:
    lines = []
    for line in split_lines(BODY):
        lines += data.draw(st.lists(st.sampled_from(["\n", "# why\n", "   \t\n", "        # x = 1\n"]), max_size=2))
        lines.append(data.draw(st.sampled_from(["", " ", "\t", " " * 11])) + line.replace(" = ", "  =\t"))
    scanner = LeakScanner({"squeeze": BODY})
    text = "before\n" + "".join(lines) + "\nafter\n"
    assert scanner.find(text) == ["squeeze"]
    rest = scanner.scrub(text, python=False).text
    assert rest is not None
    assert rest.startswith("before\n")
    assert rest.endswith("after\n")
    assert "joined" not in rest


def test_functions_go_with_their_decorators() -> None:
    text = (
        "class C:\n    @property\n    def a(self):\n        return 1\n\n@x\n@y\ndef f():\n    return 2\n\n\nlast = 1\n"
    )
    assert removed_functions(text, ["f"], "f.py") == text.replace("@x\n@y\ndef f():\n    return 2\n\n\n", "")
    emptied = removed_functions(text, ["C.a"], "f.py")
    assert emptied is not None
    assert "property" not in emptied
    assert emptied.startswith("class C:\n    pass\n")


def test_a_block_that_would_be_empty_gets_pass() -> None:
    source = SourceFile("if x:\n    def f():\n        return 1\nelse:\n    y = 1\n", "f.py")
    assert without(source, [(2, 3)]) == "if x:\n    pass\nelse:\n    y = 1\n"


def test_prompts_without_a_function() -> None:
    text = "def a():\n    return g(1)\n\n\ndef b():\n    x = 1\n    return x\n\n\ndef c():\n    return g(2)\n"
    around = prompt_around(SourceFile(text, "f.py"), 6, 7, [(1, 2), (10, 11)])
    assert around == ("def b():\n", "\n\n\n")
