"""Reading and writing a corpus on disk: `documents.parquet` and `decisions.parquet`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codemill.core.contracts import Document
from codemill.core.errors import InputError
from codemill.core.paths import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

DOCUMENTS = "documents.parquet"
DECISIONS = "decisions.parquet"
GROUP_BYTES = 16 << 20  # text in one row group: what a reader holds in memory at a time
GROUP_ROWS = 10_000


def document_schema() -> pa.Schema:
    """The columns of `documents.parquet`: the fields of a `Document`, `license` alone may be null."""
    import pyarrow as pa

    names = ("text", "path", "repository", "revision", "language", "license", "hash")
    return pa.schema([pa.field(name, pa.string(), nullable=name == "license") for name in names])


def decision_schema() -> pa.Schema:
    """The columns of `decisions.parquet`: one row for every file that was met, kept or not."""
    import pyarrow as pa

    texts = ("repository", "path", "language", "class", "hash", "decision", "reason", "detail", "tier")
    fields = [pa.field(name, pa.string(), nullable=False) for name in texts]
    fields += [pa.field("license", pa.string()), pa.field("license_evidence", pa.string(), nullable=False)]
    fields += [pa.field(name, pa.int64(), nullable=False) for name in ("bytes", "lines")]
    fields += [pa.field("labels", pa.list_(pa.string()), nullable=False)]
    # Signals: null for a file that was ruled out before it was decoded.
    fields += [pa.field(name, pa.int64()) for name in ("longest_line", "longest_blob")]
    shares = ("mean_line", "alphabetic_share", "control_share", "blob_share")
    fields += [pa.field(name, pa.float64()) for name in shares]
    return pa.schema(fields)


@contextmanager
def table_writer(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """A Parquet file that is filled row by row in bounded memory and appears when it is whole.

    The bytes depend on the rows alone: no time stamp, one thread, fixed row groups.
    """
    import pyarrow.parquet as pq

    with atomic_write(path) as out:
        with pq.ParquetWriter(out, schema, compression="zstd", compression_level=3, version="2.6") as parquet:
            writer = TableWriter(parquet, schema)
            yield writer
            writer.flush()


class TableWriter:
    """Collects rows and writes them as row groups of bounded size."""

    def __init__(self, parquet: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._parquet, self._schema = parquet, schema
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0
        self.rows = 0

    def append(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += 200 + len(row.get("text") or "")
        self.rows += 1
        if self._bytes >= GROUP_BYTES or len(self._rows) >= GROUP_ROWS:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows, self._bytes = [], 0


def document_row(document: Document) -> dict[str, Any]:
    return {
        "text": document.text,
        "path": document.path,
        "repository": document.repository,
        "revision": document.revision,
        "language": document.language,
        "license": document.license,
        "hash": document.hash,
    }


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents to one Parquet file, atomically and streaming; returns how many.

    Raises `InputError` for text with a lone surrogate, which UTF-8 cannot hold.
    """
    with table_writer(path, document_schema()) as writer:
        for document in documents:
            try:
                document.text.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{document.repository}: {document.path}: text is not Unicode: {error.reason}"
                ) from None
            writer.append(document_row(document))
    return writer.rows


def read_documents(path: Path) -> Iterator[Document]:
    """Stream the documents of a Parquet file, or of a corpus folder, in their stored order.

    Raises `InputError` for a file that is not one of ours.
    """
    path = path / DOCUMENTS if path.is_dir() else path
    for row in _rows(path, document_schema()):
        yield Document(**row)


def read_decisions(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the decisions of a corpus folder (or the file itself): what was met, what became of it."""
    path = path / DECISIONS if path.is_dir() else path
    yield from _rows(path, decision_schema())


def _rows(path: Path, schema: pa.Schema) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            _check_schema(path, parquet.schema_arrow, schema)
            for batch in parquet.iter_batches(batch_size=512, columns=schema.names, use_threads=False):
                for row in batch.to_pylist():
                    yield _checked(path, row, schema)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; build a corpus first") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first_line = (str(error).splitlines() or ["unknown"])[0]
        raise InputError(f"{path}: not a readable Parquet file: {first_line}") from None


def _check_schema(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    for field in wanted:
        indices = found.get_all_field_indices(field.name)
        if len(indices) != 1:
            raise InputError(f"{path}: {'no' if not indices else 'more than one'} column {field.name!r}")
        if found.field(indices[0]).type != field.type:
            kind = found.field(indices[0]).type
            raise InputError(f"{path}: column {field.name!r} is {kind}, not {field.type}; build the corpus again")


def _checked(path: Path, row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    for field in schema:
        if not field.nullable and row[field.name] is None:
            raise InputError(f"{path}: column {field.name!r} holds a null")
    return row
