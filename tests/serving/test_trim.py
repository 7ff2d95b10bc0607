"""The cut of generated middles: a table of golden cases, and that pieces and whole texts are cut alike."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.serving.brackets import Brackets, looks_like_python
from codemill.serving.trim import Trimmer, trim

CURSOR = "‸"


class Case(NamedTuple):
    title: str
    path: str
    prefix: str
    suffix: str
    answer: str
    shown: str


def read_cases(file: Path) -> list[Case]:
    """`== title | path`, the source with its cursor, `-- answer`, the answer, `-- shown`, what is shown."""
    cases = []
    for block in file.read_text(encoding="utf-8").replace("␍", "\r").split("== ")[1:]:
        head, _, body = block.removesuffix("\n").partition("\n")
        title, _, path = head.partition(" |")
        source, _, rest = body.partition("\n-- answer\n")
        answer, _, shown = rest.partition("\n-- shown\n")
        assert source.count(CURSOR) == 1, title
        prefix, _, suffix = source.partition(CURSOR)
        cases.append(Case(title, path.strip(), prefix, suffix, answer, shown))
    return cases


CASES = [case for file in sorted((Path(__file__).parent / "golden").glob("*.txt")) for case in read_cases(file)]


def test_there_are_cases() -> None:
    assert len(CASES) >= 35


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_golden(case: Case) -> None:
    shown = trim(case.answer, case.prefix, case.suffix, case.path)
    assert shown == case.shown
    assert trim(shown, case.prefix, case.suffix, case.path) == shown  # cutting again changes nothing


@given(case=st.sampled_from(CASES), data=st.data())
def test_pieces_are_cut_like_the_whole(case: Case, data: st.DataObject) -> None:
    trimmer, left, shown = Trimmer(case.prefix, case.suffix, case.path), case.answer, ""
    while left and not trimmer.done:
        size = data.draw(st.integers(1, len(left)))
        shown += trimmer.feed(left[:size])
        left = left[size:]
        assert case.shown.startswith(shown)  # what was shown is never taken back
    assert shown + trimmer.rest() == case.shown


@given(prefix=st.text(alphabet="ab (){}[]\n'\"#:", max_size=40), suffix=st.text(alphabet="ab (){}[]\n", max_size=40),
       answer=st.text(alphabet="abc (){}[]\n'\"#/:", max_size=80))  # fmt: skip
def test_what_is_shown_begins_the_answer(prefix: str, suffix: str, answer: str) -> None:
    shown = trim(answer, prefix, suffix)
    assert answer.startswith(shown.rstrip("\n")) or answer.startswith(shown)
    if prefix.rpartition("\n")[2].strip() and suffix.partition("\n")[0].strip():
        assert "\n" not in shown


def test_the_end_is_known_before_the_answer_ends() -> None:
    trimmer = Trimmer("def f(x):\n    ", "\n", "a.py")
    assert trimmer.feed("return x\n") == "return x"
    assert not trimmer.done
    assert trimmer.feed("\n\ndef g") == ""
    assert trimmer.feed("():\n") == ""
    assert trimmer.done


def test_an_indentation_that_the_editor_asks_for() -> None:
    text = "a()\n    b()\n"
    assert trim(text, "if x:\n        ", "\n", "a.py", min_indent=0) == "a()"
    assert trim("a()\nb()", "x\n", "", "a.py", min_indent=2) == "a()"


def test_the_language_of_a_text() -> None:
    assert looks_like_python("import os\n\ndef f():\n    pass\n")
    assert not looks_like_python("#include <a>\nint f() {\n  if (x)\n    return 1;\n}\n")
    assert looks_like_python("int x;", "a.py")


def test_brackets_of_a_text() -> None:
    scan = Brackets(python=True)
    scan.feed("f(a[1], '(', \"]\")  # (\n{ '''\n]\n''' (")
    assert scan.open == ["{", "("]
    assert scan.unmatched == []
    scan.feed("]])")
    assert scan.unmatched == ["]", "]"]
    assert scan.open == ["{"]
