"""Fill in the middle: the control tokens of the model families, and how a prompt is laid out and cut to a budget.

Method: "Efficient Training of Language Models to Fill in the Middle" (arXiv 2207.14255), order prefix-suffix-middle;
the layout of a repository follows Qwen2.5-Coder (arXiv 2409.12186).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codemill.core.contracts import ContextFile
from codemill.core.errors import ConfigError

PREFIX_SHARE = 2 / 3  # of a cut prompt; what comes before the gap says more than what comes after it


@dataclass(frozen=True, slots=True)
class FimTokens:
    """Token ids. `stop_ids` end a completion: any token that opens another section, and the ends of text and turn."""

    prefix: int
    suffix: int
    middle: int
    pad: int | None
    repo: int | None
    file_sep: int | None
    stop_ids: frozenset[int]


# Names of (prefix, suffix, middle, pad, repository, file) by family; the first family found whole is taken.
_FAMILIES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<repo_name>", "<file_sep>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<pad>", "", ""),
)


def find_fim_tokens(token_id: Callable[[str], int | None], ends: frozenset[int]) -> FimTokens | None:
    """The FIM tokens among a model's control tokens; None when prefix, suffix or middle is missing."""
    for names in _FAMILIES:
        ids = [token_id(name) for name in names]
        prefix, suffix, middle, pad, repo, file_sep = ids
        if prefix is not None and suffix is not None and middle is not None:
            stops = ends | {found for found in ids if found is not None}
            return FimTokens(prefix, suffix, middle, pad, repo, file_sep, stops)
    return None


def fim_layout(
    fim: FimTokens,
    encode: Callable[[str], list[int]],
    prefix: str,
    suffix: str,
    *,
    context: Sequence[ContextFile],
    repository: str,
    path: str,
    max_tokens: int,
) -> list[int]:
    """Prefix-suffix-middle, behind the context files where there are any. See `Tokenizer.fim_prompt`."""
    before, after = encode(prefix), encode(suffix)
    opening, files, current = _repository(fim, encode, context, repository, path)
    if max_tokens:
        room = max_tokens - 3  # the three FIM tokens
        if room < 1:
            raise ConfigError(f"max_tokens {max_tokens} leaves no room for a fill-in prompt; give at least 4")
        before, after = cut_around(before, after, room)
        room -= len(before) + len(after) + len(opening) + len(current)
        if room < 0:  # what surrounds the gap comes first, names come last
            opening, files, current = [], [], []
        while sum(map(len, files)) > room and files:
            files.pop()
    around = [*opening, *(token for file in files for token in file), *current]
    return [*around, fim.prefix, *before, fim.suffix, *after, fim.middle]


def _repository(
    fim: FimTokens,
    encode: Callable[[str], list[int]],
    context: Sequence[ContextFile],
    repository: str,
    path: str,
) -> tuple[list[int], list[list[int]], list[int]]:
    """The repository's name, each context file, and the head of the current file; all empty without any of them."""
    if not (context or repository or path):
        return [], [], []
    if fim.repo is None or fim.file_sep is None:
        if context:
            raise ConfigError(
                "this model has no repository tokens: leave out the context files, or put them in the prefix"
            )
        return [], [], []
    opening = [fim.repo, *encode(f"{repository}\n")]
    files = [[fim.file_sep, *encode(f"{file.path}\n{file.text}\n")] for file in context]
    return opening, files, [fim.file_sep, *encode(f"{path}\n")]


def cut_around(before: list[int], after: list[int], room: int) -> tuple[list[int], list[int]]:
    """Keep `room` tokens nearest to the gap, two thirds before it; a share one side does not need goes to the other."""
    if len(before) + len(after) <= room:
        return before, after
    left = min(len(before), max(round(room * PREFIX_SHARE), room - len(after)))
    return before[len(before) - left :], after[: room - left]
