"""The pieces of answers as they come."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from engine_support import PROMPTS, asked, spell, tiny_engine

from codemill.core.contracts import Message, Request, Sampling, ToolCall
from codemill.engine.engine import Piece
from tiny import tiny_checkpoint


@pytest.mark.parametrize("stop", [(), ("ab", "\n\n", "zzzzzz")])
def test_pieces_join_into_the_completion(folder: Path, stop: tuple[str, ...]) -> None:
    engine = tiny_engine(folder, 100, max_batch=4)
    pieces: dict[tuple[str, int], list[Piece]] = defaultdict(list)
    wanted = [
        Request(id=str(i), prompt=text, n=2, sampling=Sampling(max_tokens=60, temperature=1.5, stop=stop, seed=i))
        for i, text in enumerate(PROMPTS)
    ]
    for request in wanted:
        engine.submit(request, lambda piece: pieces[piece.request_id, piece.index].append(piece))
    while engine.busy:
        engine.step()
    assert len(pieces) == 2 * len(PROMPTS)
    for (name, index), got in pieces.items():
        done = got[-1].completion
        assert done is not None
        assert (done.request_id, done.index) == (name, index)
        assert all(piece.completion is None for piece in got[:-1])
        assert "".join(piece.text for piece in got) == done.text
        assert tuple(choice.token for piece in got for choice in piece.choices) == done.token_ids
        assert tuple(choice.logprob for piece in got for choice in piece.choices) == done.logprobs
        assert not any(mark in done.text for mark in stop)


def test_pieces_never_split_a_character(folder: Path) -> None:
    """Tokens are bytes here: a constructed answer of three-byte characters arrives whole or not at all."""
    engine = tiny_engine(folder, 100)
    spell(engine, [*list("→é€x".encode()), 256])
    texts: list[str] = []
    engine.submit(asked("a", "q", max_tokens=20), lambda piece: texts.append(piece.text))
    while engine.busy:
        engine.step()
    assert [text for text in texts if text] == ["→", "é", "€", "x"]


def test_tool_calls_are_taken_out_of_the_text(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + settings["chat_template"]
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    engine = tiny_engine(folder, 100)
    tools = ({"type": "function", "function": {"name": "read", "parameters": {}}},)
    request = Request(
        id="a", messages=(Message(role="user", content="q"),), tools=tools, sampling=Sampling(max_tokens=99)
    )
    prompt, _ = engine.encode(request)
    assert engine.tokenizer.decode(prompt).startswith("read")
    call = '<tool_call>\n{"name": "read", "arguments": {"path": "x"}}\n</tool_call>'
    spell(engine, [0] * (len(prompt) - 1) + [*f"See:\n{call}".encode(), 256])
    (done,) = engine.generate([request])
    assert done.text == "See:"
    assert done.tool_calls == (ToolCall(id="call_0_0", name="read", arguments='{"path": "x"}'),)
    assert engine.tokenizer.decode(done.token_ids) == f"See:\n{call}"


def test_text_that_may_become_a_stop_string_is_held_back(folder: Path) -> None:
    for word, shown, expected in (("axENDyyy", "ax", "ax"), ("axENqyyy", "ax", "axENqyyy")):
        engine = tiny_engine(folder, 100, speculate=False)
        spell(engine, [*word.encode(), 256])
        pieces: list[Piece] = []
        engine.submit(asked("a", "q", max_tokens=20, stop=("END",)), pieces.append)
        for _ in range(4):
            engine.step()
        assert "".join(piece.text for piece in pieces) == shown
        while engine.busy:
            engine.step()
        assert "".join(piece.text for piece in pieces) == expected
        assert pieces[-1].completion is not None
        assert pieces[-1].completion.finish_reason == "stop"


def test_an_answer_that_ends_with_half_a_stop_string_shows_it(folder: Path) -> None:
    engine = tiny_engine(folder, 100)
    spell(engine, [*b"axEN", 256])
    (done,) = engine.generate([asked("a", "q", max_tokens=20, stop=("END",))])
    assert (done.text, done.finish_reason) == ("axEN", "stop")
    spell(engine, [*b"axENDx", 256])
    (done,) = engine.generate([asked("b", "q", max_tokens=4, stop=("END",))])
    assert (done.text, done.finish_reason) == ("axEN", "length")
