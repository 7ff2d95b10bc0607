"""Reading and writing contract types as JSON and JSON lines, with errors that name the file and the line."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from codemill.core.errors import InputError

T = TypeVar("T")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def to_json(value: Any) -> Any:
    """A contract value as plain JSON data."""
    kind: Any = type(value)
    return _adapter(kind).dump_python(value, mode="json") if dataclasses.is_dataclass(value) else value


def dumps(value: Any) -> str:
    """One line of JSON. Lone surrogates, which models and hostile files produce, are escaped, never an error."""
    return json.dumps(to_json(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)


def from_json(kind: type[T], data: Any, where: str) -> T:
    """Build a contract value from JSON data. `where` names the origin in the error."""
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - names) if isinstance(data, dict) else []
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r} in a {kind.__name__}")
    key: Any = kind
    try:
        value: T = _adapter(key).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "value"
        raise InputError(f"{where}: {kind.__name__} field {field!r}: {first['msg']}") from None
    return value


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Pairs of line number and value. A last line cut off by a crash is an error that says so."""
    try:
        lines = path.open(encoding="utf-8", errors="strict")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    with lines:
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not a line of JSON: {error}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number + 1}: not UTF-8: {error.reason}") from None


def read_records(path: Path, kind: type[T]) -> Iterator[T]:
    """The contract values of a JSON-lines file."""
    for number, data in read_json_lines(path):
        yield from_json(kind, data, f"{path}:{number}")


def write_records(path: Path, values: Iterable[Any]) -> int:
    """Write values as JSON lines, atomically; returns how many."""
    from codemill.core.paths import atomic_write

    count = 0
    with atomic_write(path) as out:
        for value in values:
            out.write(dumps(value).encode() + b"\n")
            count += 1
    return count


class RecordLog:
    """An append-only JSON-lines file that survives a kill: a torn last line is cut off when it is opened again."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab+")
        _cut_torn_line(self._file)

    def append(self, value: Any) -> None:
        self._file.write(dumps(value).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> RecordLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut_torn_line(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    position = size
    while position > 0:
        start = max(0, position - 65536)
        file.seek(start)
        block = file.read(position - start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            file.truncate(start + newline + 1)
            file.seek(0, os.SEEK_END)
            return
        position = start
    file.truncate(0)
