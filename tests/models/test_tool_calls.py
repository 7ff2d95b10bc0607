"""Tool calls out of text: both ways of writing them, in any pieces, and nothing lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.models.tool_calls import ToolCallText, find_tool_calls

NAMES = {"read", "write"}
CALL = '{"name": "read", "arguments": {"path": "a"}}'


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>\n{CALL}\n</tool_call>",
        f"<tool_call>{CALL}</tool_call>",
        f"<tool_call>{CALL}",
        f"<tool_call>[{CALL}]</tool_call>",
        CALL,
        f"  {CALL}\n",
        f"[{CALL}]",
        f"```json\n{CALL}\n```",
        CALL.replace("arguments", "parameters"),
        '{"name": "read", "arguments": "{\\"path\\": \\"a\\"}"}',
    ],
)
def test_ways_to_write_a_call(text: str) -> None:
    shown, calls = find_tool_calls(text, NAMES)
    assert shown == ""
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("read", {"path": "a"})]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "words {",
        f"first words, then {CALL}",
        '{"name": "other", "arguments": {}}',
        '{"name": ["read"], "arguments": {}}',
        '{"name": "read", "arguments": [1]}',
        '{"name": "read", "arguments": "no json"}',
        "[]",
        "[1]",
        "{" * 100_000,
        "<tool_call>" + "[" * 100_000 + "</tool_call>",
        "<tool_call></tool_call>",
        "```json\nprint(1)\n```",
        "</tool_call><tool_cal",
    ],
)
def test_what_is_no_call_stays_as_it_is(text: str) -> None:
    assert find_tool_calls(text, NAMES) == (text, [])


PARTS = st.sampled_from(
    [
        f"<tool_call>\n{CALL}\n</tool_call>",
        "<tool_call>",
        "</tool_call>",
        CALL,
        "<tool",
        "_call>",
        "words",
        "\n",
        " ",
        "{",
        "```",
        "[]",
    ]
)


@given(parts=st.lists(PARTS, max_size=6), data=st.data())
def test_pieces_say_what_the_whole_says(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    splitter, shown, left = ToolCallText(NAMES), "", text
    while left:
        size = data.draw(st.integers(1, len(left)))
        shown += splitter.feed(left[:size])
        left = left[size:]
    shown += splitter.rest()
    whole = ToolCallText(NAMES)
    expected = whole.feed(text) + whole.rest()
    assert splitter.calls == whole.calls
    assert shown == expected
    if not splitter.calls:
        assert shown == text
