"""Building a corpus: sources in, `documents.parquet` and `decisions.parquet` out, every file accounted for.

Same sources and policy, same bytes: files are taken in the order of their paths, sources in the order given.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from codemill.core.artifact import is_finished, read_manifest, write_manifest
from codemill.core.contracts import Document
from codemill.core.errors import ConfigError, InputError, UnavailableError
from codemill.core.paths import atomic_folder
from codemill.core.progress import Progress
from codemill.corpus.filters import Decision, Judged, Policy, judge_bytes, judge_text
from codemill.corpus.folders import blocks_of
from codemill.corpus.languages import detect, kind_of
from codemill.corpus.license_files import READ_BYTES, Finding, RepositoryLicenses
from codemill.corpus.licenses import tier
from codemill.corpus.measures import RawSignals, decode, measure_bytes, place_labels
from codemill.corpus.snapshot import Limits, Skipped, Snapshot
from codemill.corpus.sources import fetch, parse_source
from codemill.corpus.store import (
    DECISIONS,
    DOCUMENTS,
    TableWriter,
    decision_schema,
    document_row,
    document_schema,
    table_writer,
)


def build_corpus(
    sources: Sequence[str],
    out: Path,
    *,
    policy: Policy | None = None,
    max_file_bytes: int | None = None,
    refresh: bool = False,
) -> dict[str, Any]:
    """Build the corpus of `sources` in the folder `out`; returns the facts of its manifest.

    `max_file_bytes` replaces the policy's. `refresh` looks up branches of remote repositories again. A corpus
    already in `out` is replaced; anything else there is left alone and refused. Raises `ConfigError` for a word
    that is no source, `InputError` where nothing is kept.
    """
    started = time.monotonic()
    policy = policy or Policy()
    if max_file_bytes is not None:
        policy = replace(policy, max_file_bytes=max_file_bytes)
    _check(sources, out)
    limits = Limits(file_bytes=max(Limits().file_bytes, policy.max_file_bytes))
    snapshots = [fetch(source, limits=limits, refresh=refresh) for source in sources]
    try:
        with atomic_folder(out) as folder:
            facts = _write(snapshots, folder, policy)
            write_manifest(
                folder,
                kind="corpus",
                config={"sources": list(sources), "policy": asdict(policy)},
                inputs={snapshot.source: snapshot.revision for snapshot in snapshots},
                seconds=time.monotonic() - started,
                facts=facts,
                packages=("pyarrow", "license-expression"),
            )
    except OSError as error:
        raise UnavailableError(f"{out}: cannot be written: {error.strerror or error}") from None
    return facts


def _check(sources: Sequence[str], out: Path) -> None:
    """Everything that can be wrong before any work."""
    if not sources:
        raise ConfigError("a corpus needs at least one source, for instance path:DIR or pypi:toolz==1.0.0")
    for source in sources:
        parse_source(source)
    twice = [source for source, count in Counter(sources).items() if count > 1]
    if twice:
        raise ConfigError(f"source {twice[0]!r} is given twice")
    if out.is_dir() and any(out.iterdir()):
        if not is_finished(out) or read_manifest(out).get("kind") != "corpus":
            raise ConfigError(f"{out}: holds something that is not a corpus; give another folder, or empty it")
    elif out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; a corpus is a folder")


@dataclass(slots=True)
class _Count:
    """What became of the files of one repository."""

    files: int = 0
    kept: int = 0
    bytes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)  # bytes
    example: str = ""

    def add(self, path: str, size: int, judged: Judged) -> None:
        self.files += 1
        decision = judged.decision
        if decision.outcome == "keep":
            self.kept += 1
            self.bytes += size
            self.languages[judged.language] += size
            self.licenses[judged.license.expression or "unknown"] += 1
            return
        chosen = self.dropped if decision.outcome == "drop" else self.quarantined
        chosen[decision.reason] += 1
        self.example = self.example or f"{path}: {decision.reason}, {decision.detail}"


@dataclass(slots=True)
class _Tables:
    """The two files being written, and the hashes of what was kept: hash to "repository path"."""

    documents: TableWriter
    decisions: TableWriter
    kept: dict[str, str] = field(default_factory=dict)


def _write(snapshots: Sequence[Snapshot], folder: Path, policy: Policy) -> dict[str, Any]:
    listed = [_members(snapshot) for snapshot in snapshots]
    counts = []
    with ExitStack() as stack:
        tables = _Tables(
            stack.enter_context(table_writer(folder / DOCUMENTS, document_schema())),
            stack.enter_context(table_writer(folder / DECISIONS, decision_schema())),
        )
        progress = stack.enter_context(Progress("corpus", total=sum(map(len, listed)), unit="files"))
        repositories = []
        for snapshot, members in zip(snapshots, listed, strict=True):
            licenses = _licenses(snapshot, members)
            count = _Count()
            for path, member in members:
                _one(snapshot, path, member, licenses, policy, tables, count)
                progress.advance(note=snapshot.name)
            counts.append(count)
            repositories.append(_repository(snapshot, licenses, count))
    _require_documents(counts)
    return {
        "documents": sum(count.kept for count in counts),
        "bytes": sum(count.bytes for count in counts),
        "files": sum(count.files for count in counts),
        "dropped": _sorted(sum((count.dropped for count in counts), Counter())),
        "quarantined": _sorted(sum((count.quarantined for count in counts), Counter())),
        "languages": _sorted(sum((count.languages for count in counts), Counter())),
        "licenses": _sorted(sum((count.licenses for count in counts), Counter())),
        "repositories": repositories,
    }


def _members(snapshot: Snapshot) -> list[tuple[str, Path | Skipped]]:
    """The files of a snapshot and what was left out of it, in the order of their paths."""
    members: list[tuple[str, Path | Skipped]] = [*snapshot.files()]
    members += [(skipped.path, skipped) for skipped in snapshot.skipped]
    return sorted(members, key=lambda member: (member[0], isinstance(member[1], Skipped)))


def _licenses(snapshot: Snapshot, members: Sequence[tuple[str, Path | Skipped]]) -> RepositoryLicenses:
    files = {path: member for path, member in members if isinstance(member, Path)}

    def read(path: str) -> str:
        with files[path].open("rb") as handle:
            return decode(handle.read(READ_BYTES)) or ""

    return RepositoryLicenses(files, read)


def _one(
    snapshot: Snapshot,
    path: str,
    member: Path | Skipped,
    licenses: RepositoryLicenses,
    policy: Policy,
    tables: _Tables,
    count: _Count,
) -> None:
    """Judge one file and write down what was decided."""
    if isinstance(member, Skipped):
        raw = RawSignals(member.bytes, 0, 0, False, False, b"", "")
        judged = Judged(Decision("drop", "not-collected", member.reason), detect(path), labels=place_labels(path))
    else:
        raw, judged = _judge(path, member, licenses, policy)
    if judged.decision.outcome == "keep":
        first = tables.kept.setdefault(raw.hash, f"{snapshot.source} {path}")
        if first != f"{snapshot.source} {path}":
            judged = replace(judged, decision=Decision("drop", "duplicate", first))
    if judged.decision.outcome == "keep" and judged.text is not None:
        tables.documents.append(document_row(_document(snapshot, path, raw, judged)))
    tables.decisions.append(_decision_row(snapshot, path, raw, judged))
    count.add(path, raw.size, judged)


def _judge(path: str, file: Path, licenses: RepositoryLicenses, policy: Policy) -> tuple[RawSignals, Judged]:
    try:
        with file.open("rb", buffering=0) as handle:
            raw = measure_bytes(blocks_of(handle))
            first = judge_bytes(path, raw, policy)
            if first.outcome != "keep":
                return raw, Judged(first, detect(path), licenses.of(path, ""), place_labels(path))
            handle.seek(0)
            data = handle.readall()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}; remove its folder from the cache") from None
    return raw, judge_text(path, data, licenses.of, policy)


def _document(snapshot: Snapshot, path: str, raw: RawSignals, judged: Judged) -> Document:
    return Document(
        text=judged.text or "",
        path=path,
        repository=snapshot.source,
        revision=snapshot.revision,
        language=judged.language,
        license=judged.license.expression,
        hash=raw.hash,
    )


def _decision_row(snapshot: Snapshot, path: str, raw: RawSignals, judged: Judged) -> dict[str, Any]:
    signals = judged.signals
    return {
        "repository": snapshot.source,
        "path": path,
        "bytes": raw.size,
        "lines": raw.lines,
        "language": judged.language,
        "class": kind_of(judged.language),
        "license": judged.license.expression,
        "license_evidence": judged.license.evidence,
        "tier": tier(judged.license.expression),
        "hash": raw.hash,
        "decision": judged.decision.outcome,
        "reason": judged.decision.reason,
        "detail": judged.decision.detail,
        "labels": list(judged.labels),
        "longest_line": signals.longest_line if signals else None,
        "mean_line": signals.mean_line if signals else None,
        "alphabetic_share": signals.alphabetic_share if signals else None,
        "control_share": signals.control_share if signals else None,
        "blob_share": signals.blob_share if signals else None,
        "longest_blob": signals.longest_blob if signals else None,
    }


def _repository(snapshot: Snapshot, licenses: RepositoryLicenses, count: _Count) -> dict[str, Any]:
    top: Finding = licenses.folder(".")
    return {
        "source": snapshot.source,
        "name": snapshot.name,
        "revision": snapshot.revision,
        "license": top.expression,
        "license_evidence": top.evidence,
        "tier": tier(top.expression),
        "files": count.files,
        "kept": count.kept,
        "bytes": count.bytes,
        "dropped": _sorted(count.dropped),
        "quarantined": _sorted(count.quarantined),
        "languages": _sorted(count.languages),
    }


def _require_documents(counts: Sequence[_Count]) -> None:
    """A corpus of nothing is an error that says where everything went."""
    if any(count.kept for count in counts):
        return
    files = sum(count.files for count in counts)
    if not files:
        raise InputError("the sources hold no files at all")
    reasons = sum((count.dropped + count.quarantined for count in counts), Counter())
    listed = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
    example = next(count.example for count in counts if count.example)
    raise InputError(f"none of {files} files is kept: {listed} (for instance {example}); see the policy")


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
