"""Sources: where source code comes from, written as one word, and the cached snapshot of each.

path:DIR               a folder on this machine
git:URL_OR_DIR[@REV]   one commit of a git repository (default: HEAD)
pypi:NAME==VERSION     the source archive of a release on the Python package index
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from codemill.core.artifact import fingerprint, is_finished, read_manifest, write_manifest
from codemill.core.errors import ConfigError, InputError, UnavailableError, nearest
from codemill.core.paths import atomic_folder, atomic_write_text, cache_dir, locked
from codemill.core.records import read_records, write_records
from codemill.corpus.archives import collect_archive
from codemill.corpus.folders import collect_folder
from codemill.corpus.git_source import collect_local, collect_remote, is_url, local_commit, remote_commit
from codemill.corpus.package_index import download, find_source_archive, index_settings
from codemill.corpus.snapshot import Collector, Limits, Skipped, Snapshot

FORMS = "path:DIR, git:URL_OR_DIR[@REV] or pypi:NAME==VERSION"
Scheme = Literal["path", "git", "pypi"]


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed source: `location` a folder, URL or project name; `revision` as asked for, or empty."""

    text: str
    scheme: Scheme
    location: str
    revision: str = ""

    @property
    def name(self) -> str:
        """A short name for people: the folder's, the repository's or the project's."""
        if self.scheme == "pypi":
            return self.location
        if self.scheme == "git" and is_url(self.location):
            last = re.split(r"[/:]", self.location.rstrip("/"))[-1]
        else:
            last = Path(self.location).expanduser().resolve().name
        return last.removesuffix(".git") or "source"


def parse_source(text: str) -> Source:
    """Read a source as the user writes it. Raises `ConfigError`; touches no network."""
    scheme, colon, rest = text.partition(":")
    if not colon or not rest or scheme not in ("path", "git", "pypi"):
        hint = f"; {nearest(scheme, ('path', 'git', 'pypi'))}" if colon and rest else ""
        raise ConfigError(f"source {text!r}: write it as {FORMS}{hint}")
    if any(ord(c) < 32 for c in text):
        raise ConfigError(f"source {text!r}: control character in it")
    if scheme == "path":
        return Source(text, "path", rest)
    return _parse_pypi(text, rest) if scheme == "pypi" else _parse_git(text, rest)


def _parse_pypi(text: str, rest: str) -> Source:
    name, equals, version = (part.strip() for part in rest.partition("=="))
    if not equals or not version:
        raise ConfigError(f"source {text!r}: a release needs its version, as in pypi:toolz==1.0.0")
    try:
        return Source(text, "pypi", canonicalize_name(name, validate=True), str(Version(version)))
    except InvalidName:
        raise ConfigError(f"source {text!r}: {name!r} is not the name of a project (extras are not wanted)") from None
    except InvalidVersion:
        raise ConfigError(f"source {text!r}: {version!r} is not one exact version, as in pypi:toolz==1.0.0") from None


def _parse_git(text: str, rest: str) -> Source:
    if rest.startswith("-") or "::" in rest:
        raise ConfigError(f"source {text!r}: not a repository; write git:URL_OR_DIR[@REV]")
    location, revision = rest, ""
    # "@" may belong to the address (user@host) or to a folder's name; a revision's comes after the host.
    start = 0
    if "://" in rest:
        start = max(rest.find("/", rest.index("://") + 3), 0)
    elif is_url(rest):
        start = rest.index(":")
    if "@" in rest[start:] and not Path(rest).expanduser().is_dir():
        at = rest.rindex("@")
        location, revision = rest[:at], rest[at + 1 :]
        if not revision or revision.startswith("-"):
            raise ConfigError(f"source {text!r}: {revision!r} is not a revision; name a commit, tag or branch")
    if "://" in location:
        parts = urlsplit(location)
        if parts.scheme == "file":
            return Source(text, "git", parts.path, revision)
        if parts.scheme not in ("https", "http", "ssh", "git"):
            raise ConfigError(f"source {text!r}: protocol {parts.scheme!r} is not used; use https or ssh")
        if parts.password or (parts.username and parts.scheme in ("https", "http")):
            raise ConfigError(
                "a git source with a user name or password in its address would be written into the corpus; "
                "use git's credential helper instead"
            )
    return Source(text, "git", location, revision)


def resolve(source: str | Source, *, limits: Limits | None = None, refresh: bool = False) -> str:
    """The revision a source stands for: a hash of a folder's content, a commit, a release. The key of caches.

    A branch or tag of a remote repository is looked up once and remembered, so that later runs need no
    network and see the same code; `refresh` looks again.
    """
    source = parse_source(source) if isinstance(source, str) else source
    if source.scheme == "pypi":
        return source.revision
    if source.scheme == "path":
        collector = Collector(None, source.text, limits or Limits())
        collect_folder(_folder_of(source), collector)
        return collector.digest()
    if not is_url(source.location):
        return local_commit(_folder_of(source), source.revision or "HEAD")
    memo = _store() / f"{fingerprint(source.text)}.revision"
    if memo.is_file() and not refresh:
        return memo.read_text().strip()
    commit = remote_commit(source.location, source.revision or "HEAD")
    atomic_write_text(memo, commit + "\n")
    return commit


def fetch(source: str | Source, *, limits: Limits | None = None, refresh: bool = False) -> Snapshot:
    """The snapshot of a source, from the cache when it is there; else collected, whole or not at all.

    Raises `InputError` for a source that is missing or past the limits, `UnavailableError` for a network or
    disk that fails, `IntegrityError` for bytes that are not what the index promised.
    """
    source = parse_source(source) if isinstance(source, str) else source
    limits = limits or Limits()
    revision = resolve(source, limits=limits, refresh=refresh)
    key = fingerprint([source.text, revision, asdict(limits)])
    folder = _store() / f"{re.sub(r'[^A-Za-z0-9._-]', '_', source.name)[:60]}-{key}"
    snapshot = _cached(folder)
    if snapshot is not None:
        return snapshot
    with locked(folder.with_name(folder.name + ".lock")):
        snapshot = _cached(folder)
        if snapshot is None:
            try:
                _collect(source, revision, limits, folder)
            except OSError as error:
                raise UnavailableError(f"{folder}: cannot be written: {error.strerror or error}") from None
            snapshot = _cached(folder)
    if snapshot is None:
        raise UnavailableError(f"{folder}: changed while it was written; run it again")
    return snapshot


def _store() -> Path:
    path = cache_dir() / "sources"
    path.mkdir(exist_ok=True)
    return path


def _folder_of(source: Source) -> Path:
    path = Path(source.location).expanduser()
    if not path.is_dir():
        raise InputError(f"{source.text}: {path} is not a folder")
    return path


def _collect(source: Source, revision: str, limits: Limits, folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        files = temporary / "files"
        files.mkdir()
        collector = Collector(files, source.text, limits)
        archive = None
        if source.scheme == "path":
            collect_folder(_folder_of(source), collector)
            if collector.digest() != revision:
                raise InputError(f"{source.text}: changed while it was read; run it again")
        elif source.scheme == "git" and is_url(source.location):
            collect_remote(source.location, revision, collector, folder.parent)
        elif source.scheme == "git":
            collect_local(_folder_of(source), revision, collector)
        else:
            settings = index_settings()
            found = find_source_archive(source.location, revision, settings)
            archive = download(found, folder.parent / "downloads", settings, limits.total_bytes)
            collect_archive(archive, collector)
        prefix = _wrapper(files) if archive is not None else ""
        skipped = [Skipped(s.path.removeprefix(prefix), s.bytes, s.reason) for s in collector.ordered_skips()]
        write_records(temporary / "skipped.jsonl", skipped)
        facts = {
            "source": source.text,
            "name": source.name,
            "revision": revision,
            "root": f"files/{prefix}".rstrip("/"),
            "files": collector.files,
            "bytes": collector.total_bytes,
            "skipped": len(skipped),
        }
        write_manifest(temporary, kind="snapshot", config={"source": source.text, **asdict(limits)}, facts=facts)
    if archive is not None:
        archive.unlink(missing_ok=True)


def _wrapper(files: Path) -> str:
    """`NAME-VERSION/`, the folder that a source archive wraps around its content; empty when it does not."""
    entries = list(files.iterdir())
    if len(entries) != 1 or not entries[0].is_dir():
        return ""
    return entries[0].name + "/"


def _cached(folder: Path) -> Snapshot | None:
    """The finished snapshot in `folder`; None when there is none or a cleaner took some of its files."""
    if not is_finished(folder):
        return None
    facts = read_manifest(folder)["facts"]
    snapshot = Snapshot(
        source=cast(str, facts["source"]),
        name=cast(str, facts["name"]),
        revision=cast(str, facts["revision"]),
        root=folder / facts["root"],
        skipped=tuple(read_records(folder / "skipped.jsonl", Skipped)),
    )
    if not snapshot.root.is_dir():
        return None
    sizes = [path.stat().st_size for _, path in snapshot.files()]
    return snapshot if (len(sizes), sum(sizes)) == (facts["files"], facts["bytes"]) else None
