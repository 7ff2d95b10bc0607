"""Differences between files as text that `git apply` takes: contents, new and deleted files, modes, links, binary data.

Made here and not by git, because the files are hostile: no filter, attribute or configuration of theirs has a say, and
the time it takes is bounded.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

FILE, EXECUTABLE, LINK = 0o100644, 0o100755, 0o120000
_CONTEXT = 3  # lines around a change
_TEXT_BYTES = 4 * 1024 * 1024  # what is larger goes as binary data
_GAP_CELLS = 250_000  # size of the table that lines without a match of their own are compared in
_ESCAPES = {"\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r", '"': '"', "\\": "\\"}


@dataclass(frozen=True, slots=True)
class Version:
    """A file as it is or was: one of the modes above, and its contents or its target."""

    mode: int
    data: bytes


@dataclass(slots=True)
class Effort:
    """Steps that may still be spent on finding short differences; after that whole regions are replaced."""

    steps: int = 4_000_000


def file_diff(path: str, before: Version | None, after: Version | None, effort: Effort) -> str:
    """One file's part of a diff, empty if nothing changed. A file that becomes a link, or back, is deleted and made."""
    if before is not None and after is not None and (before.mode == LINK) != (after.mode == LINK):
        return file_diff(path, before, None, effort) + file_diff(path, None, after, effort)
    if before == after:
        return ""
    old, new = quoted("a/" + path), quoted("b/" + path)
    head = [f"diff --git {old} {new}", *_modes(before, after)]
    was, now = before.data if before else b"", after.data if after else b""
    if was == now:
        if before is None or after is None:  # empty files
            head.append(f"index {_blob_id(before)}..{_blob_id(after)}")
        return "\n".join(head) + "\n"
    same_mode = f" {before.mode:o}" if before and after and before.mode == after.mode else ""
    head.append(f"index {_blob_id(before)}..{_blob_id(after)}{same_mode}")
    if not (_is_text(was) and _is_text(now)):
        return "\n".join([*head, "GIT binary patch", *_literal(now), *_literal(was), ""])
    head += [f"--- {_ended(old) if before else '/dev/null'}", f"+++ {_ended(new) if after else '/dev/null'}"]
    return "\n".join([*head, *_hunks(_lines(was), _lines(now), effort), ""])


def quoted(path: str) -> str:
    """A name as git writes it: in quotes with escapes when it holds anything but printable ASCII."""
    text = ""
    for character in path:
        if character in _ESCAPES:
            text += "\\" + _ESCAPES[character]
        elif " " <= character <= "~":
            text += character
        else:
            text += "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
    return text if text == path else f'"{text}"'


def _ended(name: str) -> str:
    """A name with blanks needs an end that is none of it."""
    return name + "\t" if " " in name and not name.startswith('"') else name


def _modes(before: Version | None, after: Version | None) -> list[str]:
    if before is None:
        return [f"new file mode {after.mode:o}"] if after else []
    if after is None:
        return [f"deleted file mode {before.mode:o}"]
    return [f"old mode {before.mode:o}", f"new mode {after.mode:o}"] if before.mode != after.mode else []


def _blob_id(version: Version | None) -> str:
    if version is None:
        return "0" * 40
    head = b"blob %d\0" % len(version.data)
    return hashlib.sha1(head + version.data, usedforsecurity=False).hexdigest()


def _is_text(data: bytes) -> bool:
    if b"\0" in data or len(data) > _TEXT_BYTES:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _literal(data: bytes) -> Iterator[str]:
    """Whole contents in git's base 85: each line has its length first, as one letter."""
    yield f"literal {len(data)}"
    packed = zlib.compress(data)
    for start in range(0, len(packed), 52):
        part = packed[start : start + 52]
        length = chr(ord("A") + len(part) - 1) if len(part) <= 26 else chr(ord("a") + len(part) - 27)
        yield length + base64.b85encode(part, pad=True).decode("ascii")
    yield ""


# Lines -----------------------------------------------------------------------------------------------------------


def _lines(data: bytes) -> list[str]:
    """Lines with their ends; only a line feed ends one."""
    lines = data.decode("utf-8").split("\n")
    last = lines.pop()
    return [line + "\n" for line in lines] + ([last] if last else [])


def _hunks(old: Sequence[str], new: Sequence[str], effort: Effort) -> Iterator[str]:
    blocks = [*matching_blocks(old, new, effort), (len(old), len(new), 0)]
    changes = []  # (start, end) in old, (start, end) in new
    i = j = 0
    for a, b, size in blocks:
        if i < a or j < b:
            changes.append((i, a, j, b))
        i, j = a + size, b + size
    group: list[tuple[int, int, int, int]] = []
    for change in changes:
        if group and change[0] - group[-1][1] > 2 * _CONTEXT:
            yield from _hunk(old, new, group)
            group = []
        group.append(change)
    if group:
        yield from _hunk(old, new, group)


def _hunk(old: Sequence[str], new: Sequence[str], group: Sequence[tuple[int, int, int, int]]) -> Iterator[str]:
    lead = min(_CONTEXT, group[0][0])
    trail = min(_CONTEXT, len(old) - group[-1][1])
    first, last = group[0][0] - lead, group[-1][1] + trail
    yield f"@@ -{_range(first, last)} +{_range(group[0][2] - lead, group[-1][3] + trail)} @@"
    at = first
    for a, a_end, b, b_end in group:
        for line in old[at:a]:
            yield from _marked(" ", line)
        for line in old[a:a_end]:
            yield from _marked("-", line)
        for line in new[b:b_end]:
            yield from _marked("+", line)
        at = a_end
    for line in old[at:last]:
        yield from _marked(" ", line)


def _range(start: int, end: int) -> str:
    count = end - start
    first = start + 1 if count else start  # an empty range lies after the line named
    return f"{first}" if count == 1 else f"{first},{count}"


def _marked(mark: str, line: str) -> tuple[str, ...]:
    if line.endswith("\n"):
        return (mark + line[:-1],)
    return (mark + line, "\\ No newline at end of file")


def matching_blocks(old: Sequence[str], new: Sequence[str], effort: Effort) -> list[tuple[int, int, int]]:
    """Runs of equal lines as (start in old, start in new, length), in order.

    Patience: lines that occur once on both sides and in the same order are anchors, what lies between is looked at in
    the same way, and where nothing is unique a small region gets the longest common subsequence.
    """
    pairs: list[tuple[int, int]] = []
    pending = [(0, len(old), 0, len(new))]
    while pending:
        a, a_end, b, b_end = pending.pop()
        while a < a_end and b < b_end and old[a] == new[b]:
            pairs.append((a, b))
            a, b = a + 1, b + 1
        while a < a_end and b < b_end and old[a_end - 1] == new[b_end - 1]:
            a_end, b_end = a_end - 1, b_end - 1
            pairs.append((a_end, b_end))
        effort.steps -= (a_end - a) + (b_end - b)
        if a == a_end or b == b_end or effort.steps <= 0:
            continue
        anchors = _anchors(old, new, a, a_end, b, b_end)
        if anchors:
            for i, j in anchors:
                pending.append((a, i, b, j))
                pairs.append((i, j))
                a, b = i + 1, j + 1
            pending.append((a, a_end, b, b_end))
            continue
        cells = (a_end - a) * (b_end - b)
        if cells <= min(_GAP_CELLS, effort.steps):
            effort.steps -= cells
            pairs += _common(old, new, a, a_end, b, b_end)
    return _joined(sorted(pairs))


def _joined(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    blocks: list[tuple[int, int, int]] = []
    for i, j in pairs:
        if blocks and blocks[-1][0] + blocks[-1][2] == i and blocks[-1][1] + blocks[-1][2] == j:
            blocks[-1] = (blocks[-1][0], blocks[-1][1], blocks[-1][2] + 1)
        else:
            blocks.append((i, j, 1))
    return blocks


def _anchors(old: Sequence[str], new: Sequence[str], a: int, a_end: int, b: int, b_end: int) -> list[tuple[int, int]]:
    """Lines unique on both sides: the longest chain of them that is in order on both."""
    old_counts, new_counts = Counter(old[a:a_end]), Counter(new[b:b_end])
    places = {new[j]: j for j in range(b, b_end)}
    shared = [
        (i, places[old[i]]) for i in range(a, a_end) if old_counts[old[i]] == 1 and new_counts.get(old[i], 0) == 1
    ]
    tails: list[int] = []  # the smallest end of a chain of each length
    chain: list[int] = []  # its index in `shared`
    before: list[int] = []
    for index, (_, j) in enumerate(shared):
        length = bisect_left(tails, j)
        before.append(chain[length - 1] if length else -1)
        tails[length : length + 1] = [j]
        chain[length : length + 1] = [index]
    found = []
    index = chain[-1] if chain else -1
    while index >= 0:
        found.append(shared[index])
        index = before[index]
    return found[::-1]


def _common(old: Sequence[str], new: Sequence[str], a: int, a_end: int, b: int, b_end: int) -> list[tuple[int, int]]:
    """The longest common subsequence of two regions, by the table of its lengths from the end."""
    below = [0] * (b_end - b + 1)
    table = [below]
    for i in range(a_end - 1, a - 1, -1):
        row = [0] * (b_end - b + 1)
        line = old[i]
        for j in range(b_end - 1, b - 1, -1):
            k = j - b
            row[k] = below[k + 1] + 1 if line == new[j] else max(below[k], row[k + 1])
        table.append(row)
        below = row
    table.reverse()
    found = []
    i, j = a, b
    while i < a_end and j < b_end:
        if old[i] == new[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        elif table[i - a + 1][j - b] >= table[i - a][j - b + 1]:
            i += 1
        else:
            j += 1
    return found
