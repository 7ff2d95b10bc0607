"""Source archives from a Python package index, fetched without running anything of the package.

`pip download` of a source archive runs its build script to learn its metadata; this does not. The index,
certificates and proxies are those of the user's pip. Protocol: the simple repository API, in its JSON (PEP
691) and HTML (PEP 503) forms.
"""

from __future__ import annotations

import ast
import hashlib
import html.parser
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import url2pathname

from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import Version

from codemill.core.errors import InputError, IntegrityError, UnavailableError
from codemill.core.paths import locked
from codemill.core.progress import Progress
from codemill.corpus.snapshot import BLOCK

if TYPE_CHECKING:
    import httpx

STANDARD_INDEX = "https://pypi.org/simple"
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """Where packages come from: index addresses in the order asked, certificate file, proxy, seconds."""

    indexes: tuple[str, ...] = (STANDARD_INDEX,)
    certificates: str | None = None
    proxy: str | None = None
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class SourceArchive:
    """A source archive as the index lists it."""

    filename: str
    url: str
    sha256: str


def index_settings(environment: Mapping[str, str] | None = None) -> IndexSettings:
    """The settings of the user's own pip: its environment variables, then its configuration files."""
    variables = dict(os.environ if environment is None else environment)
    settings = _pip_settings(variables)

    def value(key: str) -> str | None:
        named = variables.get("PIP_" + key.upper().replace("-", "_"))
        return named or settings.get(f"install.{key}") or settings.get(f"global.{key}") or None

    if (value("no-index") or "").lower() in ("1", "true", "yes", "on"):
        raise UnavailableError("pip is configured with no-index: unset it, or give the unpacked source as path:DIR")
    first = value("index-url") or STANDARD_INDEX
    certificates = value("cert") or next(
        (variables[k] for k in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE") if variables.get(k)),
        None,
    )
    return IndexSettings(
        indexes=tuple(dict.fromkeys([first, *(value("extra-index-url") or "").split()])),
        certificates=certificates,
        proxy=value("proxy"),
        timeout=float(value("timeout") or value("default-timeout") or 60),
    )


def _pip_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """What `pip config list` prints, as a mapping; empty where there is no pip."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    result = subprocess.run(command, env=dict(variables), capture_output=True, text=True, check=False)
    found = {}
    for line in result.stdout.splitlines():
        key, equals, quoted = line.partition("=")
        if equals:
            try:
                found[key] = str(ast.literal_eval(quoted))
            except (ValueError, SyntaxError):
                continue
    return found


def find_source_archive(name: str, version: str, settings: IndexSettings) -> SourceArchive:
    """The source archive of `name` at exactly `version`, from the first index that has one."""
    wanted, problems, seen = Version(version), [], []
    with _client(settings) as client:
        for index in settings.indexes:
            try:
                listed = _listing(client, index, canonicalize_name(name))
            except UnavailableError as error:
                problems.append(str(error))
                continue
            seen += [file.filename for file in listed]
            matches = [file for file in listed if _version(file.filename) == wanted]
            if matches:
                return min(matches, key=lambda file: (not file.filename.endswith(".tar.gz"), file.filename))
    if problems:  # the one that cannot be read may have it
        raise UnavailableError("; ".join(problems))
    versions = sorted({v for v in map(_version, seen) if v is not None})
    newest = ", ".join(str(v) for v in versions[-5:]) or "none"
    raise InputError(f"pypi:{name}=={version}: the index has no source archive of it; newest with one: {newest}")


def _version(filename: str) -> Version | None:
    try:
        return parse_sdist_filename(filename)[1]
    except InvalidSdistFilename:
        return None


def _listing(client: httpx.Client, index: str, name: str) -> list[SourceArchive]:
    import httpx

    page = f"{index.rstrip('/')}/{name}/"
    if urlsplit(page).scheme == "file":
        path = Path(url2pathname(urlsplit(page).path)) / "index.html"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return list(_html_files(text, path.as_uri()))
    try:
        response = client.get(page, headers={"Accept": _ACCEPT})
        if response.status_code == 404:
            return []
        response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnavailableError(f"{_shown(index)}: the package index cannot be read: {_shown(str(error))}") from None
    if "json" in response.headers.get("content-type", ""):
        return list(_json_files(response, page))
    return list(_html_files(response.text, str(response.url)))


def _json_files(response: httpx.Response, page: str) -> Iterator[SourceArchive]:
    try:
        for file in response.json()["files"]:
            address = urljoin(str(response.url), file["url"])
            yield SourceArchive(str(file["filename"]), address, str(file["hashes"].get("sha256", "")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnavailableError(f"{_shown(page)}: not an answer of a package index: {error}") from None


class _Anchors(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        target = dict(attrs).get("href")
        if tag == "a" and target:
            self.links.append(target)


def _html_files(text: str, page: str) -> Iterator[SourceArchive]:
    parser = _Anchors()
    parser.feed(text)
    for link in parser.links:
        address, fragment = urldefrag(urljoin(page, link))
        sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
        yield SourceArchive(unquote(urlsplit(address).path.rsplit("/", 1)[-1]), address, sha256)


def _client(settings: IndexSettings) -> httpx.Client:
    import httpx

    context = ssl.create_default_context()
    chosen = settings.certificates
    if chosen is None:
        import certifi

        chosen = certifi.where()
    try:
        context.load_verify_locations(**{"capath" if Path(chosen).is_dir() else "cafile": chosen})
    except OSError as error:
        raise UnavailableError(f"{chosen}: the certificates pip is configured with cannot be read: {error}") from None
    return httpx.Client(
        timeout=settings.timeout,
        follow_redirects=True,
        proxy=settings.proxy,
        verify=context,
        headers={"User-Agent": "codemill"},
    )


def download(archive: SourceArchive, folder: Path, settings: IndexSettings, limit: int) -> Path:
    """Fetch an archive of at most `limit` bytes into `folder`, resuming an earlier try; check its hash."""
    if not archive.sha256:
        raise IntegrityError(f"{archive.filename}: the index gives no SHA-256 for it; use one that does, or path:DIR")
    target = folder / f"{archive.sha256[:16]}-{archive.filename.replace('/', '_')}"
    part = target.with_name(target.name + ".part")
    with locked(target.with_name(target.name + ".lock")):
        if target.exists():
            return target
        resumed = part.exists() and part.stat().st_size > 0
        _transfer(archive, part, settings, limit)
        if _sha256(part) != archive.sha256 and resumed:
            part.unlink()  # the earlier try may have left anything: once more from the start
            _transfer(archive, part, settings, limit)
        found = _sha256(part)
        if found != archive.sha256:
            part.unlink()
            raise IntegrityError(f"{archive.filename}: SHA-256 {found}, but the index says {archive.sha256}; try again")
        part.replace(target)
    return target


def _transfer(archive: SourceArchive, part: Path, settings: IndexSettings, limit: int) -> None:
    """Append what is missing of an archive to `part`."""
    import httpx

    if urlsplit(archive.url).scheme == "file":
        path = Path(url2pathname(urlsplit(archive.url).path))
        if not path.is_file() or path.stat().st_size > limit:
            raise UnavailableError(f"{path}: not there, or larger than {limit} bytes")
        with path.open("rb") as handle:
            _append(
                part,
                iter(lambda: handle.read(BLOCK), b""),
                "wb",
                Progress(archive.filename, unit="bytes"),
                limit,
            )
        return
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with _client(settings) as client, client.stream("GET", archive.url, headers=headers) as response:
            if response.status_code == 416:  # nothing after what we have: the hash will tell
                return
            response.raise_for_status()
            go_on = response.status_code == 206
            length = response.headers.get("content-length", "")
            total = (have if go_on else 0) + int(length) if length.isdigit() else None
            progress = Progress(archive.filename, total=total, unit="bytes")
            _append(part, response.iter_bytes(), "ab" if go_on else "wb", progress, limit)
    except httpx.HTTPError as error:
        message = _shown(str(error)) or type(error).__name__
        raise UnavailableError(f"{archive.filename}: download failed: {message}; run it again to go on") from None


def _append(part: Path, blocks: Iterator[bytes], mode: str, progress: Progress, limit: int) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open(mode) as out, progress:
        progress.advance(out.tell())
        for block in blocks:
            out.write(block)
            progress.advance(len(block))
            if out.tell() > limit:
                raise InputError(f"{part.name}: larger than {limit} bytes")


def _sha256(path: Path) -> str:
    if not path.exists():
        return "of nothing"
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _shown(text: str) -> str:
    """An address or message without the user name and password that an index address may carry."""
    words: list[Any] = []
    for word in text.split(" "):
        parts = urlsplit(word) if "://" in word and "@" in word else None
        words.append(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts else word)
    return " ".join(words)
