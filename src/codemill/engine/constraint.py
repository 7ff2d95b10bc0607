"""Answers that must match a JSON schema, a regular expression or a grammar, by llguidance over our own token bytes.

At every step the matcher says which tokens keep the answer inside the constraint. Control tokens never do; once the answer
is complete the stop tokens may end it, and when nothing can follow they must.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from codemill.core.contracts import Constraint
from codemill.core.errors import InputError
from codemill.models.tokenizer import Tokenizer

_NAMES = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "grammar"}
_LONGEST = {"json_schema": 100_000, "regex": 10_000, "lark": 50_000}  # characters
# The library follows brackets, references and rules by recursion. A stack that overflows would end the whole process: a
# chain of 2,000 references or 5,000 rules did.
_MOST_BRACKETS, _MOST_REFERENCES, _MOST_LINES = 64, 256, 1_000
_UNMET = "no text can meet it"


class Guide:
    """One answer's way through a constraint."""

    def __init__(self, matcher: llguidance.LLMatcher, eos_id: int, vocab_size: int) -> None:
        self._matcher, self._eos_id, self._vocab_size = matcher, eos_id, vocab_size

    @classmethod
    def compile(cls, constraint: Constraint, tokenizer: Tokenizer, vocab_size: int, where: str) -> Guide:
        """Raises `InputError` for a constraint that is malformed, too big or cannot be met. Thread-safe."""
        matcher = _compiled(constraint, tokenizer)
        if isinstance(matcher, str):
            raise InputError(
                f"{where}: {_NAMES.get(constraint.kind, 'constraint')} {_shown(constraint.text)}: {matcher}"
            )
        return cls(matcher.deep_copy(), tokenizer.eos_id, vocab_size)

    def allowed(self, stop_ids: frozenset[int]) -> NDArray[np.bool_]:
        """Which tokens (V,) may come next. Raises `InputError` if the constraint's matcher gives up."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise InputError(
                f"the constraint became too complex in this answer: {_first_line(self._matcher.get_error())}"
            )
        known = np.unpackbits(bits, bitorder="little")[: self._vocab_size].view(np.bool_)
        allowed_V = np.zeros(self._vocab_size, np.bool_)
        allowed_V[: len(known)] = known
        if allowed_V[self._eos_id]:
            allowed_V[list(stop_ids)] = True
        return allowed_V

    def accept(self, token: int) -> None:
        """`token`, which was allowed and does not end the answer, was chosen."""
        self._matcher.consume_token(token)


@lru_cache(maxsize=64)
def _compiled(constraint: Constraint, tokenizer: Tokenizer) -> llguidance.LLMatcher | str:
    """A matcher at its start, or why there is none. Both are kept: samples and clients ask for the same again."""
    problem = _unfit(constraint)
    if problem:
        return problem
    try:
        grammar = _grammar(constraint)
    except ValueError as error:
        return f"not readable: {_first_line(str(error))}"
    matcher = llguidance.LLMatcher(_vocabulary(tokenizer), grammar, log_level=0, limits=_limits())
    mask = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error():
        reason = _first_line(matcher.get_error())
        return _UNMET if reason.startswith("NoExtension") else reason
    return matcher if any(mask) else _UNMET


def _unfit(constraint: Constraint) -> str:
    """What is wrong before anything is parsed; empty if nothing is."""
    text = constraint.text
    if constraint.kind not in _NAMES:
        return f"unknown kind {constraint.kind!r}; use one of {', '.join(_NAMES)}"
    if len(text) > _LONGEST[constraint.kind]:
        return f"{len(text):,} characters are more than {_LONGEST[constraint.kind]:,}; make it smaller"
    if constraint.kind == "lark" and text.count("\n") >= _MOST_LINES:
        return f"more than {_MOST_LINES:,} lines; make it smaller"
    references = sum(text.count(part) for part in ('ref"', 'Ref"', "\\u"))  # the last: it may be spelled with escapes
    if constraint.kind != "regex" and references > _MOST_REFERENCES:
        return f"more than {_MOST_REFERENCES} references or escapes; make it smaller"
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(depth - 1, 0)
    if deepest > _MOST_BRACKETS:
        return f"brackets nested {deepest} deep; at most {_MOST_BRACKETS} are read"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which no text can be matched against"
    return ""


def _grammar(constraint: Constraint) -> str:
    if constraint.kind == "json_schema":
        schema = json.loads(constraint.text)
        if not isinstance(schema, dict):
            raise ValueError("a schema must be a JSON object")
        return llguidance.LLMatcher.grammar_from_json_schema(constraint.text)
    if constraint.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(constraint.text)
    return llguidance.LLMatcher.grammar_from_lark(constraint.text)


def _limits() -> Any:
    """About 20 ms and 40 MB for the grammar, 15 ms for a step."""
    return llguidance.LLParserLimits(max_lexer_states=20_000, max_grammar_size=200_000, verbose_errors=False)


class _Spelling:
    """The tokenizer as llguidance asks for it: the bytes of every token, and text to tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        controls = {control.id for control in tokenizer.controls.values()}
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [tokenizer.decode_bytes((token,), skip_special=False) for token in range(tokenizer.vocab_size)]
        for token, spelled in enumerate(self.tokens):
            if (
                spelled[:1] == b"\xff" and token not in controls
            ):  # the library's own mark for special tokens; never UTF-8
                self.tokens[token] = b""
        self.special_token_ids = sorted(controls)
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Spelling(tokenizer)))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0][:300]
