"""Cutting questions out of files."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks_support import WORDS

from codemill.core.errors import InputError
from codemill.tasks.functions import (
    MAX_SPAN_LINES,
    Function,
    SourceFile,
    example_docstrings,
    find_functions,
    parses,
    span_piece,
    walk_functions,
)

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
MODULES = ("textwrap.py", "heapq.py", "dataclasses.py", "bdb.py", "shlex.py", "contextlib.py")


def functions_of(text: str) -> dict[str, Function]:
    return {function.qualname: function for function in find_functions(SourceFile(text, "f.py"))}


def asked(text: str, name: str = "f") -> str | None:
    body = functions_of(text)[name].body
    return None if body is None else text[body.start : body.end]


def check_pieces(text: str) -> int:
    """Every piece of a file is whole lines, puts the file together again, and can be replaced by `pass`."""
    source = SourceFile(text, "f.py")
    nodes = {name: node for name, node, _ in walk_functions(source.tree)}
    count = 0
    for function in find_functions(source):
        if function.body is None:
            assert function.rejected
            continue
        pieces = [function.body]
        for seed in range(3):
            span = span_piece(source, nodes[function.qualname], function.body, f"{seed}:{function.qualname}")
            pieces += [span] if span else []
        for piece in pieces:
            count += 1
            prefix, gold, suffix = text[: piece.start], text[piece.start : piece.end], text[piece.end :]
            assert prefix + gold + suffix == text
            assert gold.strip()
            assert prefix[-1:] in ("\n", "\r")
            assert suffix[:1] in ("", "\n", "\r")
            assert piece.lines == len(gold.splitlines()) or "\f" in gold or "\x1c" in gold
            indent = gold[: len(gold) - len(gold.lstrip())]
            first = next(line for line in gold.splitlines() if line.strip())
            if not first.lstrip().startswith("#"):  # a comment may be indented as it likes
                assert parses(f"{prefix}{indent}pass{suffix}"), (function.qualname, gold)
            if piece.kind == "span":
                assert piece.lines <= MAX_SPAN_LINES
                assert function.body.start <= piece.start <= piece.end <= function.body.end
                assert (piece.start, piece.end) != (function.body.start, function.body.end)
    return count


@pytest.mark.parametrize("module", MODULES)
def test_pieces_of_real_files(module: str) -> None:
    assert check_pieces((LIBRARY / module).read_bytes().decode()) > 5


@given(
    lines=st.lists(st.sampled_from(["x = 1", "return x", "# say", "", "if x:\n{i}    y = x + 1", "z = '''é\n ü'''"])),
    doc=st.sampled_from(["", '"""One line."""', "'''Two\n\n    lines.'''", '"""Ünïcode \\u20ac"""  # behind']),
    signature=st.sampled_from(["def f(x):", "def f(\n{o}    x,\n{o}):  # why", "@wraps(f)\n{o}def f(x) -> int:"]),
    inside=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
)
@settings(deadline=None)
def test_pieces_of_made_up_files(lines: list[str], doc: str, signature: str, inside: bool, ending: str) -> None:
    outer, inner = ("    ", "        ") if inside else ("", "    ")
    text = "class C:\n" if inside else "import os\n"
    text += outer + signature.format(o=outer) + "\n" + (f"{inner}{doc}\n" if doc else "")
    text += "".join(f"{inner}{line.format(i=inner)}\n" if line else "\n" for line in [*lines, "return x, x"])
    check_pieces((text + "\n\nlast = 1").replace("\n", ending))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("async def f():\n    x = await g()\n    return x\n", "async"),
        ("@typing.overload\ndef f(x: int): x = 1\n", "overload"),
        ("@abstractmethod\ndef f(self):\n    x = 1\n", "abstract"),
        ("def f():\n    raise NotImplementedError('later')\n", "trivial body"),
        ("def f():\n    '''Doc.'''\n", "trivial body"),
        ("def f():\n    return None\n", "trivial body"),
        ("def f(): return g(1)\n", "body on the signature's or the docstring's line"),
        ("def f():\n    '''Doc.'''; return g(1)\n", "body on the signature's or the docstring's line"),
        ("def f():\n    x = 1\ndef f():\n    x = 2\n", "defined more than once"),
    ],
)
def test_what_cannot_be_asked(text: str, reason: str) -> None:
    function = functions_of(text)["f"]
    assert (function.rejected, function.body) == (reason, None)


def test_nested_functions_are_not_asked_for_alone() -> None:
    found = functions_of("def f():\n    def g():\n        return h(1)\n    return g\n")
    assert found["f.<locals>.g"].rejected == "nested in another function"
    assert found["f"].body is not None


def test_docstring_decorators_and_comments_have_their_sides() -> None:
    text = "@a\n@b(1)\ndef f(\n    x,\n):  # c\n    '''Doc.'''\n\n    # why\n    return g(x)\n"
    assert asked(text) == "    # why\n    return g(x)"
    assert functions_of(text)["f"].first_line == 1
    assert asked("def f(\n  x): return g(x)\n") is None


def test_span_depends_on_its_key_alone() -> None:
    source = SourceFile(WORDS, "words.py")
    nodes = {name: node for name, node, _ in walk_functions(source.tree)}
    body = functions_of(WORDS)["balanced"].body
    assert body is not None
    drawn = [span_piece(source, nodes["balanced"], body, str(seed)) for seed in range(40)]
    assert drawn == [span_piece(source, nodes["balanced"], body, str(seed)) for seed in range(40)]
    assert len({(piece.start, piece.end) for piece in drawn if piece}) > 4


@pytest.mark.parametrize("text", ["def f(:", "x = '\0'", "(" * 4000, "def f():\n" + " " * 9 + "\tx\n        y"])
def test_text_that_is_no_program(text: str) -> None:
    with pytest.raises(InputError, match=r"f\.py.*does not parse"):
        SourceFile(text, "f.py")


def test_docstrings_with_examples() -> None:
    found = {d.qualname: d for d in example_docstrings(ast.parse(WORDS))}
    assert set(found) == {"longest"}
    assert WORDS.split("\n")[found["longest"].line].strip().startswith('"""The longest')
