"""From documents to packed batches, in an order that depends on the seed and the position only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from codemill.core.contracts import Document
from codemill.core.errors import InputError
from codemill.corpus.fim import FimMix, examples, random_for
from codemill.corpus.packing import best_fit
from codemill.models.tokenizer import Tokenizer
from codemill.training.config import TrainConfig
from codemill.training.loss import IGNORE, next_token_labels


@dataclass(frozen=True)
class Batch:
    """One forward pass: T tokens of packed documents. `labels_T` are the next tokens, `IGNORE` at borders."""

    ids_T: Tensor
    labels_T: Tensor
    lengths: list[int]

    @property
    def trained(self) -> int:
        """Tokens that have a label."""
        return int((self.labels_T != IGNORE).sum())


@dataclass(frozen=True)
class Position:
    """Where the next batch comes from. All there is to save."""

    epoch: int = 0
    index: int = 0


class BatchStream:
    """Batches of at most `micro_tokens` tokens, epoch after epoch, without end. `position` may be set to resume."""

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer, config: TrainConfig) -> None:
        if config.max_tokens > config.micro_tokens:
            raise InputError(f"max_tokens {config.max_tokens} must not exceed micro_tokens {config.micro_tokens}")
        self.documents = [d for d in documents if _fits(d.path, config.include) and not _fits(d.path, config.exclude)]
        self.tokenizer, self.config = tokenizer, config
        self.position = Position()
        self._epoch: int | None = None
        self._batches: list[list[list[int]]] = []

    def _load(self, epoch: int) -> None:
        c = self.config
        mix = FimMix(rate=c.fim.rate, node=c.fim.node, line=c.fim.line, max_lines=c.fim.max_lines)
        rows = [
            ids
            for document in self.documents
            for ids in examples(document, self.tokenizer, mix=mix, max_tokens=c.max_tokens, seed=c.seed, epoch=epoch)
            if len(ids) > 1
        ]
        if not rows:
            raise InputError("there is nothing to train on: no document fits include and exclude, or all are empty")
        rng = random_for(c.seed, "order", epoch)
        rows = [rows[i] for i in rng.permutation(len(rows))]
        bins = best_fit([len(ids) for ids in rows], c.micro_tokens)
        self._batches = [[rows[i] for i in bins[b]] for b in rng.permutation(len(bins))]
        self._epoch = epoch

    def epoch_batches(self) -> int:
        """Batches of the first pass; later ones differ a little, as their infilling does."""
        if self._epoch is None:
            self._load(0)
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self._epoch != self.position.epoch:
                self._load(self.position.epoch)
            if self.position.index >= len(self._batches):
                self.position = Position(self.position.epoch + 1, 0)
                continue
            rows = self._batches[self.position.index]
            self.position = Position(self.position.epoch, self.position.index + 1)
            yield pack(rows)


def _fits(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def pack(rows: Sequence[list[int]]) -> Batch:
    """Examples one after the other, with labels that do not cross from one to the next."""
    lengths = [len(ids) for ids in rows]
    ids_T = torch.tensor([token for ids in rows for token in ids])
    return Batch(ids_T, next_token_labels(ids_T, lengths), lengths)
