"""Text from outside made safe to look at: nothing acts invisibly.

This is about control characters, marks that reorder or hide what follows, and halves of surrogate pairs: what a
terminal obeys, and what survives escaping for HTML.
"""

from __future__ import annotations

import re

# Controls but tab and line feed, soft hyphen, fillers, zero-width and bidirectional marks, line separators, halves of
# surrogate pairs, non-characters, and the tag block, which can hide whole sentences.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """The text with everything unseen spelled out: ESC as ␛, a right-to-left override as ‹U+202E›."""
    return _UNSEEN.sub(_spell, text.replace("\r\n", "\n"))


def _spell(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"‹U+{code:04X}›"
