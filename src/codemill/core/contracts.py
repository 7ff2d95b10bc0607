"""The contract types that the rooms exchange. Frozen, free of torch, and serialisable as JSON.

A `Task` is asked, a `Generator` or a `Solver` gives an `Answer`, a verifier runs it in the sandbox, and one `Verdict`
comes out. The same verdict filters data, rewards training, scores a benchmark and informs an agent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol


def content_hash(data: bytes) -> str:
    """BLAKE2b-256 of raw bytes, in hexadecimal: the identity of a document."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One source file. Immutable; findings about it live beside it, policy is applied afterwards."""

    text: str
    path: str  # POSIX, relative to the repository's root
    repository: str  # the source as given, for instance "pypi:toolz==1.0.0"
    revision: str  # a commit, a release, or the hash of the tree
    language: str  # lower-case name, for instance "python"; "unknown" when not recognised
    license: str | None  # SPDX expression, None when nothing was found
    hash: str  # content_hash of the raw bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextFile:
    """Another file of the repository that helps to answer a task."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that a model asked for; `arguments` are JSON as the model wrote them, well-formed or not."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a chat. A tool's answer names the call it belongs to."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked and how an answer is verified.

    Exactly one form of question: `prefix` alone (continue it), `prefix` and `suffix` (fill in between), or `messages`.
    `verifier` is a serialisable description whose `kind` names a verifier of `codemill.tasks.verifiers`.
    `metadata` holds origin, license, language, split, and `cluster`: tasks made from one function share it, so that
    statistics do not count them as independent.
    """

    id: str
    verifier: Mapping[str, Any]
    prefix: str = ""
    suffix: str | None = None
    messages: tuple[Message, ...] = ()
    context: tuple[ContextFile, ...] = ()
    gold: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEdit:
    """The whole new text of one file, None to delete it."""

    path: str
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A completion, a set of file edits, or a workspace diff: exactly one of the three."""

    task_id: str
    completion: str | None = None
    edits: tuple[FileEdit, ...] = ()
    diff: str | None = None
    sample: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Status(StrEnum):
    """How an answer ended. All but `HARNESS_ERROR` are the answer's own doing and are scored."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CRASHED = "crashed"
    REFUSED = "refused"  # the answer broke the policy: wrong
    HARNESS_ERROR = "harness_error"  # our fault, never the answer's: unscorable


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """One test of a verdict."""

    __test__ = False  # not a test class, whatever pytest thinks of its name

    id: str
    passed: bool
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of running an answer. `score` lies in [0, 1]; `isolation` maps an axis to what enforced it."""

    task_id: str
    status: Status
    score: float
    sample: int = 0
    reason: str = ""
    tests: tuple[TestResult, ...] = ()
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    isolation: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.status is Status.PASSED

    @property
    def scorable(self) -> bool:
        return self.status is not Status.HARNESS_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What an answer must match. `text` is a JSON schema, a regular expression or a grammar in Lark's notation."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off.

    Applied in this order: constraint, logit bias, repetition penalty (over prompt and answer), temperature, top-k, top-p,
    min-p.
    `top_logprobs`: how many of the likeliest tokens are reported beside each sampled one.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    constraint: Constraint | None = None
    top_logprobs: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, in exactly one form: token ids, chat messages, or `prompt` (with `suffix`: fill in between).

    `context` is put before a fill-in prompt in the model's repository format where it has one. `tools` are JSON-schema
    descriptions of functions for the chat template. `n` completions are drawn, told apart by `Completion.index`.
    `max_prompt_tokens` cuts a prompt from its far ends (start of the prefix, end of the suffix); 0 leaves it whole.
    """

    id: str
    prompt: str = ""
    suffix: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    prompt_ids: tuple[int, ...] = ()
    context: tuple[ContextFile, ...] = ()
    max_prompt_tokens: int = 0
    n: int = 1
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a model wrote. `logprobs` are those of the sampling distribution, `raw_logprobs` those of the model's own
    (temperature 1, nothing cut off), one per token id.

    `token_ids` are exactly the sampled ones, the end token included; `text` ends before a stop string. A generator that is
    not told the ids (a server's client) leaves them empty. `top_logprobs` holds, per token, pairs of id and raw
    log-probability. `cached_tokens` of the prompt came out of the prefix cache; of `drafted_tokens` proposed by
    speculation `accepted_tokens` were kept. `cost` in US dollars where prices are known.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length", "error"]
    index: int = 0
    raw_logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cost: float = 0.0
    error: str = ""


class Generator(Protocol):
    """Anything that completes prompts. Yields completions as they finish; closing the iterator cancels the rest."""

    @property
    def name(self) -> str: ...

    @property
    def infills(self) -> bool:
        """Whether requests with a `suffix` can be answered."""
        ...

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]: ...


class Solver(Protocol):
    """Anything that answers a task: an agent, or a generator wrapped as one."""

    def solve(self, task: Task) -> Answer: ...
