"""Fill-in-the-middle and packing: vectors, round trips, determinism."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codemill.core.errors import ConfigError
from codemill.corpus.fim import FimMix, Span, arrange, choose_span, examples, node_lines, random_for, windows
from codemill.corpus.packing import best_fit
from codemill.models.tokenizer import Tokenizer
from tiny import document, tiny_checkpoint

SOURCE = '''"""Module."""

def first(a, b):
    """Adds."""
    if a > b:
        a, b = b, a
    return a + b


class Thing:
    def method(self):
        for i in range(3):
            print(i)
        return self
'''


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(tiny_checkpoint(tmp_path_factory.mktemp("t")))


def restore(ids: list[int], tokenizer: Tokenizer) -> str:
    """The inverse of `arrange`; plain windows pass through."""
    fim = tokenizer.fim
    assert fim is not None
    if fim.prefix not in ids:
        return tokenizer.decode_bytes([i for i in ids if i != 256]).decode("utf-8", "surrogatepass")
    at = [ids.index(sentinel) for sentinel in (fim.prefix, fim.suffix, fim.middle)]
    assert at == sorted(at)
    assert at[0] == 0
    assert ids[-1] == 256
    prefix, suffix, middle = ids[1 : at[1]], ids[at[1] + 1 : at[2]], ids[at[2] + 1 : -1]
    return tokenizer.decode_bytes([*prefix, *middle, *suffix]).decode()


def test_vector_v3(tokenizer: Tokenizer) -> None:
    """ "abcdef" cut at 2 and 4: PRE ab SUF ef MID cd END; and every other cut restores the text."""
    fim = tokenizer.fim
    assert fim is not None
    expected = [fim.prefix, *b"ab", fim.suffix, *b"ef", fim.middle, *b"cd", 256]
    assert arrange("abcdef", Span(2, 4), tokenizer) == expected
    for start in range(7):
        for end in range(start, 7):
            assert restore(arrange("abcdef", Span(start, end), tokenizer), tokenizer) == "abcdef"


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.integers(0, 5),
    st.sampled_from([FimMix(rate=1, node=0, line=1), FimMix(rate=1, node=0, line=0), FimMix(rate=0.5), FimMix(rate=0)]),
)
def test_examples_restore_the_document(tokenizer: Tokenizer, text: str, epoch: int, mix: FimMix) -> None:
    """Prefix, middle and suffix of all windows in order are the document, whatever it holds."""
    longest = max((len(line.encode()) for line in text.splitlines()), default=0)
    made = examples(document(text), tokenizer, mix=mix, max_tokens=longest + 40, seed=1, epoch=epoch)
    assert "".join(restore(ids, tokenizer) for ids in made) == text


def test_examples_fit_and_end(tokenizer: Tokenizer) -> None:
    text = SOURCE * 6
    rows = list(examples(document(text), tokenizer, mix=FimMix(rate=0.5), max_tokens=120, seed=0, epoch=0))
    assert max(map(len, rows)) <= 120
    assert rows[-1][-1] == 256
    assert sum(259 in row for row in rows) not in (0, len(rows))  # some rearranged, some not
    long_line = list(
        examples(document("x" * 1000, "a.txt", "text"), tokenizer, mix=FimMix(rate=0), max_tokens=100, seed=0, epoch=0)
    )
    assert sum(map(len, long_line)) == 1001
    assert max(map(len, long_line)) <= 100


def test_randomness_is_keyed(tokenizer: Tokenizer) -> None:
    """The same document gives the same examples whatever came before; another epoch, seed or path gives others."""

    def made(**key: int) -> list[list[int]]:
        given_key = {"seed": 0, "epoch": 0, **key}
        return list(examples(document(SOURCE * 5), tokenizer, mix=FimMix(rate=1), max_tokens=100, **given_key))

    assert made() == made()
    assert made() != made(epoch=1)
    assert made() != made(seed=1)
    assert random_for("a", 1).random() == random_for("a", 1).random() != random_for("a", 2).random()


def test_nodes_are_statements_and_blocks() -> None:
    ranges = node_lines(SOURCE)
    lines = SOURCE.splitlines()
    assert (4, 7) in ranges  # the body of `first` after its docstring
    assert (3, 4) not in ranges  # the docstring itself
    assert all(0 <= a < b <= len(lines) for a, b in ranges)
    assert node_lines("def broken(:\n") == []
    assert node_lines("@decorator\ndef f():\n    @inner\n    def g(): pass\n    return g\n")[0][0] >= 2


def test_node_spans_are_whole_nodes() -> None:
    mix, nodes = FimMix(rate=1, node=1, line=0), node_lines(SOURCE)
    texts = {
        SOURCE[span.start : span.end]
        for i in range(60)
        if (span := choose_span(SOURCE, 0, nodes, mix, random_for(i))) is not None
    }
    assert "    if a > b:\n        a, b = b, a\n    return a + b" in texts
    offsets = [0]
    for line in SOURCE.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    assert texts <= {SOURCE[offsets[a] : offsets[b]].removesuffix("\n") for a, b in nodes}


def test_windows_cover_the_text(tokenizer: Tokenizer) -> None:
    text = SOURCE * 4
    cuts = list(windows(text, tokenizer, 90))
    assert cuts[0][1] == 0
    assert cuts[-1][2] == len(text)
    for (_, _, end), (line, start, _) in zip(cuts, cuts[1:], strict=False):
        assert end == start
        assert text[:start].count("\n") == line


def test_a_model_without_tokens_is_an_error(tmp_path: Path) -> None:
    plain = Tokenizer.load(tiny_checkpoint(tmp_path, infills=False))
    with pytest.raises(ConfigError, match="fill-in-the-middle"):
        list(examples(document(SOURCE), plain, mix=FimMix(rate=0.5), max_tokens=64, seed=0, epoch=0))
    assert list(examples(document(SOURCE), plain, mix=FimMix(rate=0), max_tokens=64, seed=0, epoch=0))


@settings(deadline=None)
@given(st.lists(st.integers(1, 64), max_size=200))
def test_best_fit(lengths: list[int]) -> None:
    bins = best_fit(lengths, 64)
    assert sorted(i for chosen in bins for i in chosen) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in chosen) for chosen in bins]
    assert all(total <= 64 for total in sums)
    assert sum(total <= 32 for total in sums) <= 1  # two half-empty bins would have been one
    assert bins == best_fit(lengths, 64)


def test_best_fit_wastes_little() -> None:
    lengths = [int(x) for x in random_for("lengths").integers(1, 512, 2000)]
    bins = best_fit(lengths, 2048)
    assert sum(lengths) / (2048 * len(bins)) > 0.97
    with pytest.raises(ValueError, match="does not fit"):
        best_fit([3, 65], 64)
