"""How much of a file goes into a fill-in prompt, so that the prefix cache keeps hitting while somebody types.

The prompt is prefix, suffix, then the cursor's line up to the cursor as the beginning of the middle: typing on a line adds
tokens at the end and leaves all before them as they were. The prefix begins at an *anchor*: the start of what the editor
sent, or, where that is too long, a line chosen by its content, which stays the same line when text is typed far below or when
the editor's own window slides over the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SUFFIX_LINES = 32  # whatever moves the cursor to another line computes them anew, so they are the price of every move
ANCHOR_LINES = 64  # among so many lines the anchor is chosen
SLIDING_LINES = 256  # editors that cut the prefix themselves send at most so many lines, and slide them with the cursor


@dataclass(frozen=True, slots=True)
class Window:
    """Whole lines before the cursor's line, that line up to the cursor, and what follows the cursor."""

    before: str
    line: str
    after: str


def split_at_line(prefix: str) -> tuple[str, str]:
    """The whole lines of a text and its last, unfinished one."""
    start = prefix.rfind("\n") + 1
    return prefix[:start], prefix[start:]


def choose_window(
    prefix: str, line: str, suffix: str, room: int, count: Callable[[Sequence[str]], Sequence[int]]
) -> Window:
    """The part of a file around the cursor that fits into about `room` tokens.

    `count` gives the tokens of texts. The suffix is cut to `SUFFIX_LINES` lines and at most a third of the room, the line
    to a third.
    """
    before, begun = split_at_line(prefix)
    line = begun + line
    after = _head(suffix, SUFFIX_LINES, room // 3, count)
    line = line[-_characters_for(line, room // 3, count) :] if line else ""
    used = sum(count([after, line]))
    return Window(_from_anchor(before, room - used, count), line, after)


def _from_anchor(before: str, room: int, count: Callable[[Sequence[str]], Sequence[int]]) -> str:
    lines = before.splitlines(keepends=True)
    sizes = list(count(lines))
    dropped, left = 0, sum(sizes)
    while dropped < len(lines) and left > room:
        left -= sizes[dropped]
        dropped += 1
    if not dropped and len(lines) < SLIDING_LINES:
        return before
    # The last quarter of what fits always stays: an anchor never costs the lines next to the cursor.
    choices = range(dropped, min(dropped + ANCHOR_LINES, len(lines) - (len(lines) - dropped) // 4))
    anchor = min(choices, key=lambda number: (_rank(lines, number), number), default=dropped)
    return "".join(lines[anchor:])


def _rank(lines: Sequence[str], number: int) -> int:
    """A number that depends on a line and the next one only. Blank lines are chosen last: they are all alike."""
    line = lines[number].strip()
    follower = lines[number + 1] if number + 1 < len(lines) else ""
    return zlib.crc32(f"{line}\n{follower}".encode("utf-8", "replace")) + ((1 << 32) if not line else 0)


def _head(text: str, lines: int, room: int, count: Callable[[Sequence[str]], Sequence[int]]) -> str:
    kept = text.splitlines(keepends=True)[:lines]
    sizes = list(count(kept))
    while len(kept) > 1 and sum(sizes) > room:
        kept.pop()
        sizes.pop()
    whole = "".join(kept)
    return whole[: _characters_for(whole, room, count)]


def _characters_for(text: str, room: int, count: Callable[[Sequence[str]], Sequence[int]]) -> int:
    """How many characters of a text surely fit: all, or one for each token."""
    return len(text) if sum(count([text])) <= room else max(room, 1)
