"""A look with a real model: it fills in, calls tools, and finds its prompts in the cache."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator

import openai
import pytest
from serving_support import Running, running

from codemill.engine.engine import Engine
from codemill.engine.service import EngineService
from codemill.models.pull import pull

pytestmark = pytest.mark.models
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip


@pytest.fixture(scope="module")
def qwen() -> Iterator[Running]:
    with running(EngineService(Engine.load(pull("qwen2.5-coder-0.5b"), max_batch=4))) as server:
        yield server


def test_it_fills_in_under_the_cursor(qwen: Running) -> None:
    prefix, suffix = "def fib(n):\n    if n < 2:\n        return n\n", "\n\nprint(fib(10))\n"
    with qwen.client() as client:
        for line in ("    ", "    ret", "    return "):
            body = {"input_prefix": prefix, "prompt": line, "input_suffix": suffix, "n_predict": 48}
            content = client.post("/infill", json=body).json()["content"]
            ast.parse(prefix + line + content + suffix)
            assert "fib(n-2)" in (line + content).replace(" ", "")
            assert "print" not in content


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
def test_it_calls_a_tool(qwen: Running, choice: object) -> None:
    with openai.OpenAI(base_url=f"{qwen.url}/v1", api_key="none", max_retries=0) as client:
        made = client.chat.completions.create(
            model=client.models.list().data[0].id, messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=[WEATHER], tool_choice=choice, temperature=0, max_tokens=100,
        )  # type: ignore[call-overload]  # fmt: skip
    (call,) = made.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert "Paris" in json.loads(call.function.arguments)["city"]
    assert made.choices[0].finish_reason == "tool_calls"
