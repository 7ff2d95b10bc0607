"""Which brackets of a source text are open, without knowing its language well.

A scan of characters that skips strings and comments of the common kinds. It is a guess by design: what it cannot tell (an
apostrophe of a lifetime, a regular expression) it takes for code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

OPENERS = {"(": ")", "[": "]", "{": "}"}
CLOSERS = {closer: opener for opener, closer in OPENERS.items()}
_PYTHON_LINE = re.compile(
    r"^\s*(def|class|import|from|elif|except|with|async def)\b.*|^\s*(if|for|while|else|try)\b.*:\s*$"
)
_OTHER_LINE = re.compile(r".*[;{}]\s*$")
_INTERESTING = re.compile(r"\"\"\"|'''|//|/\*|\*/|\\.|[()\[\]{}\"'`#\n]")


def looks_like_python(text: str, path: str = "") -> bool:
    """By the file's name where there is one, else by how its last lines begin and end."""
    suffix = PurePosixPath(path).suffix
    if suffix:
        return suffix in (".py", ".pyi", ".pyx")
    lines = text[-20_000:].splitlines()[-200:]
    python = sum(_PYTHON_LINE.match(line) is not None for line in lines)
    return python > 0 and python >= sum(_OTHER_LINE.match(line) is not None for line in lines)


@dataclass(slots=True)
class Brackets:
    """A scan that can go on. `open` are the brackets not yet closed, `unmatched` closers that had nothing to close."""

    python: bool
    open: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    inside: str = ""  # what ends the string or comment that the scan is in; "" in code

    @property
    def in_text(self) -> bool:
        """Whether the next character belongs to a string or comment that goes over lines."""
        return self.inside not in ("", "\n")

    def feed(self, text: str, stop_at_unmatched: bool = False) -> int:
        """Scan on. Returns how far: the length of the text, or the place of the first closer without its opener."""
        at = 0
        while found := _INTERESTING.search(text, at):
            mark, at = found.group(), found.end()
            if self.inside:
                self._inside(mark)
            elif mark in OPENERS:
                self.open.append(mark)
            elif mark in CLOSERS:
                if self.open and self.open[-1] == CLOSERS[mark]:
                    self.open.pop()
                elif stop_at_unmatched:
                    return found.start()
                else:
                    self.unmatched.append(mark)
            else:
                self._enter(mark, text, at)
        return len(text)

    def _inside(self, mark: str) -> None:
        # A string of one line ends with it, closed or not; so does a comment of one line.
        if mark == self.inside or (mark == "\n" and self.inside in ('"', "'")):
            self.inside = ""

    def _enter(self, mark: str, text: str, at: int) -> None:
        if mark in ('"""', "'''"):
            self.inside = mark if self.python else ""
        elif mark == '"' or (mark == "`" and not self.python):
            self.inside = mark
        elif mark == "'":
            line_end = text.find("\n", at)
            closed = text.find("'", at, line_end if line_end >= 0 else len(text)) >= 0
            self.inside = mark if self.python or closed else ""  # elsewhere it may be a lifetime or a digit separator
        elif mark == "#":
            self.inside = "\n" if self.python else ""
        elif mark == "//":
            self.inside = "" if self.python else "\n"
        elif mark == "/*":
            self.inside = "" if self.python else "*/"
