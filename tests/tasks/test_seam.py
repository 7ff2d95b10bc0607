"""Taking a repository apart, and the parts of what joins it again that need no jail."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tasks_support import write_files

from codemill.core.errors import InputError
from codemill.tasks.harness import INSIDE
from codemill.tasks.isolated import find_seam, without_expected_output


def test_expected_output_is_blanked_in_its_place() -> None:
    text = (
        'def f(x):\n    r"""Text 3.\n\n    >>> f(1)\n    3\n    >>> for i in f(2):\n    ...     print(i)\n    4\n'
        '    5  \n\n    Behind.\n    >>> f(3)\r\n    6\n    """\n    s = "no 3"\n'
    )
    found = without_expected_output(text, "m.py")
    assert len(found) == len(text)
    assert found.count("\n") == text.count("\n")
    assert ast.get_docstring(ast.parse(found).body[0], clean=False) is not None  # type: ignore[arg-type]
    assert [line.split() for line in found.splitlines()] == [
        line.split() if line.strip() not in "3 4 5 6" else [] for line in text.splitlines()
    ]


TEXT = """import os


def f(x):
    return os.fspath(x)


if os.sep:

    class C:
        def method(self, x):
            return x + 1
"""


@pytest.mark.parametrize(
    ("path", "part", "wanted"),
    [
        ("m.py", "return os.fspath(x)", ""),
        ("m.py", "import os", "in no function that can be taken out"),
        ("m.py", "return x + 1", "not defined once, at the top level"),
        ("no-name.py", "return os.fspath(x)", "cannot be imported by a name"),
    ],
)
def test_where_a_file_can_be_taken_apart(path: str, part: str, wanted: str, tmp_path: Path) -> None:
    workspace = write_files(tmp_path, {path: TEXT})
    start = TEXT.index(part)
    if not wanted:
        seam = find_seam(workspace, path, start, start + len(part))
        assert (seam.module, seam.qualname, seam.whole_class, seam.mark) == ("m", "f", False, "")
        assert part not in seam.stub
        assert seam.blanked == TEXT
        return
    with pytest.raises(InputError, match=wanted):
        find_seam(workspace, path, start, start + len(part))


@pytest.fixture(scope="module")
def suite_judge() -> Iterator[ModuleType]:
    """As it is loaded in the warm interpreter: its fellows by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(INSIDE))
        import suite_judge

        yield suite_judge
        for name in suite_judge.OURS:
            sys.modules.pop(name, None)


DEFAULT = object()


def _plain(a, b=DEFAULT, c=2):  # type: ignore[no-untyped-def]
    return locals()


def _positional(a, b=DEFAULT, c=2, /, d=None):  # type: ignore[no-untyped-def]
    return locals()


def _everything(a, b=DEFAULT, /, c=2, *rest, d=DEFAULT, e, **named):  # type: ignore[no-untyped-def]
    return locals()


@given(
    function=st.sampled_from([_plain, _positional, _everything]),
    values=st.lists(st.sampled_from([DEFAULT, None, 2, "x"]), max_size=6),
    names=st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from([DEFAULT, None, 2, "y"])),
)
def test_a_stub_hands_on_what_it_was_given(
    suite_judge: ModuleType, function: Callable[..., Any], values: list[Any], names: dict[str, Any]
) -> None:
    """The same parameters over there, and no default among what crosses where it can be left out."""
    try:
        inspect.signature(function).bind(*values, **names)
    except TypeError:
        return
    handed: list[tuple[list[Any], dict[str, Any]]] = []

    class Answer:
        def forward(self, arguments: list[Any], keywords: dict[str, Any]) -> None:
            handed.append((arguments, keywords))

    stub = suite_judge.Stub(Answer())
    stub.found(function)
    given = function(*values, **names)
    stub.call(given)
    ((arguments, keywords),) = handed
    assert function(*arguments, **keywords) == given
    if len(values) < 2 and "b" not in names:
        assert not any(value is DEFAULT for value in arguments[1:])


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ([3, 1], [1, 3, 5]),
        ([[1], [2]], [[1, 9]]),
        ({"a": {"b": [1]}, "c": 2}, {"a": {"b": [], "d": 1}}),
        ({1, 2}, {2, 3}),
        (bytearray(b"ab"), bytearray(b"c")),
    ],
)
def test_containers_are_updated_in_place(suite_judge: ModuleType, value: Any, content: Any) -> None:
    inner = value[0] if isinstance(value, list) else value.get("a") if isinstance(value, dict) else None
    suite_judge.update(value, content)
    assert value == content
    if isinstance(inner, list | dict):
        assert (value[0] if isinstance(value, list) else value["a"]) is inner
