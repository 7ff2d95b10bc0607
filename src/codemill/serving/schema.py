"""The bodies of requests. Fields that no client needs from us are passed over; those that would change an answer and are
not supported are refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from codemill.core.contracts import Constraint, Sampling

MAX_TEXT = 4 << 20  # characters of one text, above what any body may hold
MAX_TOKENS = 1 << 20
_TOOL_NAME = r"^[A-Za-z0-9_.-]{1,128}$"

Text = Annotated[str, Field(max_length=MAX_TEXT)]


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


class StreamOptions(Body):
    include_usage: bool = False


class SamplingBody(Body):
    """What the OpenAI protocol, vLLM and llama.cpp call the same things."""

    model: Text | None = None
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 30)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    repeat_penalty: float | None = Field(None, gt=0, le=100)
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = Field(None, max_length=4096)
    stop: Text | list[Text] | None = None
    stop_token_ids: list[StrictInt] | None = Field(None, max_length=4096)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    n: int | None = Field(None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_tokens_as_token_ids: bool = False

    @model_validator(mode="after")
    def _no_other_penalties(self) -> Self:
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported; repetition_penalty is")
        return self

    @property
    def samples(self) -> int:
        return self.n or 1

    def sampling(
        self, max_tokens: int, seed: int, *, temperature: float = 1.0, constraint: Constraint | None = None,
        top_logprobs: int = 0, stop_token_ids: frozenset[int] = frozenset(),
    ) -> Sampling:  # fmt: skip
        """What is asked, `temperature` where nothing is."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            max_tokens=max_tokens,
            temperature=temperature if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or self.repeat_penalty or 1.0,
            logit_bias=dict(self.logit_bias or {}),
            stop=tuple(stop for stop in stops if stop),
            stop_token_ids=tuple(sorted({*(self.stop_token_ids or ()), *stop_token_ids})),
            constraint=constraint,
            top_logprobs=top_logprobs,
            seed=seed if self.seed is None else self.seed,
        )


class CompletionBody(SamplingBody):
    """`POST /v1/completions`. `trim` (ours): whether an answer with a suffix is cut as an editor would show it."""

    prompt: Text | list[Text] | list[StrictInt] | list[list[StrictInt]] = ""
    suffix: Text | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: int | StrictBool | None = Field(None)
    echo: bool | None = False
    best_of: int | None = None
    trim: bool = True

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.echo:
            raise ValueError("echo is not supported: the answer holds new text only")
        if self.best_of not in (None, self.samples):
            raise ValueError("best_of is not supported: ask for n answers and choose")
        if self.logprobs is not None and not 0 <= int(self.logprobs) <= 20:
            raise ValueError("logprobs must be between 0 and 20")
        if not self.prompts:
            raise ValueError("prompt needs at least one text")
        if self.suffix is not None and not isinstance(self.prompt, str):
            raise ValueError("a suffix needs a prompt that is one text")
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [tuple(self.prompt)]
        return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in self.prompt]  # type: ignore[arg-type]


class ContentPart(Body):
    type: str
    text: Text | None = None


class FunctionCall(Body):
    name: str = Field(pattern=_TOOL_NAME)
    arguments: Text = "{}"


class ToolCallBody(Body):
    id: str = Field("", max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


class MessageBody(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[ContentPart] | None = None
    tool_calls: list[ToolCallBody] | None = Field(None, max_length=1000)
    tool_call_id: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _text_only(self) -> Self:
        for part in self.content if isinstance(self.content, list) else ():
            if part.text is None:
                raise ValueError(f"content of type {part.type[:40]!r} is not supported: this model reads text")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class FunctionBody(Body):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, frozen=True)

    name: str = Field(pattern=_TOOL_NAME)
    description: Text | None = None
    parameters: dict[str, Any] | None = None


class ToolBody(Body):
    type: Literal["function"] = "function"
    function: FunctionBody


class NamedFunction(Body):
    name: str


class ToolChoice(Body):
    type: Literal["function"] = "function"
    function: NamedFunction


class SchemaBody(Body):
    name: str = "answer"
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaBody | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.json_schema is None):
            raise ValueError("a response_format of type json_schema needs json_schema.schema")
        return self

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        if self.type == "json_object":
            return {"type": "object"}
        return self.json_schema.json_schema if self.json_schema else None


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[MessageBody] = Field(min_length=1, max_length=10_000)
    max_tokens: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    tools: list[ToolBody] | None = Field(None, max_length=512)
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = True
    response_format: ResponseFormat | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = {tool.function.name for tool in self.tools or ()}
        choice = self.tool_choice
        if choice in ("required",) and not names:
            raise ValueError("tool_choice 'required' needs tools")
        if isinstance(choice, ToolChoice) and choice.function.name not in names:
            raise ValueError(f"tool_choice names {choice.function.name[:100]!r}, which is none of the tools")
        if self.shown_tools and self.response_format and self.response_format.type != "text":
            raise ValueError("response_format and tools cannot be combined; set tool_choice to 'none'")
        return self

    @property
    def shown_tools(self) -> list[ToolBody]:
        """The tools that the model may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def forced_tools(self) -> list[ToolBody]:
        """The tools of which one must be called."""
        if isinstance(self.tool_choice, ToolChoice):
            return [tool for tool in self.shown_tools if tool.function.name == self.tool_choice.function.name]
        return self.shown_tools if self.tool_choice == "required" else []


class ExtraChunk(Body):
    text: Text
    filename: str = Field("", max_length=4096)


class InfillBody(SamplingBody):
    """`POST /infill`, as llama.cpp's server takes it. `prompt` is the cursor's line before the cursor; what is written begins
    behind it. `path` (ours) names the file, so that its language need not be guessed."""

    input_prefix: Text = ""
    input_suffix: Text = ""
    input_extra: list[ExtraChunk] = Field(default_factory=list, max_length=1024)
    prompt: Text = ""
    n_predict: int = Field(-1, ge=-1, le=MAX_TOKENS)
    n_indent: int = Field(0, ge=0, le=1000)
    t_max_predict_ms: float = 0
    response_fields: list[str] | None = Field(None, max_length=64)
    path: str = Field("", max_length=4096)
    trim: bool = True
