"""Stop strings in a stream of bytes: found across token borders, cut exactly, in linear time."""

from __future__ import annotations


class Stops:
    """Finds the stop string that is complete first; of several that end at one place, the longest.

    So the cut does not depend on how the stream falls into pieces. Strings are compared as UTF-8.
    """

    def __init__(self, strings: tuple[str, ...]) -> None:
        self._matches = [_Match(string.encode()) for string in strings]
        self._held = b""  # the end of the stream, as far as it may be the beginning of a stop string
        self._found = False

    def feed(self, piece: bytes) -> tuple[bytes, bool]:
        """Bytes that are safe to show now, and whether a stop string was found: the text ends before it."""
        if self._found:
            return b"", True
        complete = [(end, -match.length) for match in self._matches if (end := match.advance(piece)) >= 0]
        data = self._held + piece
        if complete:
            end, minus_length = min(complete)
            self._found, safe = True, len(self._held) + end + minus_length
            self._held = b""
            return data[:safe], True
        safe = len(data) - max((match.state for match in self._matches), default=0)
        self._held = data[safe:]
        return data[:safe], False

    def rest(self) -> bytes:
        """What was held back, when the answer ends otherwise."""
        return self._held


class _Match:
    """One string's automaton (Knuth, Morris and Pratt 1977). Its failure table grows with the longest match so far: a long
    string that never begins costs nothing."""

    __slots__ = ("_failures", "_first", "_string", "length", "state")

    def __init__(self, string: bytes) -> None:
        self._string, self._first = string, string[:1]
        self._failures = [0, 0]  # of the first n bytes: the longest proper prefix that is a suffix as well
        self.length = len(string)
        self.state = 0  # how many bytes at the end of the stream are the beginning of the string

    def advance(self, piece: bytes) -> int:
        """Read on; where in `piece` the string's first occurrence ends, -1 if it does not."""
        string, failures, state, place = self._string, self._failures, self.state, 0
        while place < len(piece):
            if not state:
                place = piece.find(self._first, place)
                if place < 0:
                    break
            byte = piece[place]
            while state and string[state] != byte:
                state = failures[state]
            state += string[state] == byte
            place += 1
            if state == len(string):
                return place
            if state == len(failures):
                failures.append(self._failure(state))
        self.state = state
        return -1

    def _failure(self, length: int) -> int:
        byte, shorter = self._string[length - 1], self._failures[length - 1]
        while shorter and self._string[shorter] != byte:
            shorter = self._failures[shorter]
        return shorter + (self._string[shorter] == byte)
