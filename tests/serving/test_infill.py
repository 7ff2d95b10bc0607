"""`/infill` in the request shapes of llama.vim and llama.vscode, and the window over a file."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_support import Running, Script, ScriptedService, events_of, running

from codemill.engine.engine import Engine
from codemill.serving.window import SLIDING_LINES, SUFFIX_LINES, choose_window

FIELDS = [
    "content", "timings/prompt_n", "timings/prompt_ms", "timings/prompt_per_token_ms", "timings/prompt_per_second",
    "timings/predicted_n", "timings/predicted_ms", "timings/predicted_per_token_ms", "timings/predicted_per_second",
    "truncated", "tokens_cached",
]  # fmt: skip
FILE = [f"value_{number} = compute({number})" for number in range(120)]


def vim(prefix: str, line: str, suffix: str, extra: Any = (), **more: Any) -> dict[str, Any]:
    """What llama.vim sends on a key stroke."""
    return {
        "input_prefix": prefix, "input_suffix": suffix, "input_extra": list(extra), "prompt": line, "n_predict": 16,
        "n_indent": len(line) - len(line.lstrip()), "top_k": 40, "top_p": 0.99, "stream": False,
        "samplers": ["top_k", "top_p", "infill"], "cache_prompt": True, "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000, "response_fields": FIELDS, **more,
    }  # fmt: skip


def vim_warm(extra: Any) -> dict[str, Any]:
    """What llama.vim sends to fill the cache."""
    return {
        "input_prefix": "", "input_suffix": "", "input_extra": extra, "prompt": "", "n_predict": 0, "temperature": 0.0,
        "stream": False, "samplers": ["temperature"], "cache_prompt": True, "t_max_prompt_ms": 1,
        "t_max_predict_ms": 1, "response_fields": [""],
    }  # fmt: skip


def post(server: Running, body: dict[str, Any]) -> httpx.Response:
    with server.client() as client:
        return client.post("/infill", json=body)


def test_llama_vim_gets_the_fields_it_asks_for(served: Running) -> None:
    answer = post(served, vim("import os\n", "x = ", "\ny = 2\n")).json()
    assert set(answer) == set(FIELDS)
    assert isinstance(answer["content"], str)
    assert answer["timings/predicted_n"] >= 1
    assert answer["tokens_cached"] > len("import os\nx = ")
    assert post(served, vim_warm([{"text": "def f():\n    pass\n", "time": 1, "filename": "a.py"}])).json() == {}


def test_llama_vscode_gets_everything(served: Running) -> None:
    body = vim("import os\n", "", "\ny = 2\n")
    del body["response_fields"]
    answer = post(served, body).json()
    assert {"content", "generation_settings", "tokens_cached", "truncated", "timings", "stop"} <= set(answer)
    assert answer["timings"]["prompt_n"] + answer["timings"]["cache_n"] == answer["tokens_evaluated"]
    warm = {**body, "n_predict": 0, "samplers": [], "t_max_predict_ms": 1}
    answer = post(served, warm).json()
    assert (answer["content"], answer["tokens_predicted"]) == ("", 0)


def test_typing_finds_the_prompt_in_the_cache(served: Running) -> None:
    prefix, suffix = "\n".join(FILE[:60]) + "\n", "\n" + "\n".join(FILE[60:100])
    computed = []
    for typed in ("", "v", "va", "val", "valu"):
        answer = post(served, vim(prefix, typed, suffix, n_predict=1)).json()
        computed.append(answer["timings/prompt_n"])
    assert computed[0] > 1500
    assert max(computed[1:]) <= 64 + 5  # at most two blocks of the cache and what was typed


def test_without_a_temperature_the_answer_is_the_likeliest(served: Running) -> None:
    body = vim("a\n", "b", "\nc\n", trim=False)
    assert len({post(served, body).json()["content"] for _ in range(3)}) == 1
    other = {post(served, {**body, "temperature": 2.0}).json()["content"] for _ in range(4)}
    assert len(other) > 1


def scripted(engine: Engine, script: Script, body: dict[str, Any]) -> dict[str, Any]:
    with running(ScriptedService(engine, script)) as server:
        response = post(server, body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer


def test_the_prompt_is_prefix_suffix_and_the_line(engine: Engine) -> None:
    script, fim = Script(["1"]), engine.tokenizer.fim
    assert fim is not None
    scripted(engine, script, vim("a\nb\n", "    c = ", "\nd\n"))
    scripted(engine, script, vim("a\nb\n", "", "\nd\n", [{"text": "other", "filename": "o.py"}]))
    assert script.prompts == [
        [fim.prefix, *b"a\nb\n", fim.suffix, *b"\nd\n", fim.middle, *b"    c ="],
        [fim.prefix, *b"other\n\na\nb\n", fim.suffix, *b"\nd\n", fim.middle],  # no repository tokens: as text before
    ]


@pytest.mark.parametrize(
    ("line", "written", "shown"),
    [
        ("    ", "    return x", "return x"),  # the spaces before the cursor are the model's to write, and not shown
        ("    ", "return x", "return x"),
        ("    ", "  return x", "return x"),
        ("    ", "        return x", "    return x"),
        ("    ", "\n    return x", "\n    return x"),
        ("\t", "\treturn x", "return x"),
        ("x = ", " 1", "1"),
        ("x =", " 1", " 1"),
        ("    ", "", ""),
        ("    ", "   ", ""),
    ],
)
def test_spaces_before_the_cursor_are_not_written_twice(engine: Engine, line: str, written: str, shown: str) -> None:
    for size in (1, 3, 100):
        body = vim("def f(x):\n", line, "\n", n_indent=0, trim=False)
        script = Script([written], size=size)
        assert scripted(engine, script, body)["content"] == shown
        assert script.prompts[0][-1] != ord(" ")


def test_an_answer_is_cut_and_not_written_to_its_end(engine: Engine) -> None:
    text = "return x\n\n\ndef g(y):\n" + "    pass\n" * 200
    script = Script([text], size=8)
    answer = scripted(engine, script, vim("def f(x):\n", "    ", "\n", n_predict=2000))
    assert answer["content"] == "return x"
    assert script.given < 10
    assert script.closed == 1
    raw = scripted(engine, Script([text]), vim("def f(x):\n", "    ", "\n", n_predict=2000, trim=False))
    assert raw["content"] == text


def test_a_long_answer_ends_with_its_line_when_time_is_up(engine: Engine) -> None:
    text = "".join(f"line {number}\n" for number in range(2000))
    script = Script([text], size=4, seconds=0.01)
    started = time.monotonic()
    answer = scripted(engine, script, vim("", "", "", n_predict=2000, t_max_predict_ms=200, trim=False))
    assert time.monotonic() - started < 15
    assert 0 < len(answer["content"]) < len(text) / 2
    assert text.startswith(answer["content"])


def test_a_stream_of_pieces_and_their_end(engine: Engine) -> None:
    script = Script(["a = 1\n    b = 2"])
    body = vim("def f():\n", "    ", "\n", stream=True)
    del body["response_fields"]
    with running(ScriptedService(engine, script)) as server:
        events = events_of(post(server, body))
    assert "".join(event["content"] for event in events) == "a = 1\n    b = 2"
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]


def test_a_file_larger_than_the_context_is_windowed(served: Running) -> None:
    prefix = "\n".join(FILE * 20) + "\n"
    answer = post(served, vim(prefix, "x = ", "\n" + prefix)).json()
    assert answer["timings/predicted_n"] >= 1
    assert answer["tokens_cached"] <= 4096
    one_line = post(served, vim("x" * 100_000, "y" * 100_000, "z" * 100_000))
    assert one_line.status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input_prefix": 1}, "input_prefix"),
        ({"n_predict": 10**9}, "n_predict"),
        ({"n_predict": 5000}, "do not fit"),
        ({"input_extra": [{"filename": "a"}]}, "text"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_bad_requests(served: Running, body: dict[str, Any], words: str) -> None:
    response = post(served, body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


# The window


def lengths(texts: Any) -> list[int]:
    return [len(text) for text in texts]


def test_a_small_file_is_taken_whole() -> None:
    window = choose_window("a\nb\nc", " = ", "\nd\n", 1000, lengths)
    assert (window.before, window.line, window.after) == ("a\nb\n", "c = ", "\nd\n")


def test_the_suffix_is_a_few_lines() -> None:
    window = choose_window("", "", "\n".join(FILE), 1 << 30, lengths)
    assert window.after == "\n".join(FILE[:SUFFIX_LINES]) + "\n"


def test_typing_does_not_move_the_start_of_a_long_prefix() -> None:
    lines = [f"line {number} of the file\n" for number in range(1000)]
    starts = {choose_window("".join(lines), "x" * typed, "\n", 9000, lengths).before for typed in range(40)}
    assert len(starts) == 1
    (start,) = starts
    assert "".join(lines).endswith(start)
    assert 9000 / 4 < len(start) <= 9000


def test_an_editors_sliding_window_keeps_its_start() -> None:
    lines = [f"line {number} of the file\n" for number in range(1000)]
    starts = [
        choose_window("".join(lines[at : at + SLIDING_LINES]), "", "", 1 << 30, lengths).before.split("\n", 1)[0]
        for at in range(500, 530)
    ]
    assert len(set(starts)) <= 3


@given(
    prefix=st.text(alphabet="ab\n", max_size=400),
    line=st.text(alphabet="ab ", max_size=60),
    suffix=st.text(alphabet="ab\n", max_size=400),
    room=st.integers(1, 500),
)
def test_a_window_is_a_part_of_the_file_and_fits(prefix: str, line: str, suffix: str, room: int) -> None:
    window = choose_window(prefix, line, suffix, room, lengths)
    around = window.before + window.line
    assert (prefix + line).endswith(around) or (prefix + line).endswith(window.line)
    assert suffix.startswith(window.after)
    assert sum(lengths([window.before, window.line, window.after])) <= max(room, 3)
