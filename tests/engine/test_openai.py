"""`OpenAIGenerator` against servers that behave, that have their own ways, and that are hostile. All on the loopback."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import pytest

from codemill.core.contracts import Completion, Constraint, ContextFile, Message, Request, Sampling, ToolCall
from codemill.core.errors import ConfigError, InputError, UnavailableError
from codemill.core.records import dumps
from codemill.engine import openai_http
from codemill.engine.openai import PROBE_SUFFIX, OpenAIGenerator, Price
from codemill.engine.openai_http import Patience
from codemill.engine.openai_wire import cut_to_bytes, problem_in, question, seed_for
from openai_server import Asked, OpenAIServer, Say, chat, completion, counted, error, models

QUICK = Patience(connect=2.0, first_byte=5.0, whole=10.0, retries=3, pause=0.01, longest_pause=0.05)
PATH = "/v1/completions"


def generator(server: OpenAIServer, **changes: Any) -> OpenAIGenerator:
    return OpenAIGenerator(server.url, "m", **{"patience": QUICK, **changes})


def ask(server: OpenAIServer, *requests: Request, **changes: Any) -> list[Completion]:
    given = requests or (Request(id="r", prompt="p"),)
    return sorted(generator(server, **changes).generate(given), key=lambda c: (c.request_id, c.index))


def one(answer: Any, request: Request | None = None, **changes: Any) -> tuple[Completion, OpenAIServer]:
    """The completion of one request by a server that answers with `answer`, or with what `answer` returns."""
    with OpenAIServer(answer if callable(answer) else lambda asked: Say(answer)) as server:
        (found,) = ask(server, request or Request(id="r", prompt="p"), **changes)
    return found, server


# What is asked


def test_a_prompt_becomes_a_request_that_says_everything() -> None:
    how = Sampling(
        max_tokens=9, temperature=0.5, top_p=0.9, stop=("\n\n",), stop_token_ids=(3,), logit_bias={7: -1.5}, seed=4
    )
    found, server = one(completion("x", tokens=2), Request(id="r", prompt="def f", sampling=how))
    (body,) = server.bodies(PATH)
    seed = body.pop("seed")
    assert 0 <= seed < 2**31
    # top_k -1, min_p 0 and penalties of 1 are said: servers have defaults of their own for what is left out
    assert body == {
        "model": "m", "prompt": "def f", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.0,
        "repetition_penalty": 1.0, "repeat_penalty": 1.0, "stream": False, "stop": ["\n\n"], "stop_token_ids": [3],
        "logit_bias": {"7": -1.5},
    }  # fmt: skip
    assert (found.text, found.finish_reason, found.prompt_tokens, found.completion_tokens) == ("x", "stop", 7, 2)
    assert found.token_ids == found.logprobs == ()


def test_requests_of_one_seed_draw_with_different_seeds() -> None:
    seeds = {seed_for(Request(id=f"t#{s}"), index) for s in range(3) for index in range(3)}
    assert len(seeds) == 9
    assert (
        seed_for(Request(id="t"), 0)
        == seed_for(Request(id="t"), 0)
        != seed_for(Request(id="t", sampling=Sampling(seed=1)), 0)
    )


def test_messages_and_tools_become_a_chat() -> None:
    tool = {"name": "ls", "description": "list", "parameters": {"type": "object"}}
    call = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"path": "."}'}}
    messages = (
        Message(role="system", content="s"),
        Message(role="user", content="u"),
        Message(role="assistant", content="", tool_calls=(ToolCall(id="c0", name="ls", arguments="{}"),)),
        Message(role="tool", content="a.py", tool_call_id="c0"),
    )
    answer = chat({"content": None, "tool_calls": [call]}, finish="tool_calls")
    found, server = one(
        answer, Request(id="r", messages=messages, tools=(tool, {"type": "function", "function": tool}))
    )
    (body,) = server.bodies("/v1/chat/completions")
    assert body["messages"][2]["tool_calls"][0]["function"] == {"name": "ls", "arguments": "{}"}
    assert body["messages"][3] == {"role": "tool", "content": "a.py", "tool_call_id": "c0"}
    assert body["tools"] == [{"type": "function", "function": tool}] * 2
    assert found.tool_calls == (ToolCall(id="c1", name="ls", arguments='{"path": "."}'),)
    assert (found.text, found.finish_reason, found.cached_tokens) == ("", "stop", 8)


def test_a_chat_answer_may_come_in_parts_and_with_arguments_as_an_object() -> None:
    function = {"name": "f", "arguments": {"a": 1}}
    answer = chat(
        {
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "tool_calls": [{"function": function}],
        }
    )
    found, _ = one(answer, Request(id="r", messages=(Message(role="user", content="u"),)))
    assert found.text == "ab"
    assert found.tool_calls == (ToolCall(id="call_0", name="f", arguments='{"a": 1}'),)


def test_n_completions_are_told_apart_and_drawn_apart() -> None:
    with OpenAIServer(lambda asked: Say(completion(str(asked.body["seed"])))) as server:
        found = ask(server, Request(id="a", prompt="p", n=5), Request(id="b", prompt="p"))
    assert [(c.request_id, c.index) for c in found] == [*(("a", i) for i in range(5)), ("b", 0)]
    assert len({c.text for c in found}) == 6


def test_token_ids_as_prompt_and_a_half_surrogate_pair() -> None:
    found, server = one(completion("ok \ud83d"), Request(id="r", prompt_ids=(1, 2, 3)))
    assert server.bodies(PATH)[0]["prompt"] == [1, 2, 3]
    assert found.text == "ok \ufffd"
    dumps(found)
    found, server = one(completion("x"), Request(id="r", prompt="a\ud800b"))
    assert server.bodies(PATH)[0]["prompt"] == "a\ud800b"
    assert found.text == "x"


def test_a_schema_is_asked_for_and_its_breach_is_noticed() -> None:
    how = Sampling(constraint=Constraint(kind="json_schema", text='{"type": "object"}'))
    found, server = one(completion('{"a": 1}'), Request(id="r", prompt="p", sampling=how))
    assert server.bodies(PATH)[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert found.text == '{"a": 1}'
    found, _ = one(completion("sure! {"), Request(id="r", prompt="p", sampling=how))
    assert "did not keep to the JSON schema" in found.error


def test_a_prompt_is_cut_to_its_budget_at_its_far_ends() -> None:
    _, server = one(completion("x"), Request(id="r", prompt="é" * 100 + "end", max_prompt_tokens=3))
    assert server.bodies(PATH)[0]["prompt"] == "éééend"
    assert cut_to_bytes("a" * 30, "b" * 30, 30) == ("a" * 20, "b" * 10)
    assert cut_to_bytes("a" * 30, "bb", 30) == ("a" * 28, "bb")
    assert cut_to_bytes("aa", "b" * 30, 30) == ("aa", "b" * 28)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=math.nan),
        Sampling(temperature=-1.0),
        Sampling(top_p=0.0),
        Sampling(max_tokens=0),
        Sampling(stop=("",)),
        Sampling(repetition_penalty=math.inf),
        Sampling(logit_bias={1: math.nan}),
        Sampling(constraint=Constraint(kind="regex", text="a+")),
        Sampling(constraint=Constraint(kind="json_schema", text="{")),
    ],
)
def test_what_cannot_be_asked_fails_alone_and_is_not_sent(sampling: Sampling) -> None:
    with OpenAIServer(lambda asked: Say(completion("x"))) as server:
        bad, good = ask(server, Request(id="bad", prompt="p", sampling=sampling), Request(id="good", prompt="p"))
    assert bad.finish_reason == "error"
    assert "bad" in bad.error
    assert good.text == "x"
    assert len(server.asked) == 1


# What is answered


@pytest.mark.parametrize(
    ("said", "tokens", "means"),
    [("stop", 3, "stop"), ("length", 3, "length"), ("eos", 3, "stop"), (None, 3, "stop"), (None, 256, "length")],
)
def test_finish_reasons(said: str | None, tokens: int, means: str) -> None:
    assert one(completion("x", finish=said, tokens=tokens))[0].finish_reason == means


def test_a_withheld_answer_is_an_error() -> None:
    assert "content filter" in one(completion("", finish="content_filter"))[0].error


def test_text_ends_before_a_stop_string_whatever_the_server_does() -> None:
    how = Sampling(stop=("\ndef ", "\nclass "))
    found, _ = one(completion("    pass\nclass A\ndef g", finish="length"), Request(id="r", prompt="p", sampling=how))
    assert (found.text, found.finish_reason) == ("    pass", "stop")


def test_logprobs_in_both_layouts() -> None:
    how = Sampling(top_logprobs=2, temperature=1.0)
    lists = {
        "tokens": ["token_id:5", "token_id:6"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"token_id:5": -0.5, "token_id:9": -2.0}, None],
        "text_offset": [0, 1],
    }
    found, server = one(completion("ab", logprobs=lists), Request(id="r", prompt="p", sampling=how))
    assert (server.bodies(PATH)[0]["logprobs"], server.bodies(PATH)[0]["return_tokens_as_token_ids"]) == (2, True)
    assert found.token_ids == (5, 6)
    assert found.logprobs == found.raw_logprobs == (-0.5, -1.0)
    assert found.top_logprobs == (((5, -0.5), (9, -2.0)), ())
    entries = {"content": [{"token": "hi", "logprob": -0.25, "top_logprobs": [{"token": "hi", "logprob": -0.25}]}]}
    request = Request(
        id="r", messages=(Message(role="user", content="u"),), sampling=Sampling(temperature=0.7, top_logprobs=1)
    )
    found, server = one(chat({"content": "hi"}, logprobs=entries), request)
    assert server.bodies("/v1/chat/completions")[0]["logprobs"] is True
    assert found.token_ids == found.top_logprobs == ()
    assert found.raw_logprobs == (-0.25,)
    assert found.logprobs == ()  # of another distribution than the one sampled from


def test_cost_is_tokens_times_price() -> None:
    found, _ = one(completion("x", prompt_tokens=2_000_000, tokens=500_000), price=Price(prompt=0.5, completion=4.0))
    assert found.cost == pytest.approx(3.0)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        "text",
        {},
        {"choices": []},
        {"choices": {}},
        {"choices": [None]},
        {"choices": [{"text": 5}]},
        {"choices": [{"text": None}]},
        {"choices": [{"text": "x", "finish_reason": 3}]},
        {"choices": [{"text": "x", "finish_reason": "abort"}]},
        {**completion("x"), "usage": {"prompt_tokens": -1}},
        {**completion("x"), "usage": {"prompt_tokens": True}},
        {**completion("x"), "usage": {"completion_tokens": "many"}},
        {**completion("x"), "usage": []},
        {**completion("x"), "model": 7},
        completion("x", logprobs={"tokens": ["a"], "token_logprobs": []}),
        completion("x", logprobs={"tokens": ["a"], "token_logprobs": ["-1"]}),
        completion("x", logprobs={"tokens": ["a"], "token_logprobs": [5.0]}),
        completion("x", logprobs={"content": [7]}),
        b'{"choices": [{"text": "x", "logprobs": {"tokens": ["a"], "token_logprobs": [NaN]}}]}',
        b'{"choices": [{"text": "x", "logprobs": {"tokens": ["a"], "top_logprobs": [3], "token_logprobs": [-1]}}]}',
    ],
)
def test_wrong_types_are_an_error_and_are_not_asked_again(answer: Any) -> None:
    found, server = one(answer)
    assert found.finish_reason == "error"
    assert found.error
    assert len(found.error) < 400
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "call",
    [
        7,
        {},
        {"function": {}},
        {"function": {"name": 5}},
        {"function": {"name": "f", "arguments": []}},
        {"id": 4, "function": {"name": "f"}},
    ],
)
def test_wrong_tool_calls_are_an_error(call: Any) -> None:
    request = Request(id="r", messages=(Message(role="user", content="u"),))
    found, _ = one(chat({"content": "", "tool_calls": [call]}), request)
    assert found.finish_reason == "error"


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>502</html>", b'{"choices": [', b"\xff\xfe\x00", b"[" * 200_000, b'{"a": ' + b"9" * 10_000 + b"}"],
    ids=["empty", "page", "cut", "bytes", "deep", "digits"],
)
def test_broken_json_is_asked_again_and_then_an_error(data: bytes) -> None:
    found, server = one(data)
    assert "malformed" in found.error
    assert len(server.asked) == 1 + QUICK.retries
    found, server = one(lambda asked: Say(data if asked.number == 0 else completion("good")))
    assert found.text == "good"


# When it goes wrong


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422, 501])
def test_final_statuses_are_asked_once(status: int) -> None:
    found, server = one(lambda asked: error(status, "no\x1b[31m such\nthing"))
    assert f"HTTP {status}: no␛[31m such thing" in found.error
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "context_length_exceeded"), (429, "insufficient_quota"), (503, "content_policy_violation")],
)
def test_final_codes_are_asked_once_whatever_the_status(status: int, code: str) -> None:
    found, server = one(lambda asked: error(status, "no", code=code))
    assert found.finish_reason == "error"
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_passing_statuses_are_asked_again(status: int) -> None:
    found, server = one(lambda asked: error(status, "later") if asked.number < 2 else Say(completion("good")))
    assert (found.text, len(server.asked)) == ("good", 3)
    found, server = one(lambda asked: error(status, "never"))
    assert "never" in found.error
    assert len(server.asked) == 1 + QUICK.retries


def test_redirects_are_not_followed_and_the_key_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    with OpenAIServer(lambda asked: Say(completion("stolen"))) as other:
        found, server = one(
            lambda asked: Say(b"", 307, {"Location": f"{other.url}/v1/completions"}), api_key_env="TEST_KEY"
        )
    assert "redirects are not followed" in found.error
    assert len(server.asked) == 1
    assert other.asked == []
    assert server.asked[0].headers["authorization"] == "Bearer sk-secret"


@pytest.mark.parametrize("http_date", [False, True])
def test_a_pause_that_the_server_asks_for_is_kept_by_all(http_date: bool) -> None:
    arrived: list[float] = []

    def answer(asked: Asked) -> Say:
        arrived.append(time.monotonic())
        if asked.number == 0:
            after = formatdate(time.time() + 2, usegmt=True) if http_date else "1"
            return Say(b"", 429, {"Retry-After": after})
        return Say(completion("x"), seconds=0.05)

    with OpenAIServer(answer) as server:
        found = ask(server, *(Request(id=str(i), prompt="p") for i in range(3)), concurrency=1)
    assert [c.text for c in found] == ["x"] * 3
    assert arrived[1] - arrived[0] >= 0.9


def test_a_pause_longer_than_there_is_time_fails_at_once() -> None:
    started = time.monotonic()
    found, server = one(lambda asked: Say(b"", 429, {"Retry-After": "86400"}))
    assert "too long" in found.error
    assert len(server.asked) == 1
    assert time.monotonic() - started < QUICK.whole / 2


@pytest.mark.parametrize("value", ["nan", "inf", "-5", "1e999", "soon", "Mon, 99 Foo"])
def test_a_pause_that_is_nonsense_is_none(value: str) -> None:
    found, _ = one(lambda asked: Say(b"", 503, {"Retry-After": value}) if asked.number == 0 else Say(completion("x")))
    assert found.text == "x"


def test_a_connection_cut_in_the_middle_is_tried_again() -> None:
    found, server = one(lambda asked: Say(completion("x"), declared=9999 if asked.number == 0 else None))
    assert (found.text, len(server.asked)) == ("x", 2)
    found, _ = one(lambda asked: Say(completion("x"), declared=9999))
    assert "connection failed" in found.error


def test_a_server_that_says_nothing_is_given_up() -> None:
    patience = Patience(connect=1.0, first_byte=0.2, whole=5.0, retries=1, pause=0.01)
    found, server = one(lambda asked: Say(hang=True), patience=patience)
    assert "nothing came within 0.2 s" in found.error
    assert len(server.asked) == 2


def test_a_server_that_drips_is_given_up() -> None:
    patience = Patience(connect=1.0, first_byte=1.0, whole=0.6, retries=3, pause=0.01)
    found, _ = one(lambda asked: Say(completion("x"), drip=0.05), patience=patience)
    assert "no answer within 0.6 s" in found.error


def test_a_body_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_http, "MAX_BODY", 1 << 20)
    found, server = one(lambda asked: Say(b"x" * 65536, endless=True))
    assert "larger than 1 MiB" in found.error
    assert len(server.asked) == 1
    found, _ = one(lambda asked: Say(b"x" * 65536, status=400, endless=True))
    assert found.error.startswith("HTTP 400: xxx")
    assert len(found.error) < 400


def test_a_compressed_answer_is_refused_not_unpacked() -> None:
    found, server = one(lambda asked: Say(b"\x1f\x8b" + b"0" * 99, headers={"Content-Encoding": "gzip"}))
    assert server.asked[0].headers["accept-encoding"] == "identity"
    assert "compressed" in found.error


def test_no_server_is_an_error_that_says_so() -> None:
    with OpenAIServer(lambda asked: Say()) as server:
        url = server.url
    (found,) = OpenAIGenerator(url, "m", patience=QUICK).generate([Request(id="r", prompt="p")])
    assert "connection failed" in found.error
    with pytest.raises(UnavailableError, match="connection failed"):
        OpenAIGenerator(url, "m", patience=QUICK).check()


def test_one_failure_leaves_the_others_alone_and_order_does_not_matter() -> None:
    def answer(asked: Asked) -> Say:
        prompt = asked.body["prompt"]
        if prompt == "3":
            return error(400, "bad")
        return Say(completion(f"answer {prompt}"), seconds=0.02 * (9 - int(prompt)))

    with OpenAIServer(answer) as server:
        requests = [Request(id=f"r{i}", prompt=str(i)) for i in range(9)]
        found = list(generator(server, concurrency=9).generate(requests))
    assert [c.request_id for c in found] != [r.id for r in requests]
    assert {c.request_id: c.text for c in found} == {f"r{i}": "" if i == 3 else f"answer {i}" for i in range(9)}


def test_no_more_are_asked_at_once_than_allowed_and_requests_are_taken_as_needed() -> None:
    taken = 0

    def requests() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield Request(id=str(taken), prompt="p")

    with OpenAIServer(lambda asked: Say(completion("x"), seconds=0.02)) as server:
        stream = generator(server, concurrency=3).generate(requests())
        for _ in range(10):
            next(stream)
        stream.close()
        assert server.peak <= 3
    assert taken <= 14


def test_closing_the_iterator_cancels_what_is_under_way() -> None:
    before = threading.active_count()
    with OpenAIServer(lambda asked: Say(completion("x")) if asked.number == 0 else Say(hang=True)) as server:
        stream = generator(server, concurrency=4).generate(Request(id=str(i), prompt="p") for i in range(9))
        assert next(stream).text == "x"
        time.sleep(0.2)
        stream.close()
        for _ in range(100):
            if server.left >= 3:
                break
            time.sleep(0.02)
        assert server.left >= 3
        assert not [thread for thread in threading.enumerate() if thread.name == "openai-client"]
    assert threading.active_count() <= before + 5  # the server's own


def test_an_error_in_the_requests_ends_generation_cleanly() -> None:
    def requests() -> Iterator[Request]:
        yield Request(id="a", prompt="p")
        raise ValueError("mine")

    with OpenAIServer(lambda asked: Say(hang=True)) as server:
        with pytest.raises(ValueError, match="mine"):
            list(generator(server).generate(requests()))
    assert not [thread for thread in threading.enumerate() if thread.name == "openai-client"]


def test_two_servers_can_be_asked_from_inside_an_event_loop() -> None:
    import asyncio

    async def inside() -> list[str]:
        with OpenAIServer(lambda asked: Say(completion("x"))) as server:
            return [c.text for c in generator(server).generate([Request(id="r", prompt="p")])]

    assert asyncio.run(inside()) == ["x"]


# Fields that a server does not know


def test_a_refused_field_that_changes_nothing_is_left_out_from_then_on() -> None:
    def answer(asked: Asked) -> Say:
        for name in ("top_k", "min_p", "repetition_penalty"):
            if name in asked.body:
                return error(400, f"Unrecognized request argument supplied: {name}")
        return Say(completion("x"))

    with OpenAIServer(answer) as server:
        client = generator(server, concurrency=1)
        assert [c.text for c in client.generate(Request(id=str(i), prompt="p") for i in range(3))] == ["x"] * 3
    assert len(server.asked) == 3 + 3
    assert "repeat_penalty" in server.asked[-1].body


def test_a_refused_field_that_matters_is_an_error() -> None:
    found, server = one(
        lambda asked: error(400, "Unrecognized request argument supplied: top_k"),
        Request(id="r", prompt="p", sampling=Sampling(temperature=1.0, top_k=5)),
    )
    assert "top_k" in found.error
    assert len(server.asked) == 1


# Keys, addresses, models


def test_the_key_appears_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-abcdef123456")
    found, server = one(lambda asked: error(401, "Incorrect API key: sk-abcdef123456"), api_key_env="TEST_KEY")
    assert server.asked[0].headers["authorization"] == "Bearer sk-abcdef123456"
    assert "sk-abcdef123456" not in dumps(found)
    assert "[key]" in found.error
    assert "sk-" not in repr(OpenAIGenerator("http://x", "m", api_key_env="TEST_KEY"))


@pytest.mark.parametrize("value", [None, "", "two words", "line\nbreak", "schlüssel"])
def test_a_bad_key_names_the_variable_and_not_the_value(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(ConfigError, match="TEST_KEY") as caught:
        OpenAIGenerator("http://x", "m", api_key_env="TEST_KEY")
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/v1/", "http://h:8000/v1"),
        ("https://h/openai/v1", "https://h/openai/v1"),
        ("https://h/api", "https://h/api/v1"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
    ],
)
def test_addresses(given: str, base: str) -> None:
    assert OpenAIGenerator(given, "m").base == base


@pytest.mark.parametrize(
    "given", ["", "h:8000", "ftp://h", "http://", "http://u:secret@h", "http://h/v1?key=secret", "http://h:x"]
)
def test_addresses_that_are_refused(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        OpenAIGenerator(given, "m")
    assert "secret" not in str(caught.value)


def test_the_model_is_looked_for_before_work() -> None:
    with OpenAIServer(lambda asked: models("qwen:latest", "m")) as server:
        assert generator(server).check() == {"owned_by": "vllm"}
        with pytest.raises(InputError, match="did you mean 'qwen:latest'"):
            OpenAIGenerator(server.url, "qwen", patience=QUICK).check()
    for said in (error(404, "no"), Say(b"[]"), Say({"data": [1, {"id": 5}]})):
        with OpenAIServer(lambda asked, said=said: said) as server:
            assert generator(server).check() == {}
    with OpenAIServer(lambda asked: error(401, "who are you")) as server:
        with pytest.raises(UnavailableError, match="who are you"):
            generator(server).check()
    with OpenAIServer(lambda asked: error(503, "Loading model") if asked.number == 0 else models("m")) as server:
        assert generator(server).check()


# Does it infill?


def honest(asked: Asked) -> Say:
    if asked.path != PATH:
        return error(404, "Not Found")
    return Say(completion("gap" if "suffix" in asked.body else "on", prompt_tokens=counted(asked.body)))


def unread(asked: Asked) -> Say:
    if asked.path != PATH:
        return error(404, "Not Found")
    return Say(completion("on", prompt_tokens=len(asked.body["prompt"].split())))


def vllm(asked: Asked) -> Say:
    return error(400, "suffix is not currently supported", code=400) if "suffix" in asked.body else honest(asked)


def llama_cpp(asked: Asked) -> Say:
    if asked.path == "/infill":
        text = f"{asked.body['input_prefix']} {asked.body['input_suffix']}"
        facts = {
            "tokens_evaluated": len(text.split()) + 3,
            "tokens_predicted": 2,
            "timings": {"cache_n": 1},
            "stop_type": "eos",
        }
        return Say({"content": "gap", "model": "f.gguf", **facts})
    if "suffix" in asked.body:
        return error(500, "Unsupported param: suffix", type="server_error", code=500)
    return honest(asked)


GAP = Request(id="r", prompt="a = ", suffix="\nb = 2\n", context=(ContextFile(path="c.py", text="C = 1\n"),))


def test_a_suffix_that_is_read_is_used() -> None:
    with OpenAIServer(honest) as server:
        client = generator(server)
        assert client.infills
        assert [c.text for c in client.generate([GAP, GAP])] == ["gap", "gap"]
    assert len(server.asked) == 4  # two to find out, once
    assert server.bodies(PATH)[-1]["suffix"] == "\nb = 2\n"
    assert server.bodies(PATH)[1]["suffix"] == PROBE_SUFFIX
    assert [body.get("trim") for body in server.bodies(PATH)] == [None, False, False, False]
    assert [body["max_tokens"] for body in server.bodies(PATH)] == [1, 1, 256, 256]


@pytest.mark.parametrize(
    ("behaviour", "why"), [(unread, "left unread"), (vllm, "suffix is not currently supported")], ids=["unread", "vllm"]
)
def test_a_suffix_that_is_not_read_is_never_scored_as_infilled(behaviour: Any, why: str) -> None:
    with OpenAIServer(behaviour) as server:
        client = generator(server)
        assert not client.infills
        gap, plain = sorted(client.generate([GAP, Request(id="s", prompt="p")]), key=lambda c: c.request_id)
    assert gap.finish_reason == "error"
    assert why in gap.error
    assert plain.text == "on"


def test_a_server_that_counts_nothing_is_not_believed_but_can_be_vouched_for() -> None:
    answer = {"choices": [{"text": "x", "finish_reason": "stop"}]}
    with OpenAIServer(lambda asked: Say(answer) if asked.path == PATH else error(404, "no")) as server:
        assert "counts no tokens" in generator(server).infill.why
        assert [c.text for c in generator(server, infill="suffix").generate([GAP])] == ["x"]
        assert not generator(server, infill="none").infills


def test_llama_cpp_infills_by_its_own_route_with_context() -> None:
    with OpenAIServer(llama_cpp) as server:
        client = generator(server)
        assert client.infill.way == "infill"
        (found,) = client.generate([GAP])
    body = server.bodies("/infill")[-1]
    assert (body["input_prefix"], body["input_suffix"], body["n_predict"]) == ("a = ", "\nb = 2\n", 256)
    assert body["input_extra"] == [{"filename": "c.py", "text": "C = 1\n"}]
    assert "max_tokens" not in body
    assert (found.text, found.finish_reason, found.completion_tokens) == ("gap", "stop", 2)
    assert found.cached_tokens == 1
    assert client.answered_by == {"f.gguf"}


def test_llama_cpp_without_infill_tokens() -> None:
    def answer(asked: Asked) -> Say:
        if asked.path == "/infill":
            return error(501, "Infill is not supported by this model: prefix token is missing.")
        return llama_cpp(asked)

    with OpenAIServer(answer) as server:
        found = generator(server).infill
    assert found.way == "none"
    assert "prefix token is missing" in found.why


def test_a_server_that_is_gone_is_not_taken_for_one_that_cannot() -> None:
    with OpenAIServer(lambda asked: error(503, "busy")) as server:
        client = generator(server)
        with pytest.raises(UnavailableError, match="busy"):
            _ = client.infills
        (found,) = client.generate([GAP])
        assert "busy" in found.error
        server.answer = honest
        assert client.infills


# Shapes of errors


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "m", "type": "t", "code": "c", "param": null}}', "m"),
        (b'{"object": "error", "message": "m", "type": "t", "code": "c"}', "m"),
        (b'{"error": "m"}', "m"),
        (b'{"detail": [{"loc": ["body"]}]}', '[{"loc": ["body"]}]'),
        (b"plain text", "plain text"),
        (b'{"error": {"message": 5}}', "5"),
        (b"[1]", "[1]"),
        (b"", ""),
    ],
)
def test_errors_are_read_in_every_form(body: bytes, said: str) -> None:
    message, words = problem_in(body)
    assert message == said
    assert words in (frozenset({"t", "c"}), frozenset())


def test_the_question_is_made_without_a_network() -> None:
    route, body = question(GAP, "m", index=0)
    assert (route, body["suffix"]) == ("completions", "\nb = 2\n")
