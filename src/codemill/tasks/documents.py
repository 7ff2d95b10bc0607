"""Training text without the answers: held-out functions are cut out of documents, and so are copies of them.

A body counts as found wherever its characters stand in the same order, whatever the white space and the comment lines
between them: re-indented and re-wrapped copies are found too. Bodies with fewer than two lines that say something
(`return self.name`) occur everywhere by chance and are not searched for.
"""

from __future__ import annotations

import ast
import bisect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from codemill.core.errors import InputError
from codemill.tasks.functions import SourceFile, parses, split_lines, walk_functions

MIN_TELLING_LINES = 2
TRIVIAL_LINES = frozenset(
    {"pass", "else:", "try:", "finally:", "break", "continue", "return", "return None", "return self", "..."}
    | {"return True", "return False", "except:", "raise"}
)

Lines = tuple[int, int]  # first and last, counted from 1


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """A document after the cut. `text` None: it could not be saved and is dropped. `leaks`: ids of bodies found in it."""

    text: str | None
    leaks: tuple[str, ...] = ()


def _join(source: SourceFile, ranges: Iterable[Lines], first: int, last: int, stand_in: str) -> str:
    """The kept lines; `stand_in` (`pass`, or nothing) takes the place of a removed range, at its indentation."""
    kept, line = [], first
    for start, end in sorted(ranges):
        if end < first or start > last:
            continue
        kept += source.lines[line - 1 : start - 1]
        if stand_in:
            head = source.lines[start - 1]
            kept.append(head[: len(head) - len(head.lstrip())] + stand_in + "\n")
        line = max(line, end + 1)
        while line <= last and not stand_in and not source.lines[line - 1].strip():
            line += 1  # the blank lines behind it go with it
    kept += source.lines[line - 1 : last]
    return "".join(kept)


def without(source: SourceFile, ranges: Iterable[Lines]) -> str | None:
    """The file without whole statements: `pass` in their places where a block would be empty, None where even that fails."""
    ranges = list(ranges)
    for stand_in in ("", "pass"):
        text = _join(source, ranges, 1, len(source.lines), stand_in)
        if parses(text):
            return text
    return None


def prompt_around(source: SourceFile, first: int, last: int, ranges: Iterable[Lines]) -> tuple[str, str] | None:
    """Text before and after lines `first` to `last`, without the given ranges; None where the file breaks."""
    ranges = list(ranges)
    gold = source.text[source.start_of(first) : source.end_of(last)]
    end = source.text[source.end_of(last) : source.starts[last]]
    for stand_in in ("", "pass"):
        prefix = _join(source, ranges, 1, first - 1, stand_in)
        suffix = end + _join(source, ranges, last + 1, len(source.lines), stand_in)
        if parses(prefix + gold + suffix):
            return prefix, suffix
    return None


class LeakScanner:
    """Finds bodies in texts. `bodies` maps an id to a function's body; those that say too little are left out."""

    def __init__(self, bodies: Mapping[str, str]) -> None:
        self._needles = {name: normal_form(text) for name, text in bodies.items() if is_telling(text)}

    def __len__(self) -> int:
        return len(self._needles)

    def find(self, text: str) -> list[str]:
        """Ids of the bodies that occur in the text."""
        haystack = normal_form(text)
        return [name for name, needle in self._needles.items() if needle in haystack]

    def locate(self, text: str, name: str) -> Lines:
        """The lines of the first occurrence of a body that `find` reported."""
        starts, numbers, size, parts = [], [], 0, []
        for number, line in enumerate(split_lines(text), 1):
            squeezed = _squeeze(line)
            if squeezed:
                starts.append(size)
                numbers.append(number)
                parts.append(squeezed)
                size += len(squeezed)
        needle = self._needles[name]
        position = "".join(parts).index(needle)
        first = bisect.bisect_right(starts, position) - 1
        last = bisect.bisect_right(starts, position + len(needle) - 1) - 1
        return numbers[first], numbers[last]

    def scrub(self, text: str, *, python: bool) -> Scrubbed:
        """Take every body out of a text: with the whole function around it in Python, line by line elsewhere."""
        leaks: list[str] = []
        while found := self.find(text):
            leaks += [name for name in found if name not in leaks]
            lines = self.locate(text, found[0])
            rest = _without_lines(text, lines, python)
            if rest is None or len(rest) >= len(text):
                return Scrubbed(None, tuple(leaks))
            text = rest
        return Scrubbed(text, tuple(leaks))


def _without_lines(text: str, lines: Lines, python: bool) -> str | None:
    if python:
        try:
            source = SourceFile(text, "document")
        except InputError:
            return None
        return without(source, [_enclosing_function(source.tree, lines) or lines])
    kept = split_lines(text)
    return "".join(kept[: lines[0] - 1] + kept[lines[1] :])


def _enclosing_function(tree: ast.Module, lines: Lines) -> Lines | None:
    """The innermost function around some lines, decorators included."""
    best = None
    for _, node, _ in walk_functions(tree):
        start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        end = node.end_lineno or node.lineno
        if start <= lines[0] and lines[1] <= end and (best is None or start >= best[0]):
            best = (start, end)
    return best


def normal_form(text: str) -> str:
    """The text without white space and without lines that are only a comment."""
    return "".join(_squeeze(line) for line in split_lines(text))


def _squeeze(line: str) -> str:
    squeezed = "".join(line.split())
    return "" if squeezed.startswith("#") else squeezed


def is_telling(body: str) -> bool:
    """Whether a body says enough to be searched for: two lines beyond the commonplace."""
    lines = (" ".join(line.split()) for line in split_lines(body))
    telling = (
        line for line in lines if not line.startswith("#") and line not in TRIVIAL_LINES and re.search(r"\w", line)
    )
    return sum(1 for _ in telling) >= MIN_TELLING_LINES


def removed_functions(text: str, qualnames: Iterable[str], name: str) -> str | None:
    """A document without the named functions, decorators included; None where it does not parse any more."""
    wanted = set(qualnames)
    source = SourceFile(text, name)
    ranges = [
        (min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno or node.lineno)
        for qualname, node, _ in walk_functions(source.tree)
        if qualname in wanted
    ]
    return without(source, ranges)
