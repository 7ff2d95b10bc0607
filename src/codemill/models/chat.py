"""Chat templates: a checkpoint's own Jinja2 template, rendered without trusting it or the messages.

The template comes with the checkpoint, so it runs in Jinja's immutable sandbox with bounded loops, products and output.
The messages come from anywhere, so a message that spells a control token (`<|im_end|>`) must not end its turn: every
such place is masked before rendering and put back as ordinary text afterwards. The same holds for descriptions of tools and
for the arguments of calls. Only what the template itself writes becomes a control token.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from codemill.core.contracts import Message
from codemill.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from jinja2 import Template

MAX_OUTPUT = 1 << 26  # characters of one rendered prompt
MAX_REPEAT = 1 << 16  # items of a sequence multiplied by a number
MAX_STEPS = 100_000  # numbers given out by `range` in one rendering
ROLES = ("system", "user", "assistant", "tool")
MAX_DEPTH = 64  # of nested JSON in tools and arguments
_NAME = re.compile(r"[A-Za-z0-9_.$-]*")
_OPEN, _CLOSE = "\ue000", "\ue001"  # private-use characters around a mask


@dataclass(frozen=True)
class ChatTemplate:
    """One template. `where` names its file in errors; `variables` are the special tokens it may print."""

    source: str
    where: str
    variables: Mapping[str, str]
    controls: frozenset[str]

    @property
    def takes_tools(self) -> bool:
        """Whether the template can show descriptions of tools to the model."""
        return re.search(r"\btools\b", self.source) is not None

    def render(
        self,
        messages: Sequence[Message],
        generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        opening: str = "",
    ) -> list[str]:
        """Text and control tokens in turn: items at even places are text, at odd places control tokens.

        `tools` are functions as JSON schemas; a template that does not show them is an `InputError`. `opening` is what the
        answer begins with, in the template's own hand: control tokens in it are control tokens.
        """
        if not messages:
            raise InputError("a chat needs at least one message")
        for message in messages:
            if message.role not in ROLES:
                raise InputError(f"role {message.role!r} is not one of {', '.join(ROLES)}")
        if tools and not self.takes_tools:
            raise InputError(
                f"{self.where}: the chat template knows no tools; use a model made for them, or leave them out"
            )
        mask = _Mask(_texts(messages, tools), self.controls)
        masked = [_masked_message(message, mask) for message in messages]
        text = self._run(masked, generation_prompt, [_masked_json(dict(tool), mask) for tool in tools]) + opening
        return [mask.reveal(part, self.where) for part in control_pattern(self.controls).split(text)]

    def _run(self, messages: list[dict[str, Any]], generation_prompt: bool, tools: list[Any]) -> str:
        from jinja2 import TemplateError

        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=generation_prompt,
                range=_BoundedRange(),
                **self.variables,
            ):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT:
                    raise InputError(f"{self.where}: the chat template writes more than {MAX_OUTPUT:,} characters")
        except _TemplateRefusalError as error:
            raise InputError(f"{self.where}: the chat template refuses these messages: {error}") from None
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.where}: the chat template fails: {_first_line(error)}") from None
        except (RecursionError, MemoryError) as error:
            raise InputError(f"{self.where}: the chat template fails: {type(error).__name__}") from None
        return "".join(parts)

    @cached_property
    def _template(self) -> Template:
        from jinja2 import TemplateError

        try:
            return _environment().from_string(self.source)
        except (TemplateError, RecursionError) as error:
            raise InputError(f"{self.where}: the chat template is not valid Jinja2: {_first_line(error)}") from None


def control_pattern(controls: Iterable[str]) -> re.Pattern[str]:
    """Matches any control token as one group, the longest where several begin at one place."""
    names = sorted((re.escape(name) for name in controls), key=len, reverse=True)
    return re.compile(f"({'|'.join(names)})" if names else "((?!))")


class _Mask:
    """Hides whatever in a message could be, or become together with its neighbours, a control token."""

    def __init__(self, contents: Sequence[str], controls: frozenset[str]) -> None:
        self.controls, self.pattern = controls, control_pattern(controls)
        self.hidden: list[str] = []
        # A mark that no message contains, so that no message can forge one.
        number = next(n for n in itertools.count() if not any(f"{_OPEN}{n}:" in text for text in contents))
        self.mark = f"{_OPEN}{number}:"

    def hide(self, content: str) -> str:
        if content and any(content in control for control in self.controls):
            return self._put(content)
        content = self.pattern.sub(lambda found: self._put(found.group()), content)
        head = max((_overlap(control, content) for control in self.controls), default=0)
        if head:
            content = self._put(content[:head]) + content[head:]
        tail = max((_overlap(content, control) for control in self.controls), default=0)
        return content[:-tail] + self._put(content[-tail:]) if tail else content

    def _put(self, text: str) -> str:
        self.hidden.append(text)
        return f"{self.mark}{len(self.hidden) - 1}{_CLOSE}"

    def reveal(self, text: str, where: str) -> str:
        restored = re.sub(
            re.escape(self.mark) + f"([0-9]+){_CLOSE}", lambda found: self.hidden[int(found.group(1))], text
        )
        if self.mark in restored:
            raise InputError(f"{where}: the chat template cuts a message in the middle of a control token's text")
        return restored


def _texts(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything from outside that a rendering may contain."""
    calls = [call for message in messages for call in message.tool_calls]
    nested = [*map(dict, tools), *([call.id, call.name, _object_or_text(call.arguments)] for call in calls)]
    plain = [text for message in messages for text in (message.content, message.tool_call_id)]
    return [*plain, json.dumps(nested, ensure_ascii=False)]


def _masked_message(message: Message, mask: _Mask) -> dict[str, Any]:
    """A message as templates expect it; the arguments of a call are an object where they are the JSON of one."""
    shown: dict[str, Any] = {"role": message.role, "content": mask.hide(message.content)}
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": _masked_json(call.id, mask),
                "type": "function",
                "function": {
                    "name": _masked_json(call.name, mask),
                    "arguments": _masked_json(_object_or_text(call.arguments), mask),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        shown["tool_call_id"] = _masked_json(message.tool_call_id, mask)
    return shown


def _object_or_text(arguments: str) -> Any:
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _masked_json(value: Any, mask: _Mask, depth: int = 0) -> Any:
    """JSON with its texts masked. Plain names stay as they are: templates look them up and compare them."""
    if depth > MAX_DEPTH:
        raise InputError(f"tools and arguments may be nested {MAX_DEPTH} deep, not deeper")
    if isinstance(value, str):
        return value if _NAME.fullmatch(value) else mask.hide(value)
    if isinstance(value, Mapping):
        return {_masked_json(str(key), mask): _masked_json(item, mask, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked_json(item, mask, depth + 1) for item in value]
    return value


def _overlap(left: str, right: str) -> int:
    """Length of the longest end of `left`, shorter than all of it or of `right`, that `right` begins with."""
    longest = min(len(left), len(right)) - (len(left) == len(right))
    return next((size for size in range(longest, 0, -1) if left.endswith(right[:size])), 0)


class _TemplateRefusalError(Exception):
    """Raised by a template through `raise_exception`."""


def _refuse(message: object) -> None:
    raise _TemplateRefusalError(str(message)[:500])


class _BoundedRange:
    """`range` whose numbers are counted over a whole rendering, so that nested loops end."""

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def __call__(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self.left -= len(numbers)
        if self.left < 0:
            raise ValueError(f"more than {MAX_STEPS:,} steps of range()")
        return numbers


def _environment() -> Any:
    """Jinja2 as chat templates expect it: block whitespace trimmed, loop controls, JSON without HTML escapes."""
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if operator == "**" and not (numbers and abs(left) <= 1000 and abs(right) <= 100):
                raise SecurityError("a power too large for a chat template")
            if operator == "*" and not numbers:
                sequence, count = (left, right) if isinstance(right, int) else (right, left)
                if not isinstance(count, int) or len(sequence) * max(count, 0) > MAX_REPEAT:
                    raise SecurityError("a repetition too long for a chat template")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def find_template(folder_name: str, config: Mapping[str, Any], jinja_file: str | None) -> str | None:
    """The template of a checkpoint: its `chat_template.jinja`, else that of `tokenizer_config.json`."""
    if jinja_file is not None:
        return jinja_file
    given = config.get("chat_template")
    if isinstance(given, list):  # several templates by name
        named = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
        given = named.get("default")
    if given is not None and not isinstance(given, str):
        raise ConfigError(f"{folder_name}/tokenizer_config.json: chat_template must be text")
    return given
