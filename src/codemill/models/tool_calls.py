"""Tool calls out of the text that a model wrote.

Two ways of writing them are known. The Qwen and Hermes families put the JSON of each call between `<tool_call>` and
`</tool_call>`; the Llama 3 family answers with nothing but the JSON, and some small models do the same inside a code fence.
What is no well-formed call stays text: nothing that a model wrote is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

OPENING, CLOSING = "<tool_call>", "</tool_call>"
_FENCED = re.compile(r"```(?:json|tool_call)?\s*\n(.*?)\n?```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FoundCall:
    """A call; `arguments` is the JSON of an object."""

    name: str
    arguments: str


@dataclass(slots=True)
class ToolCallText:
    """Splits a text, as it comes, into what is shown and the calls. `names` are the tools that exist.

    Text that may turn out to be a call is held back until that is known.
    """

    names: Collection[str]
    calls: list[FoundCall] = field(default_factory=list)
    _held: str = ""
    _behind_call: bool = False
    _begun: bool = False  # something was shown or called: from then on only marked calls are looked for

    def feed(self, text: str) -> str:
        """More text; returns what can be shown now. Calls that became whole are appended to `calls`."""
        self._held += text
        if not self._begun and _may_be_bare(self._held):
            return ""
        shown = ""
        while True:
            start = self._held.find(OPENING)
            if start < 0:
                keep = _open_end(self._held)
                return shown + self._show(len(self._held) - keep)
            shown += self._show(start)  # the opening is now at the start
            end = self._held.find(CLOSING)
            if end < 0:
                return shown
            shown += self._take(self._held[len(OPENING) : end], end + len(CLOSING))

    def rest(self) -> str:
        """The text has ended: what is still to be shown."""
        held, self._held = self._held, ""
        if not self._begun and (bare := _bare_calls(held, self.names)):
            self.calls += bare
            return ""
        if held.startswith(OPENING):  # not closed: the end of the turn came first
            found = _calls(held[len(OPENING) :], self.names)
            self.calls += found
            return "" if found else self._spaced(held)
        return self._spaced(held)

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return self._spaced(shown)

    def _spaced(self, shown: str) -> str:
        """What is shown, without the white space behind a call."""
        if self._behind_call:
            shown = shown.lstrip()
        self._behind_call = self._behind_call and not shown
        self._begun = self._begun or bool(shown)
        return shown

    def _take(self, inside: str, length: int) -> str:
        found = _calls(inside, self.names)
        if not found:
            return self._show(length)
        self.calls += found
        self._begun = self._behind_call = True
        self._held = self._held[length:]
        return ""


def find_tool_calls(text: str, names: Collection[str]) -> tuple[str, list[FoundCall]]:
    """The text without its calls, and the calls."""
    splitter = ToolCallText(names)
    shown = splitter.feed(text) + splitter.rest()
    return (shown.strip() if splitter.calls else shown), splitter.calls


def _may_be_bare(text: str) -> bool:
    start = text.lstrip()
    return not start or start[0] in "{[" or start.startswith("```") or "```".startswith(start)


def _bare_calls(text: str, names: Collection[str]) -> list[FoundCall]:
    fenced = _FENCED.fullmatch(text.strip())
    return _calls(fenced.group(1) if fenced else text, names)


def _calls(text: str, names: Collection[str]) -> list[FoundCall]:
    """The calls in a piece of JSON, an object or a list of them; none if it is anything else or names an unknown tool."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found = [_call(item, names) for item in (given if isinstance(given, list) else [given])]
    return [call for call in found if call is not None] if all(found) else []


def _call(given: Any, names: Collection[str]) -> FoundCall | None:
    if not isinstance(given, dict) or str(given.get("name")) not in names:
        return None
    arguments = given.get("arguments", given.get("parameters", {}))
    if isinstance(arguments, str):  # JSON inside JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return FoundCall(given["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _open_end(text: str) -> int:
    """Length of the longest end of the text with which `<tool_call>` may begin."""
    return next(
        (size for size in range(min(len(OPENING) - 1, len(text)), 0, -1) if OPENING.startswith(text[-size:])), 0
    )
