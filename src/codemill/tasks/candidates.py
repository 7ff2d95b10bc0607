"""Choosing what is asked: candidates of a repository, their split into training and held-out, and their order.

Every choice is drawn by a hash of the seed and the function's identity, so it does not depend on the other repositories,
on the order of files, or on how many are wanted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from codemill.core.contracts import Document
from codemill.core.errors import InputError
from codemill.tasks.discover import Discovery
from codemill.tasks.documents import is_telling, normal_form
from codemill.tasks.functions import (
    Function,
    Kind,
    Piece,
    SourceFile,
    find_functions,
    share,
    span_piece,
    walk_functions,
)
from codemill.tasks.layout import is_program_file

Split = Literal["held_out", "train"]
MIN_HELD_OUT_CHARACTERS = 500  # of a whole file that is held out: less says nothing about bits per byte


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something that did not become a task, and why."""

    repository: str
    path: str
    qualname: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A question that may become a task. `cluster` is the identity of its function, `draw` its place in the order."""

    repository: str
    path: str
    function: Function
    piece: Piece
    tests: tuple[str, ...]
    split: Split
    cluster: str
    draw: float
    gold: str

    @property
    def kind(self) -> Kind:
        return self.piece.kind


@dataclass(frozen=True, slots=True)
class Limits:
    """What an answer may be, and how the split is drawn; the meaning is `TasksConfig`'s."""

    kinds: tuple[Kind, ...]
    min_lines: int
    max_lines: int
    max_characters: int
    held_out_share: float
    seed: int


def is_subject(document: Document) -> bool:
    """Whether a document's functions can be asked for."""
    return document.language == "python" and is_program_file(document.path)


def find_candidates(
    document: Document, discovery: Discovery, limits: Limits, *, held_out_file: bool
) -> tuple[list[Candidate], list[Rejected]]:
    """The questions of one file, at most one of each kind per function, and what was left out."""

    def reject(qualname: str, kind: str, reason: str) -> None:
        rejected.append(Rejected(document.repository, document.path, qualname, kind, reason))

    candidates: list[Candidate] = []
    rejected: list[Rejected] = []
    squeezed = normal_form(document.text)
    try:
        source = SourceFile(document.text, document.path)
        functions = find_functions(source)
        nodes = {qualname: node for qualname, node, _ in walk_functions(source.tree)}
    except (InputError, RecursionError) as error:
        reject("", "", f"does not parse: {error}"[:300])
        return [], rejected
    for function in functions:
        tests = discovery.tests_for(document.path, function) if function.body else ()
        if function.body is None or not tests:
            reject(function.qualname, "", function.rejected or "no passing test enters it")
            continue
        cluster = f"{document.repository}@{document.revision}:{document.path}:{function.qualname}"
        split: Split = "train" if share(f"{limits.seed}:split:{cluster}") >= limits.held_out_share else "held_out"
        for kind in limits.kinds:
            piece: Piece | None = function.body
            if kind == "span":
                piece = span_piece(source, nodes[function.qualname], function.body, f"{limits.seed}:span:{cluster}")
            reason = (
                "no proper part of the body to ask for" if piece is None else _unfit(source, piece, limits, squeezed)
            )
            if piece is None or reason:
                reject(function.qualname, kind, reason)
                continue
            candidates.append(
                Candidate(
                    document.repository,
                    document.path,
                    function,
                    piece,
                    tests,
                    "held_out" if held_out_file else split,
                    cluster,
                    share(f"{limits.seed}:order:{kind}:{cluster}"),
                    source.text[piece.start : piece.end],
                )
            )
    return candidates, rejected


def _unfit(source: SourceFile, piece: Piece, limits: Limits, squeezed: str) -> str:
    if piece.lines > limits.max_lines:
        return f"longer than {limits.max_lines} lines"
    if piece.end - piece.start > limits.max_characters:
        return f"longer than {limits.max_characters} characters"
    if piece.lines < limits.min_lines:
        return f"shorter than {limits.min_lines} lines"
    gold = source.text[piece.start : piece.end]
    if is_telling(gold) and squeezed.count(normal_form(gold)) > 1:
        return "its answer stands in the file once more"
    return ""


def ordered(candidates: Iterable[Candidate]) -> list[Candidate]:
    """An order whose every beginning is spread: over repositories, then their files, then kinds, then functions."""
    repositories: dict[str, list[Candidate]] = {}
    for repository, own in _grouped(candidates, lambda c: c.repository).items():
        files = [_interleaved(_by_kind(group)) for group in _grouped(own, lambda c: c.path).values()]
        files.sort(key=lambda group: group[0].draw)
        repositories[repository] = _interleaved(files)
    return _interleaved([repositories[name] for name in sorted(repositories)])


def _by_kind(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    groups = [sorted(group, key=lambda c: c.draw) for group in _grouped(candidates, lambda c: c.kind).values()]
    return sorted(groups, key=lambda group: group[0].draw)


def _grouped(candidates: Iterable[Candidate], key: Callable[[Candidate], str]) -> dict[str, list[Candidate]]:
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[key(candidate)].append(candidate)
    return groups


def _interleaved(groups: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """One of each group in turn until all are used up."""
    longest = max((len(group) for group in groups), default=0)
    return [group[i] for i in range(longest) for group in groups if i < len(group)]


def choose_held_out_files(documents: Iterable[Document], wanted: float, seed: int) -> set[tuple[str, str]]:
    """(repository, path) of whole files that are kept out of training: about `wanted` of the program text in bytes.

    Drawn in the order of a hash; a file that would overshoot is passed over. At least one file, where two are left.
    """
    eligible = [
        document for document in documents if is_subject(document) and len(document.text) >= MIN_HELD_OUT_CHARACTERS
    ]
    if wanted <= 0 or len(eligible) < 3:
        return set()
    eligible.sort(key=lambda d: (share(f"{seed}:file:{d.repository}@{d.revision}:{d.path}"), d.repository, d.path))
    budget = wanted * sum(len(document.text) for document in eligible)
    chosen: set[tuple[str, str]] = set()
    used = 0
    for document in eligible:
        if used + len(document.text) <= budget:
            used += len(document.text)
            chosen.add((document.repository, document.path))
    if not chosen:
        smallest = min(eligible, key=lambda d: (len(d.text), d.repository, d.path))
        chosen.add((smallest.repository, smallest.path))
    return chosen
