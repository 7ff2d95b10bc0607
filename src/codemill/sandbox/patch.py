"""Reading a unified diff, of git or without its headers, and working out what files become by it.

Strict: the lines that a hunk names must be there, at its place or at another one, as a whole; nothing is guessed. Every
path is checked before anything is done.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from codemill.core.errors import InputError
from codemill.sandbox.diff import EXECUTABLE, FILE, LINK, Effort, Version
from codemill.sandbox.folder import checked, encoded

_NUMBER = rb"(\d{1,30})"  # Python refuses to read thousands of digits
_HUNK = re.compile(rb"@@ -%b(?:,%b)? \+%b(?:,%b)? @@" % ((_NUMBER,) * 4))
_UNESCAPES = {b"a": b"\a", b"b": b"\b", b"t": b"\t", b"n": b"\n", b"v": b"\v", b"f": b"\f", b"r": b"\r"}
_ESCAPE = re.compile(rb"\\([abtnvfr\"\\]|[0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines to find from line `start` (counted from 0) on, and those to put in their place; with their ends."""

    start: int
    old: tuple[bytes, ...]
    new: tuple[bytes, ...]


@dataclass(slots=True)
class FilePatch:
    """What a diff says about one file. `old` None: it is new; `new` None: it is deleted; two names: it moves."""

    old: str | None
    new: str | None
    mode: int | None = None
    copied: bool = False
    hunks: list[Hunk] = field(default_factory=list)
    literal: bytes | None = None

    @property
    def name(self) -> str:
        return self.new or self.old or ""


def parse_diff(text: str, limit_bytes: int) -> list[FilePatch]:
    """The parts of a diff. Raises `InputError` that names the line; `limit_bytes` bounds what binary data unpacks to."""
    return list(_Parser(encoded(text, "diff"), limit_bytes).files())


def patched(patch: FilePatch, before: Version | None, effort: Effort | None = None) -> Version | None:
    """What a file becomes, None when it is deleted. Raises `InputError` if the patch does not fit. `effort`: lines that may
    still be looked at to find hunks away from their place, for several patches together."""
    name, effort = patch.name, effort or Effort()
    if patch.old is None and before is not None:
        raise InputError(f"diff: {name!r} shall be new and is there already")
    if patch.old is not None and before is None:
        raise InputError(f"diff: {name!r} is not there, or is no file")
    if before is not None and patch.mode is not None and (before.mode == LINK) != (patch.mode == LINK):
        raise InputError(f"diff: {name!r} becomes a link or a file by a change of mode; delete and make it instead")
    data = before.data if before else b""
    data = patch.literal if patch.literal is not None else _with_hunks(name, data, patch.hunks, effort)
    if patch.new is None:
        if data and (patch.hunks or patch.literal is not None):
            raise InputError(f"diff: {name!r} shall be deleted, but holds more than the diff takes away")
        return None
    return Version(patch.mode or (before.mode if before else FILE), data)


def _with_hunks(name: str, data: bytes, hunks: Sequence[Hunk], effort: Effort) -> bytes:
    lines = re.findall(rb"[^\n]*\n|[^\n]+", data)
    out: list[bytes] = []
    at, shift = 0, 0  # the first line not yet taken, and how far the last hunk was from its place
    for number, hunk in enumerate(hunks, 1):
        found = _find(lines, hunk.old, hunk.start + shift, at, effort)
        if effort.steps < 0:
            raise InputError(f"diff: hunk {number} of {name!r} is too far from the line it names; make the diff anew")
        if found is None:
            raise InputError(f"diff: hunk {number} of {name!r} does not fit: its lines are not in the file")
        shift = found - hunk.start
        out += lines[at:found]
        out += hunk.new
        at = found + len(hunk.old)
    return b"".join(out + lines[at:])


def _find(lines: Sequence[bytes], wanted: tuple[bytes, ...], place: int, first: int, effort: Effort) -> int | None:
    """Where the lines are, from `first` on, as near to `place` as can be. Below zero steps the answer means nothing."""
    last = len(lines) - len(wanted)
    if last < first:
        return None
    place = min(max(place, first), last)
    if tuple(lines[place : place + len(wanted)]) == wanted:
        return place
    effort.steps -= len(lines) - first + len(wanted)
    if effort.steps < 0:
        return None
    found = None
    for start in _places(lines, wanted, first):
        if found is None or abs(start - place) < abs(found - place):
            found = start
        if start > place:
            break
    return found


def _places(lines: Sequence[bytes], wanted: tuple[bytes, ...], first: int) -> Iterator[int]:
    """Every place of the lines, in time linear in both: Knuth, Morris and Pratt (1977). Trying each place would be
    quadratic in a file and a diff that repeat one line."""
    shorter = [0]  # for each length matched, the next one to try
    matched = 0
    for line in wanted[1:]:
        while matched and line != wanted[matched]:
            matched = shorter[matched - 1]
        matched += line == wanted[matched]
        shorter.append(matched)
    matched = 0
    for index in range(first, len(lines)):
        while matched and (matched == len(wanted) or lines[index] != wanted[matched]):
            matched = shorter[matched - 1]
        matched += lines[index] == wanted[matched]
        if matched == len(wanted):
            yield index - matched + 1


class _Parser:
    def __init__(self, text: bytes, limit_bytes: int) -> None:
        self._lines = text.split(b"\n")
        if self._lines and not self._lines[-1]:
            self._lines.pop()
        self._at = 0
        self._room = limit_bytes

    def files(self) -> Iterator[FilePatch]:
        found = False
        while self._at < len(self._lines):
            if self._peek().startswith(b"diff --git "):
                found = True
                yield self._git_file()
            elif self._peek().startswith(b"--- ") and self._peek(1).startswith(b"+++ "):
                found = True
                patch = FilePatch(None, None)
                self._names(patch)
                self._hunks(patch)
                yield self._complete(patch)
            else:
                self._at += 1  # a text between the parts
        if not found and any(line.strip() for line in self._lines):
            raise InputError("diff: no part begins with 'diff --git' or with '--- ' and '+++ '")

    def _peek(self, ahead: int = 0) -> bytes:
        place = self._at + ahead
        return self._lines[place] if place < len(self._lines) else b""

    def _fault(self, text: str) -> InputError:
        return InputError(f"diff: line {self._at + 1}: {text}")

    def _git_file(self) -> FilePatch:
        name = self._both_names(self._peek()[len(b"diff --git ") :])
        patch = FilePatch(name, name)
        self._at += 1
        while self._at < len(self._lines):
            line = self._peek()
            if line.startswith((b"--- ", b"GIT binary patch", b"diff --git ", b"@@ ")):
                break
            if not self._header(patch, line):
                break
            self._at += 1
        if self._peek().startswith(b"--- ") and self._peek(1).startswith(b"+++ "):
            self._names(patch)
            self._hunks(patch)
        elif self._peek() == b"GIT binary patch":
            self._at += 1
            patch.literal = self._binary()
        return self._complete(patch)

    def _header(self, patch: FilePatch, line: bytes) -> bool:
        """One of git's lines between the names and the contents; False at the end of them."""
        key, value = next(((key, line[len(key) :]) for key in _HEADERS if line.startswith(key)), (b"", b""))
        if not key:
            return False
        if key in (b"new file mode ", b"new mode "):
            patch.mode = self._mode(value)
        if key == b"new file mode ":
            patch.old = None
        elif key == b"deleted file mode ":
            patch.new = None
        elif key in (b"rename from ", b"copy from "):
            patch.old, patch.copied = self._unquoted(value), key == b"copy from "
        elif key in (b"rename to ", b"copy to "):
            patch.new = self._unquoted(value)
        elif key == b"Binary files ":
            raise self._fault("a binary file without its contents; make the diff with --binary")
        return True

    def _mode(self, value: bytes) -> int:
        try:
            mode = int(value, 8)
        except ValueError:
            mode = 0
        if mode not in (FILE, EXECUTABLE, LINK):
            raise self._fault(f"mode {value.decode('ascii', 'replace')!r} is no file's and no link's")
        return mode

    def _both_names(self, text: bytes) -> str | None:
        """The one name in `a/NAME b/NAME`; None if they differ, then the following lines say them."""
        if text.startswith(b'"'):
            end = re.match(rb'"(?:[^"\\]|\\.)*"', text)
            return self._stripped(self._unquoted(end.group())) if end else None
        half = len(text) // 2
        if text[half : half + 1] == b" " and text[:half][2:] == text[half + 1 :][2:]:
            return self._stripped(self._unquoted(text[:half]))
        return None

    def _names(self, patch: FilePatch) -> None:
        names = []
        for line in (self._peek()[4:], self._peek(1)[4:]):
            name = self._unquoted(line.split(b"\t")[0] if not line.startswith(b'"') else line)
            names.append(None if name == "/dev/null" else self._stripped(name))
        patch.old, patch.new = names
        self._at += 2

    def _unquoted(self, text: bytes) -> str:
        text = text.removesuffix(b"\r")
        if text.startswith(b'"') and text.rstrip().endswith(b'"') and len(text) > 1:
            text = _ESCAPE.sub(_unescape, text.rstrip()[1:-1])
        return text.decode("utf-8", "surrogateescape")

    def _stripped(self, name: str) -> str:
        return name.partition("/")[2] if name.startswith(("a/", "b/")) else name

    def _complete(self, patch: FilePatch) -> FilePatch:
        for name in {patch.old, patch.new} - {None}:
            path = checked(name or "")
            if not path or any(part.lower() == ".git" for part in path.split("/")):
                raise self._fault(f"{name!r} is not the name of a file that a diff may touch")
        if patch.old is None and patch.new is None:
            raise self._fault("the part before this line names no file")
        return patch

    def _hunks(self, patch: FilePatch) -> None:
        while match := _HUNK.match(self._peek()):
            start, old_count, _, new_count = (1 if group is None else int(group) for group in match.groups())
            self._at += 1
            sides: tuple[list[bytes], list[bytes]] = ([], [])
            while len(sides[0]) < old_count or len(sides[1]) < new_count:
                self._hunk_line(sides)
            if self._peek().startswith(b"\\"):
                self._hunk_line(sides)
            patch.hunks.append(Hunk(max(0, start - 1) if old_count else start, tuple(sides[0]), tuple(sides[1])))
            if (len(sides[0]), len(sides[1])) != (old_count, new_count):
                raise self._fault("a hunk has more lines than it says")
        if not patch.hunks:
            raise self._fault("names of files without a hunk")
        line = self._peek()
        if line.startswith(b"@@"):
            raise self._fault("is no head of a hunk; it reads '@@ -START,COUNT +START,COUNT @@'")
        # The end of a mail begins so, too, and the next file.
        if line.startswith((b"+", b"-")) and not line.startswith((b"-- ", b"--- ")) and line != b"--":
            raise self._fault("a hunk has more lines than it says")

    def _hunk_line(self, sides: tuple[list[bytes], list[bytes]]) -> None:
        if self._at >= len(self._lines):
            raise self._fault("a hunk has fewer lines than it says")
        line = self._peek()
        mark, text = line[:1] or b" ", line[1:] + b"\n"  # an empty line of context often loses its blank
        if mark == b"\\":
            last = self._peek(-1)[:1]
            for side, marks in zip(sides, (b"- ", b"+ "), strict=True):
                if side and last in marks:
                    side[-1] = side[-1].removesuffix(b"\n")
        elif mark in (b" ", b"-", b"+"):
            if mark != b"+":
                sides[0].append(text)
            if mark != b"-":
                sides[1].append(text)
        else:
            raise self._fault("a line of a hunk must begin with a blank, '-', '+' or '\\'")
        self._at += 1

    def _binary(self) -> bytes:
        """The new contents; those before, which come after, are passed over."""
        kind, _, size = self._peek().partition(b" ")
        if kind != b"literal" or not re.fullmatch(_NUMBER, size):
            raise self._fault(
                "binary contents must be 'literal'; those of git with 'delta' need the file they were made from"
            )
        if int(size) > self._room:
            raise self._fault(f"binary contents of {int(size)} bytes are more than may be unpacked")
        self._at += 1
        packed = b""
        while self._peek():
            packed += self._packed_line(self._peek())
            self._at += 1
        unpacker = zlib.decompressobj()
        try:
            data = unpacker.decompress(packed, int(size) + 1)
        except zlib.error as error:
            raise self._fault(f"binary contents cannot be unpacked: {error}") from None
        if len(data) != int(size):
            raise self._fault(f"binary contents are not of the {int(size)} bytes that they say")
        self._room -= len(data)
        while self._at < len(self._lines) and not self._peek().startswith(b"diff --git "):
            self._at += 1
        return data

    def _packed_line(self, line: bytes) -> bytes:
        letter = line[:1]
        length = ord(letter) - ord("A") + 1 if b"A" <= letter <= b"Z" else ord(letter) - ord("a") + 27
        try:
            data = base64.b85decode(line[1:].removesuffix(b"\r"))
        except ValueError:
            data = b""
        if not 0 < length <= len(data) or len(data) >= length + 4:
            raise self._fault("is no line of binary contents")
        return data[:length]


_HEADERS = (
    b"old mode ",
    b"new mode ",
    b"new file mode ",
    b"deleted file mode ",
    b"index ",
    b"similarity index ",
    b"dissimilarity index ",
    b"rename from ",
    b"rename to ",
    b"copy from ",
    b"copy to ",
    b"Binary files ",
)


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match.group(1)
    return bytes([int(code, 8)]) if len(code) == 3 else _UNESCAPES.get(code, code)
