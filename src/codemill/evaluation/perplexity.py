"""Bits per byte: how well a model predicts text, comparable across tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from codemill.core.contracts import Document
from codemill.core.progress import Progress
from codemill.corpus.packing import best_fit
from codemill.models.decoder import Decoder, PackedAttention, packed_positions
from codemill.models.tokenizer import Tokenizer

_ROWS = 512  # logits held at once


@torch.inference_mode()
def bits_per_byte(
    decoder: Decoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    max_tokens: int = 1024,
    budget: int = 0,
) -> dict[str, Any]:
    """Negative log-likelihood in bits over the UTF-8 bytes it covers.

    Documents are cut into windows of `max_tokens` tokens; the first token of a window has nothing before it, so neither its
    bits nor its bytes count. `budget` stops after so many tokens, taken round-robin from the documents (0: all).
    """
    pieces = []
    for document in documents:
        ids = tokenizer.encode(document.text)
        pieces.append([ids[at : at + max_tokens] for at in range(0, len(ids), max_tokens)])
    windows = [
        w
        for row in range(max(map(len, pieces), default=0))
        for p in pieces
        if row < len(p)
        for w in [p[row]]
        if len(w) > 1
    ]
    if budget:
        kept, total = [], 0
        for window in windows:
            if total and total + len(window) > budget:
                break
            kept.append(window)
            total += len(window)
        windows = kept
    bits, covered, tokens = 0.0, 0, 0
    with Progress("bits per byte", total=sum(map(len, windows)), unit="tokens") as progress:
        for chosen in best_fit([len(w) for w in windows], 2 * max_tokens):
            rows = [windows[i] for i in chosen]
            bits += _bits(decoder, rows)
            covered += sum(len(tokenizer.decode_bytes(row[1:])) for row in rows)
            tokens += sum(len(row) - 1 for row in rows)
            progress.advance(sum(map(len, rows)))
    return {
        "bits_per_byte": bits / covered if covered else None,
        "bytes": covered,
        "tokens": tokens,
        "windows": len(windows),
    }


def _bits(decoder: Decoder, rows: list[list[int]]) -> float:
    lengths = [len(row) for row in rows]
    ids = torch.tensor([token for row in rows for token in row], device=decoder.device)
    hidden = decoder(ids, packed_positions(lengths, ids.device), PackedAttention(lengths))
    ends = torch.tensor(lengths, device=ids.device).cumsum(0) - 1
    inner = torch.ones_like(ids, dtype=torch.bool)
    inner[ends] = False
    at = inner.nonzero()[:, 0]
    total = 0.0
    for part in at.split(_ROWS):
        logprobs = torch.log_softmax(decoder.logits(hidden[part]), -1, dtype=torch.float32)
        total -= float(logprobs.gather(1, ids[part + 1, None]).sum(dtype=torch.float64))
    return total / math.log(2)
