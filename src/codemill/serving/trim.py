"""What of a generated middle is shown under the cursor: the cut that a careful person would make.

Models rarely stop where a gap ends. The answer is looked at line by line while it comes, so generation can end as soon as
the cut is certain; `trim` of a whole text gives the same result. The rules, in the order in which they apply to a line:

1. With text behind the cursor on its own line, only one line is filled in, without what repeats that text.
2. The answer ends before the first telling line of the suffix is written again.
3. It ends where its block does: before a line indented less than the answer's first line. A line that begins by closing
   brackets which the prefix opened and the suffix does not close belongs to the block and ends it.
4. At the margin, or where the cursor's line is itself the head of a block, it ends at the first blank line behind that block.
5. It ends before a bracket that closes more than prefix and suffix leave open.

`evaluation/cut.py` is the cut of scores, kept apart on purpose: rules 2 and 3 are its rules, and it must never follow what
editors find pleasant.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from codemill.evaluation.cut import indent
from codemill.serving.brackets import CLOSERS, Brackets, looks_like_python

_TELLING = 8  # characters: a shorter line (a bracket, `else:`) may well occur in an answer of its own right
_CONTINUES = ("else", "elif", "except", "finally", "catch")


@dataclass(slots=True)
class Trimmer:
    """The cut of one answer between `prefix` and `suffix`, while it is written.

    `feed` returns text that is certain to be shown; `done` says that nothing will follow. `min_indent`: the answer also ends
    before a line indented less than that.
    """

    prefix: str
    suffix: str
    path: str = ""
    min_indent: int = 0
    done: bool = False
    _line: str = ""  # the line that is being written
    _blank: str = ""  # line ends and blank lines that are shown only if something follows
    _number: int = 0  # of the line
    _depth: int = -1  # of the answer's first line, -1 as long as there is none
    _any: bool = False  # something was shown
    _head: bool = False  # that line may be the head of a block, which rule 4 is about
    _deeper: bool = False  # a line below that depth was written
    _opening: str = ""  # of the cursor's line
    _behind: str = ""  # on the cursor's line
    _ahead: str = ""  # the first line of the suffix that is not blank
    _final: str = ""  # what an answer of whole lines ends with
    _scan: Brackets = field(default_factory=lambda: Brackets(False))

    def __post_init__(self) -> None:
        self._opening = self.prefix.rpartition("\n")[2]
        behind, _, following = self.suffix.partition("\n")
        # Before a line, or in its white space, the answer is lines of its own.
        whole_lines = not self._opening.strip() and bool(behind.strip())
        self._final = "\n" if whole_lines else ""
        self._behind = behind.strip() if self._opening.strip() else ""
        below = self.suffix if whole_lines else following
        self._ahead = next((line.rstrip() for line in below.splitlines() if line.strip()), "")
        self._scan = _scan_between(self.prefix, self.suffix, self.path)

    @property
    def single_line(self) -> bool:
        """Whether the cursor has text before and behind it on its line."""
        return bool(self._behind)

    def feed(self, text: str) -> str:
        """More of the answer; returns what can be shown now."""
        shown = ""
        self._line += text
        while not self.done and "\n" in self._line:
            line, self._line = self._line.split("\n", 1)
            shown += self._take(line, "\n")
        self._any = self._any or bool(shown)
        return self._finished(shown) if self.done else shown

    def rest(self) -> str:
        """The answer has ended: what is still to be shown."""
        if self.done:
            return ""
        self.done = True
        return self._finished(self._take(self._line, ""))

    def _finished(self, shown: str) -> str:
        self._line = ""
        self._any = self._any or bool(shown)
        return shown + (self._final if self._any else "")

    def _take(self, line: str, end: str) -> str:
        """One line, with its end if that has come; returns what of it and of the blank lines before it is shown."""
        kept = self._fill(line) if self._behind else self._judge(line)
        self._number += 1
        if not kept.strip():
            # Nothing but spaces on the cursor's line, or a blank line: shown only with what follows.
            self._blank += kept + end
            return ""
        visible = kept.rstrip()
        shown, self._blank = self._blank + visible, kept[len(visible) :] + end
        return shown

    def _fill(self, line: str) -> str:
        """Rule 1."""
        self.done = True
        kept = _without_repeat(line, self._behind)
        return kept[: self._scan.feed(kept, stop_at_unmatched=True)].rstrip() if kept.strip() else ""

    def _judge(self, line: str) -> str:
        """Rules 2 to 5. Sets `done` where the answer ends inside or before this line."""
        whole = self._opening + line if self._number == 0 else line
        in_text, bare = self._scan.in_text, line.strip()
        if not bare:
            self._scan.feed(line + "\n")
            return line
        if self._depth < 0:
            self._depth = indent(whole)
            self._head = self._depth == 0 or (self._number == 0 and bool(self._opening.strip()))
        if self._repeats(whole) or (self._number and not in_text and self._leaves(line, bare)):
            self.done = True
            return ""
        self._deeper = self._deeper or indent(whole) > self._depth
        return self._balanced(line, in_text)

    def _repeats(self, whole: str) -> bool:
        """Rule 2."""
        return whole.rstrip() == self._ahead and len(self._ahead.strip()) >= _TELLING

    def _leaves(self, line: str, bare: str) -> bool:
        """Rules 3 and 4: whether a line that is not the first lies outside the block."""
        depth = indent(line)
        if bare[0] in CLOSERS:
            return False  # rule 5 says
        if depth < max(self._depth, self.min_indent):
            return True
        after_blank = self._blank.count("\n") > 1
        word = bare.split(None, 1)[0].rstrip(":({")
        return self._head and self._deeper and depth <= self._depth and after_blank and word not in _CONTINUES

    def _balanced(self, line: str, in_text: bool) -> str:
        """Rule 5, and the second half of 3: the line as far as its brackets fit, and whether it ended the block."""
        before = len(self._scan.open)
        reach = self._scan.feed(line, stop_at_unmatched=True)
        if reach < len(line):
            self.done = True
            return line[:reach].rstrip() if line[:reach].strip() else ""
        self._scan.feed("\n")
        closes = self._number > 0 and not in_text and line.strip()[0] in CLOSERS and indent(line) < self._depth
        if closes and len(self._scan.open) < before:
            self.done = True
        return line


def trim(text: str, prefix: str, suffix: str, path: str = "", min_indent: int = 0) -> str:
    """The part of a generated text that is shown between `prefix` and `suffix`."""
    trimmer = Trimmer(prefix, suffix, path, min_indent)
    shown = trimmer.feed(text)
    return shown + trimmer.rest()


@dataclass(slots=True)
class Middle:
    """What is shown of a generated middle: without the white space `given` that stands before the cursor already and that
    the model writes once more, and cut by `trimmer` where there is one. Used like a `Trimmer`."""

    given: str
    trimmer: Trimmer | None

    @property
    def done(self) -> bool:
        return self.trimmer is not None and self.trimmer.done

    def feed(self, text: str) -> str:
        while text and self.given:
            if text[0] != self.given[0]:
                self.given = ""
                break
            text, self.given = text[1:], self.given[1:]
        return self.trimmer.feed(text) if self.trimmer else text

    def rest(self) -> str:
        return self.trimmer.rest() if self.trimmer else ""


def middle(prefix: str, suffix: str, *, path: str = "", min_indent: int = 0, trim: bool = True) -> Callable[[], Middle]:
    """Makes the `Middle` of each answer for one gap."""
    line = prefix.rpartition("\n")[2]
    given = line[len(line.rstrip(" \t")) :]
    return lambda: Middle(given, Trimmer(prefix, suffix, path, min_indent) if trim else None)


def _scan_between(prefix: str, suffix: str, path: str) -> Brackets:
    """A scan at the cursor whose open brackets are those that the answer may close.

    What the suffix closes beyond its own brackets closes the outermost of the prefix; the rest is left to the answer.
    """
    python = looks_like_python(prefix if prefix.strip() else suffix, path)
    before, after = Brackets(python), Brackets(python)
    before.feed(prefix)
    if not before.in_text:
        after.feed(suffix)
    left = before.open[len(after.unmatched) :]
    return Brackets(python, open=left, inside=before.inside)


def _without_repeat(line: str, behind: str) -> str:
    """A filled-in line without the text that already stands behind the cursor, if it runs on over it or into it.

    Only text with a word in it is taken for a repetition; brackets are left to the balance.
    """
    bare = line.rstrip()
    if sum(character.isalnum() for character in behind) >= 3:
        at = bare.find(behind)
        if at >= 0 and not _splits_word(bare, at):
            return bare[:at]
    for size in range(min(len(bare), len(behind) - 1), 2, -1):
        at = len(bare) - size
        telling = sum(character.isalnum() for character in behind[:size]) >= 3
        if telling and bare.endswith(behind[:size]) and not (_splits_word(bare, at) or _splits_word(behind, size)):
            return bare[:at]
    return bare[:-1] if bare and bare[-1] == behind[0] and behind[0] in ";,:" else line


def _splits_word(text: str, at: int) -> bool:
    return 0 < at < len(text) and _in_word(text[at - 1]) and _in_word(text[at])


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_"
