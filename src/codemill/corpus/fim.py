"""Fill-in-the-middle (arXiv 2207.14255): rearrange a document so that a left-to-right model learns to infill.

Applied to each document before packing, so that a suffix never stops in the middle of a function because a row was full.
Every random choice comes from a counter keyed by seed, document, epoch and window: the order of work, the number of
workers and a resume change nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from codemill.core.contracts import Document
from codemill.core.errors import ConfigError
from codemill.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Span:
    """The middle: characters `start` to `end` of a window."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class FimMix:
    """How often a window is rearranged, and where its middle is cut.

    Of the rearranged windows, `node` take a statement or a whole block of the syntax tree (arXiv 2506.00204; Python only,
    others take lines), `line` a run of whole lines, and the rest two random characters. A middle has at most `max_lines`
    lines, except between random characters.
    """

    rate: float = 0.5
    node: float = 0.5
    line: float = 0.3
    max_lines: int = 12


def random_for(*key: object) -> np.random.Generator:
    """A random stream that depends on the key only."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def end_of_text(tokenizer: Tokenizer) -> int:
    """The token that ends a document. In chat models it is not `eos_id`, which ends a turn."""
    found = tokenizer.token_id("<|endoftext|>")
    return tokenizer.eos_id if found is None else found


def windows(text: str, tokenizer: Tokenizer, max_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Cut a text at line ends into pieces of at most `max_tokens` tokens: (first line, start, end) of each.

    Counting is by line, which never under-counts by much; a line that is too long on its own is a piece by itself.
    """
    start = end = first_line = tokens = 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        count = len(tokenizer.encode(line))
        if tokens and tokens + count > max_tokens:
            yield first_line, start, end
            start, first_line, tokens = end, number, 0
        tokens += count
        end += len(line)
    if end > start:
        yield first_line, start, end


def node_lines(text: str) -> list[tuple[int, int]]:
    """Line ranges (from 0, end exclusive) of statements and of blocks in Python source; empty if it does not parse."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: set[tuple[int, int]] = set()
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block and isinstance(node, ast.stmt):
                rest = block[1:] if _is_docstring(block[0]) and len(block) > 1 else block
                found.add((_first_line(rest[0]), rest[-1].end_lineno or rest[-1].lineno))
                found.update((_first_line(child), child.end_lineno or child.lineno) for child in rest)
    return sorted(found)


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def choose_span(
    window: str, first_line: int, nodes: list[tuple[int, int]], mix: FimMix, rng: np.random.Generator
) -> Span | None:
    """Where to cut the middle out of a window; None if it is left as it is."""
    if rng.random() >= mix.rate or len(window) < 2:
        return None
    kind = rng.random()
    if kind >= mix.node + mix.line:
        start, end = sorted(int(cut) for cut in rng.integers(0, len(window) + 1, 2))
        return Span(start, max(end, min(start + 1, len(window)))) if start < len(window) else None
    lines = window.splitlines(keepends=True)
    offsets = np.concatenate(([0], np.cumsum([len(line) for line in lines])))
    longest = min(mix.max_lines, max(1, len(lines) // 2))
    if kind < mix.node:
        inside = [
            (begin - first_line, stop - first_line)
            for begin, stop in nodes
            if begin >= first_line and stop - first_line <= len(lines) and stop - begin <= longest
        ]
        if inside:
            # Big blocks are rarer than single lines; drawing the size first keeps small ones from crowding them out.
            size = int(rng.choice(sorted({stop - begin for begin, stop in inside})))
            begin, stop = [pair for pair in inside if pair[1] - pair[0] == size][
                int(rng.integers(sum(b - a == size for a, b in inside)))
            ]
            return _lines_span(lines, offsets, begin, stop)
    count = int(rng.integers(1, longest + 1))
    begin = int(rng.integers(0, len(lines) - count + 1))
    return _lines_span(lines, offsets, begin, begin + count)


def _lines_span(lines: list[str], offsets: np.ndarray, begin: int, stop: int) -> Span:
    """Whole lines without the last line's end: the cursor of an editor stands before it, so it belongs to the suffix."""
    ending = len(lines[stop - 1]) - len(lines[stop - 1].rstrip("\r\n"))
    return Span(int(offsets[begin]), int(offsets[stop]) - ending)


def arrange(window: str, span: Span, tokenizer: Tokenizer) -> list[int]:
    """The window in prefix-suffix-middle order with an end token that is trained on, as token ids."""
    prompt = tokenizer.fim_prompt(window[: span.start], window[span.end :])
    return [*prompt, *tokenizer.encode(window[span.start : span.end]), end_of_text(tokenizer)]


def examples(
    document: Document, tokenizer: Tokenizer, *, mix: FimMix, max_tokens: int, seed: int, epoch: int
) -> Iterator[list[int]]:
    """A document as training examples of at most `max_tokens` tokens each, in document order.

    Raises `ConfigError` if infilling is asked of a model that has no tokens for it.
    """
    if mix.rate > 0 and tokenizer.fim is None:
        raise ConfigError("this model has no fill-in-the-middle tokens; set the FIM rate to 0 or choose another model")
    nodes = node_lines(document.text) if document.language == "python" and mix.rate * mix.node > 0 else []
    room = max_tokens - 4  # three sentinels and the end token
    for first_line, start, end in windows(document.text, tokenizer, room):
        window = document.text[start:end]
        rng = random_for(seed, document.hash, document.path, epoch, start)
        span = choose_span(window, first_line, nodes, mix, rng)
        if span is not None:
            ids = arrange(window, span, tokenizer)
        else:
            ids = tokenizer.encode(window)
            if end == len(document.text):
                ids = [*ids, end_of_text(tokenizer)]
        # A single line longer than a window, or tokens split by a cut, can exceed the limit: cut into equal rows.
        if len(ids) <= max_tokens:
            yield ids
        elif span is None:
            yield from (ids[at : at + max_tokens] for at in range(0, len(ids), max_tokens))
