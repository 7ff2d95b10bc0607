"""Parquet out and in again; Parquet from outside is not believed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.core.contracts import Document, content_hash
from codemill.core.errors import InputError
from codemill.corpus import store
from codemill.corpus.store import read_decisions, read_documents, write_documents


def document(text: str = "x = 1\n", path: str = "a.py", licence: str | None = "MIT") -> Document:
    return Document(
        text=text, path=path, repository="path:p", revision="r", language="python", license=licence,
        hash=content_hash(text.encode("utf-8", "surrogatepass")),
    )  # fmt: skip


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_documents_come_back_as_they_were(texts: list[str]) -> None:
    documents = [document(text, f"{n}.py", None if n % 2 else "MIT") for n, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.parquet"
        assert write_documents(path, iter(documents)) == len(documents)
        assert list(read_documents(path)) == documents
        assert list(read_documents(Path(folder))) == documents


def test_rows_are_written_in_groups_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "GROUP_BYTES", 100_000)
    documents = [document("x" * 10_000, f"{n}.py") for n in range(50)]
    write_documents(tmp_path / "d.parquet", iter(documents))
    assert pq.ParquetFile(tmp_path / "d.parquet").num_row_groups >= 5
    assert list(read_documents(tmp_path / "d.parquet")) == documents


def test_a_lone_surrogate_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"path:p: a\.py: text is not Unicode"):
        write_documents(tmp_path / "d.parquet", [document("\ud800")])
    assert list(tmp_path.iterdir()) == []


def _table(**changes: object) -> pa.Table:
    columns: dict[str, object] = {name: ["x"] for name in store.document_schema().names}
    columns |= changes
    return pa.table({name: column for name, column in columns.items() if column is not None})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (_table(text=None), "no column 'text'"),
        (_table(text=[1]), "column 'text' is int64, not string"),
        (_table(hash=pa.array([None], pa.string())), "column 'hash' holds a null"),
        (_table(path=pa.array([b"x"])), "is binary"),
        (pa.Table.from_arrays([pa.array(["x"])] * 8, [*store.document_schema().names, "text"]), "more than one column"),
    ],
)  # fmt: skip
def test_another_schema_is_refused(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=message):
        list(read_documents(tmp_path / "d.parquet"))


def test_more_columns_than_ours_do_no_harm(tmp_path: Path) -> None:
    pq.write_table(_table(more=[1]), tmp_path / "d.parquet")
    assert len(list(read_documents(tmp_path / "d.parquet"))) == 1


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
    pq.write_table(_table(text=bad), tmp_path / "d.parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        list(read_documents(tmp_path / "d.parquet"))


@pytest.mark.parametrize("data", [b"", b"no parquet", b"PAR1" + bytes(100) + b"PAR1"])
def test_broken_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "documents.parquet").write_bytes(data)
    with pytest.raises(InputError, match="not a readable Parquet file"):
        list(read_documents(tmp_path))


def test_a_missing_corpus_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="build a corpus first"):
        list(read_documents(tmp_path))
    with pytest.raises(InputError, match="build a corpus first"):
        list(read_decisions(tmp_path / "missing"))
