"""The official `openai` client against the server, on a tiny checkpoint with random weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import openai
import pytest
from serving_support import Running, Script, ScriptedService, running

from codemill.core.contracts import Message, Request, Sampling
from codemill.engine.engine import Engine
from codemill.engine.service import EngineService

PROMPT = "def add(a, b):\n"


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def alone(folder) -> Engine:
    """An engine of its own: what the server must answer."""
    return Engine.load(folder, dtype="fp32", device="cpu")


def text_of(engine: Engine, **request) -> str:
    return next(iter(engine.generate([Request(id="prompt-0", **request)]))).text


def test_a_completion_is_the_engines_own(client: openai.OpenAI, alone: Engine) -> None:
    made = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=12, temperature=0)
    assert made.choices[0].text == text_of(alone, prompt=PROMPT, sampling=Sampling(max_tokens=12))
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(PROMPT), 12)
    assert made.object == "text_completion"
    assert made.model == "tiny"


def test_a_seed_repeats_and_no_seed_does_not(client: openai.OpenAI, alone: Engine) -> None:
    ask = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 1.0}
    first = client.completions.create(**ask, seed=5).choices[0].text
    assert client.completions.create(**ask, seed=5).choices[0].text == first
    assert first == text_of(alone, prompt=PROMPT, sampling=Sampling(max_tokens=24, temperature=1.0, seed=5))
    assert client.completions.create(**ask, seed=6).choices[0].text != first
    assert len({client.completions.create(**ask).choices[0].text for _ in range(3)}) > 1


def test_prompts_of_every_form_and_several_samples(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    texts = [client.completions.create(**ask, prompt=text).choices[0].text for text in ("one", "two")]
    assert [c.text for c in client.completions.create(**ask, prompt=["one", "two"]).choices] == texts
    ids = [list(b"one"), list(b"two")]
    assert [c.text for c in client.completions.create(**ask, prompt=ids).choices] == texts
    assert client.completions.create(**ask, prompt=ids[0]).choices[0].text == texts[0]
    made = client.completions.create(model="tiny", prompt=["one", "two"], n=3, temperature=1, seed=1, max_tokens=6)
    assert [choice.index for choice in made.choices] == list(range(6))
    assert len({choice.text for choice in made.choices}) == 6
    assert made.usage is not None
    assert made.usage.prompt_tokens == 6  # each prompt once
    assert 6 < made.usage.completion_tokens <= 36


def test_a_stream_is_the_whole_in_pieces(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "prompt": ["one", "two"], "n": 2, "max_tokens": 20, "temperature": 1.0, "seed": 3}
    whole = client.completions.create(**ask)
    texts, ends, usage = [""] * 4, [None] * 4, None
    for chunk in client.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    ask = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "temperature": 1.0, "seed": 11}
    ask["logit_bias"] = {str(letter): 30 for letter in b"abcdefgh"}
    whole = client.completions.create(**ask).choices[0].text
    stop = whole[7:9]
    for streamed in (False, True):
        made = client.completions.create(**ask, stop=[stop, "never"], stream=streamed)
        chunks = made if streamed else [made]
        assert "".join(c.choices[0].text for c in chunks if c.choices) == whole[: whole.index(stop)]


def test_log_probabilities_are_the_models_own(client: openai.OpenAI, alone: Engine) -> None:
    ids = {"return_tokens_as_token_ids": True}  # the texts of half characters are alike
    ask = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "temperature": 0.7, "seed": 2, "logprobs": 3}
    ask["logit_bias"] = {str(end): -100 for end in alone.tokenizer.stop_ids}
    made = client.completions.create(**ask, extra_body=ids)
    (choice,) = made.choices
    how = Sampling(max_tokens=5, temperature=0.7, seed=2, logit_bias=dict.fromkeys(alone.tokenizer.stop_ids, -100.0))
    (expected,) = alone.generate([Request(id="prompt-0", prompt=PROMPT, sampling=how)])
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == pytest.approx(expected.raw_logprobs, abs=1e-5)
    assert len(choice.logprobs.top_logprobs or ()) == 5
    assert all(len(top) == 3 for top in choice.logprobs.top_logprobs or ())
    assert choice.logprobs.tokens == [f"token_id:{token}" for token in expected.token_ids]
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=4,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
    )
    content = chat.choices[0].logprobs.content  # type: ignore[union-attr]
    assert content is not None
    assert (
        b"".join(bytes(token.bytes or ()) for token in content).decode("utf-8", "replace")
        == chat.choices[0].message.content
    )
    for token in content:
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)
        assert len(token.top_logprobs) == 2


def test_logit_bias_chooses(client: openai.OpenAI) -> None:
    made = client.completions.create(model="tiny", prompt="x", max_tokens=3, temperature=0, logit_bias={"90": 100})
    assert made.choices[0].text == "ZZZ"


def test_a_chat_and_its_stream(client: openai.OpenAI, alone: Engine) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    ask = {"model": "tiny", "messages": messages, "max_completion_tokens": 9, "temperature": 0, "n": 2}
    whole = client.chat.completions.create(**ask)
    said = [Message(role="system", content="be brief"), Message(role="user", content="hi")]
    assert whole.choices[0].message.content == text_of(alone, messages=tuple(said), sampling=Sampling(max_tokens=9))
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(alone.tokenizer.chat_prompt(said))
    assert len({choice.message.content for choice in whole.choices}) == 1
    assert whole.choices[0].message.role == "assistant"
    texts, roles = ["", ""], set()
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles.add(choice.delta.role)
    assert texts == [choice.message.content for choice in whole.choices]
    assert "assistant" in roles


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert model.model_dump()["fills_in"]
    assert model.model_dump()["takes_tools"]
    assert model.model_dump()["max_model_len"] == 4096


def test_a_gap_is_filled_in_the_models_own_tokens(client: openai.OpenAI, alone: Engine) -> None:
    prefix, suffix = "def f(x):\n    y = 1\n", "    return y\n"
    raw = client.completions.create(
        model="tiny", prompt=prefix, suffix=suffix, max_tokens=16, temperature=0, extra_body={"trim": False}
    )
    assert raw.choices[0].text == text_of(alone, prompt=prefix, suffix=suffix, sampling=Sampling(max_tokens=16))
    assert raw.usage is not None
    assert raw.usage.prompt_tokens == len(prefix) + len(suffix) + 3


def test_the_cursors_line_begins_the_middle(engine: Engine) -> None:
    with running(ScriptedService(engine, script := Script(["1"]))) as server:
        with server.client() as client:
            client.post("/v1/completions", json={"prompt": "a\n  b = ", "suffix": "\nc", "max_tokens": 4})
    fim = engine.tokenizer.fim
    assert fim is not None
    assert script.prompts == [[fim.prefix, *b"a\n", fim.suffix, *b"\nc", fim.middle, *b"  b ="]]


def test_a_model_that_cannot_fill_in_says_so(plain_folder) -> None:
    with running(EngineService(Engine.load(plain_folder, dtype="fp32", device="cpu"))) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError, match="cannot fill in") as caught:
                client.completions.create(model="plain", prompt="a", suffix="b")
            assert caught.value.param == "suffix"
            with pytest.raises(openai.BadRequestError, match="knows no tools"):
                tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
                client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "a"}], tools=[tool])  # type: ignore[list-item]
        with server.client() as plain:
            assert plain.post("/infill", json={"input_prefix": "a", "input_suffix": "b"}).status_code == 400


BAD = [
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "top_p": 0}, "top_p"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": ""}, "empty"),
    ({"prompt": []}, "at least one"),
    ({"prompt": [[]]}, "empty"),
    ({"prompt": "a" * 5000}, "do not fit"),
    ({"prompt": "a", "max_tokens": 5000}, "do not fit"),
    ({"prompt": "a", "n": 10_000}, "10000 answers"),
    ({"prompt": ["a"] * 200}, "200 answers"),
    ({"prompt": [1, 99_999]}, "token id"),
    ({"prompt": [-1]}, "token id"),
    ({"prompt": "a", "stop": ["x" * 1_000_000]}, "stop"),
    ({"prompt": "a", "stop": ["x"] * 1000}, "stop"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logprobs": 50}, "logprobs"),
    ({"prompt": "a", "echo": True}, "echo"),
    ({"prompt": "a", "best_of": 4}, "best_of"),
    ({"prompt": "a", "presence_penalty": 1.0}, "presence_penalty"),
    ({"prompt": ["a", "b"], "suffix": "c"}, "suffix"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": "a", "seed": 1 << 70}, "seed"),
]


@pytest.mark.parametrize(("body", "words"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests_are_clear_and_cost_nobody_else(client: openai.OpenAI, body: dict, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.post("/completions", body={"model": "tiny", **body}, cast_to=object)
    error = caught.value.body
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 700
    assert "/tiny" not in error["message"]


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'tiny' is"):
        client.completions.create(model="gpt-4", prompt="a")


def test_an_error_in_the_middle_of_a_stream_is_raised_by_the_client(engine: Engine) -> None:
    with running(ScriptedService(engine, Script(["some text"], error="request x: the engine failed: boom"))) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(model="tiny", prompt="a", stream=True)
            with pytest.raises(openai.APIError, match="engine failed"):
                for _ in stream:
                    pass
            with pytest.raises(openai.InternalServerError, match="engine failed"):
                client.completions.create(model="tiny", prompt="a")


def test_many_clients_at_once_are_not_mixed_up(served: Running, alone: Engine) -> None:
    prompts = [f"client {number}: " for number in range(32)]
    asked = [
        Request(id="prompt-0", prompt=prompt, sampling=Sampling(max_tokens=24, temperature=0.9, seed=number))
        for number, prompt in enumerate(prompts)
    ]
    expected = [next(iter(alone.generate([request]))).text for request in asked]
    got: list[str] = [""] * len(prompts)

    def ask(number: int) -> None:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            stream = client.completions.create(
                model="tiny", prompt=prompts[number], max_tokens=24, temperature=0.9, seed=number, stream=True
            )
            got[number] = "".join(chunk.choices[0].text for chunk in stream if chunk.choices)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected
