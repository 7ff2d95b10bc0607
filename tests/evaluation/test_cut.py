"""Golden cases of the cut of infilled answers."""

from __future__ import annotations

import pytest

from codemill.evaluation.cut import block_stops, cut_to_gap

BODY = "def f(x):\n"
CASES = [
    # a right answer stays as it is
    (BODY, "    return x", "\n\n\ndef g():\n", "    return x"),
    (BODY, "    if x:\n        return 1\n    return 2", "\n", "    if x:\n        return 1\n    return 2"),
    # text after the function goes
    (BODY, "    return x\n\n\ndef g(y):\n    pass", "\n\n\ndef h():\n", "    return x"),
    (
        "class A:\n    def m(self):\n",
        "        return 1\n\n    def n(self):\n        return 2",
        "\n",
        "        return 1",
    ),
    # the repeated suffix goes, a short line of it does not count
    (BODY, "    y = x\n    return total(y)\n    more()", "\n    return total(y)\n", "    y = x"),
    (BODY, "    a = [\n        1\n    ]\n    b = 2", "\n    ]\n", "    a = [\n        1\n    ]\n    b = 2"),
    # deeper first lines set the depth; blank lines do not end a block
    (
        "def f():\n    if a:\n",
        "        b = 1\n\n        c = 2\n    else:\n        d()",
        "\n    else:\n",
        "        b = 1\n\n        c = 2",
    ),
    # a gap inside a line, and a suffix that begins a new line
    ("def f():\n    return ", "1 + 2\ndef g():", "\n", "1 + 2"),
    (BODY, "    return x\nprint(1)", "z = 1\n", "    return x\n"),
    (BODY, "", "\n", ""),
    (BODY, "\n\n    return 1\nx", "\n", "\n\n    return 1"),
]


@pytest.mark.parametrize(("prefix", "text", "suffix", "expected"), CASES)
def test_cut(prefix: str, text: str, suffix: str, expected: str) -> None:
    assert cut_to_gap(text, prefix, suffix) == expected
    assert cut_to_gap(expected, prefix, suffix) == expected  # cutting again changes nothing


def test_stops_only_inside_a_block() -> None:
    assert "\ndef " in block_stops("def f(x):\n    '''Doc.'''\n")
    assert "\ndef " in block_stops("def f(x):\n\n")
    assert block_stops("x = 1\n") == ()
