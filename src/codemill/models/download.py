"""Fetching one file over HTTP: resumable after a kill, verified, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from codemill.core.artifact import file_sha256
from codemill.core.errors import IntegrityError, UnavailableError
from codemill.core.progress import Progress

if TYPE_CHECKING:
    import httpx

CHUNK = 1 << 20
CONNECT_SECONDS = 8.0
READ_SECONDS = 60.0
ATTEMPTS = 5  # in a row without a new byte
PAUSE_SECONDS = 1.0  # before the second attempt, doubled for each further one


def download(
    url: str,
    target: Path,
    *,
    title: str,
    size: int | None = None,
    sha256: str | None = None,
    progress: bool = True,
) -> None:
    """Fetch `url` into `target`, going on where `target.part` ends, and verify it before it gets its name.

    Raises `UnavailableError` when the server cannot be reached or refuses, `IntegrityError` (and deletes the bytes)
    when they are not the expected ones.
    """
    part = target.with_name(target.name + ".part")
    resumed = part.exists() and part.stat().st_size > 0
    _fetch(url, part, title, size, progress)
    try:
        verify(part, size=size, sha256=sha256, origin=url)
    except IntegrityError:
        if not resumed:
            raise
        _fetch(
            url, part, title, size, progress
        )  # the first half may have been of another file: once more, whole
        verify(part, size=size, sha256=sha256, origin=url)
    os.replace(part, target)


def verify(path: Path, *, size: int | None, sha256: str | None, origin: str) -> None:
    """Compare a file with what is expected of it; a file that differs is deleted. Raises `IntegrityError`."""
    actual_size = path.stat().st_size
    actual = file_sha256(path) if sha256 is not None and (size is None or size == actual_size) else sha256
    if size in (None, actual_size) and actual == sha256:
        return
    path.unlink()
    if size is not None and size != actual_size:
        raise IntegrityError(
            f"{origin}: expected {size:,} bytes, got {actual_size:,}; the file was deleted, try again"
        )
    raise IntegrityError(
        f"{origin}: SHA-256 expected {sha256}, got {actual}; the file was deleted. "
        "If this happens again, the source does not serve the published file"
    )


def _fetch(url: str, part: Path, title: str, size: int | None, progress: bool) -> None:
    """Append to `part` until the server says that it is whole; new attempts as long as there is progress."""
    import httpx

    failures = 0
    timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    with httpx.Client(timeout=timeout, follow_redirects=True, verify=tls_context()) as client:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                return _attempt(client, url, part, title, size, progress)
            except httpx.ConnectError as error:
                if not before:
                    raise UnavailableError(f"{_host(url)}: cannot be reached ({_reason(error)})") from None
                problem: Exception = error
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = error
            except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
                raise UnavailableError(f"{url}: {_reason(error)}") from None
            failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= ATTEMPTS or (failures and not before):
                raise UnavailableError(
                    f"{_host(url)}: the download broke off ({_reason(problem)}); run it again to go on"
                )
            time.sleep(PAUSE_SECONDS * 2**failures)


def _attempt(
    client: httpx.Client, url: str, part: Path, title: str, size: int | None, progress: bool
) -> None:
    start = part.stat().st_size if part.exists() else 0
    if size is not None and start >= size:
        return  # whole, or too long: the hash decides
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with client.stream("GET", url, headers=headers) as response:
        if (
            response.status_code == 416
        ):  # nothing after what is there: whole, or of another file: the hash decides
            return
        if response.status_code not in (200, 206):
            raise UnavailableError(f"{_host(url)}: answered {response.status_code} {response.reason_phrase}")
        if response.status_code == 206 and not response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        ):
            raise UnavailableError(f"{_host(url)}: answered with another range than was asked for")
        if response.status_code == 200:
            start = 0
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdigit() else size
        if size is not None and total is not None and total != size:
            part.unlink(missing_ok=True)
            raise IntegrityError(f"{_host(url)}: offers {total:,} bytes where {size:,} are expected")
        _store(response, part, start, total, title, progress)


def _store(
    response: httpx.Response, part: Path, start: int, total: int | None, title: str, progress: bool
) -> None:
    with part.open("r+b" if part.exists() else "wb") as out, _bar(title, total, progress) as bar:
        out.seek(start)
        out.truncate()
        if bar is not None:
            bar.advance(start)
        written = start
        for chunk in response.iter_raw(CHUNK):
            written += len(chunk)
            if total is not None and written > total:
                raise IntegrityError(f"{response.url.host}: sends more than the {total:,} bytes it announced")
            out.write(chunk)
            if bar is not None:
                bar.advance(len(chunk))


@contextmanager
def _bar(title: str, total: int | None, progress: bool) -> Iterator[Progress | None]:
    if not progress:
        yield None
        return
    with Progress(title, total, "bytes") as bar:
        yield bar


def tls_context() -> ssl.SSLContext | bool:
    """Trust what the user's tools trust: a bundle named for pip, requests, OpenSSL or curl, else the usual one."""
    for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        bundle = os.environ.get(name)
        if bundle and Path(bundle).exists():
            try:
                folder = Path(bundle).is_dir()
                return ssl.create_default_context(
                    cafile=None if folder else bundle, capath=bundle if folder else None
                )
            except (ssl.SSLError, OSError) as error:
                raise UnavailableError(
                    f"{name}={bundle}: not a usable certificate bundle: {_reason(error)}"
                ) from None
    return True


@contextmanager
def disk_errors(folder: Path, needed: int) -> Iterator[None]:
    """Turn a full disk into an error that says how much is missing where. `needed` in bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_space(folder, needed) from None


def no_space(folder: Path, needed: int) -> UnavailableError:
    free = shutil.disk_usage(folder).free
    return UnavailableError(
        f"{folder}: the disk is full: about {needed:,} bytes are needed, {free:,} are free; "
        "make room or set CODEMILL_CACHE to another disk (finished parts of the download are kept)"
    )


def _host(url: str) -> str:
    import httpx

    return httpx.URL(url).host or url


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
