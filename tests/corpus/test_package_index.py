"""The package index: the user's own pip settings, archives that are checked, and never a build script run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from corpus_support import MIT, PROGRAM, serve, tar_member, write_tar

from codemill.core.errors import InputError, IntegrityError, UnavailableError
from codemill.corpus.package_index import STANDARD_INDEX, download, find_source_archive, index_settings
from codemill.corpus.sources import fetch

VARIABLES = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_CERT", "PIP_PROXY", "REQUESTS_CA_BUNDLE")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


class Index:
    """What a made-up index serves; `asked` remembers each request with its Range."""

    def __init__(self, folder: Path) -> None:
        program = f"import pathlib\npathlib.Path({str(folder / 'witness')!r}).touch()\n"
        members = [tar_member(f"demo-1.0/{name}", text.encode()) for name, text in _demo(program).items()]
        self.archive = write_tar(folder / "demo-1.0.tar.gz", members).read_bytes()
        self.sha256 = hashlib.sha256(self.archive).hexdigest()
        self.served = self.archive
        self.json, self.ranges, self.cut = True, True, 0
        self.asked: list[tuple[str, str | None]] = []

    def listing(self) -> tuple[str, str]:
        names = ("demo-0.9.tar.gz", "demo-1.0.tar.gz", "demo-1.0-py3-none-any.whl", "demo-1.0.zip", "odd.txt")
        if self.json:
            files = [{"filename": n, "url": f"../../files/{n}", "hashes": {"sha256": self.sha256}} for n in names]
            return "application/vnd.pypi.simple.v1+json", json.dumps({"files": files})
        links = "".join(f'<a href="../../files/{n}#sha256={self.sha256}">x</a>' for n in names)
        return "text/html", f"<html><body>{links}</body></html>"


def _demo(setup: str) -> dict[str, str]:
    return {"setup.py": setup, "demo.py": PROGRAM, "LICENSE": MIT, "PKG-INFO": "Name: demo\n"}


def _handler(index: Index) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.asked.append((self.path, self.headers.get("Range")))
            if self.path == "/simple/demo/":
                kind, text = index.listing()
                self._answer(200, text.encode(), kind)
            elif self.path.startswith("/files/demo-1.0.tar.gz"):
                self._file()
            else:
                self._answer(404, b"")

        def _file(self) -> None:
            start = self.headers.get("Range") if index.ranges else None
            if start is None:
                self._answer(200, index.served)
            else:
                self._answer(206, index.served[int(start.removeprefix("bytes=").rstrip("-")) :])

        def _answer(self, status: int, body: bytes, kind: str = "application/octet-stream") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: index.cut] if index.cut and status == 200 and "octet" in kind else body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    made = Index(tmp_path)
    with serve(_handler(made)) as address:
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
        monkeypatch.setattr("codemill.corpus.package_index._pip_settings", lambda _: {})  # starting pip takes a second
        yield made


@pytest.mark.parametrize("as_json", [True, False])
def test_a_release_is_fetched_unpacked_and_not_run(index: Index, tmp_path: Path, as_json: bool) -> None:
    index.json = as_json
    snapshot = fetch("pypi:demo==1.0")
    assert [path for path, _ in snapshot.files()] == ["LICENSE", "PKG-INFO", "demo.py", "setup.py"]
    assert not (tmp_path / "witness").exists()
    asked = len(index.asked)
    assert fetch("pypi:demo==1.0") == snapshot
    assert len(index.asked) == asked  # the second one is offline


def test_a_release_that_is_not_there_says_which_are(index: Index) -> None:
    with pytest.raises(InputError, match=r"newest with one: 0\.9, 1\.0"):
        fetch("pypi:demo==2.0")
    with pytest.raises(InputError, match="newest with one: none"):
        fetch("pypi:other==1.0")


def test_bytes_that_are_not_what_the_index_says_are_refused(index: Index, cache: Path) -> None:
    index.served = index.archive[:-1] + b"x"
    with pytest.raises(IntegrityError, match="SHA-256"):
        fetch("pypi:demo==1.0")
    assert [path.name for path in (cache / "sources").iterdir() if path.is_dir()] == ["downloads"]
    index.served = index.archive
    assert len(list(fetch("pypi:demo==1.0").files())) == 4


def test_an_interrupted_download_goes_on_where_it_stopped(index: Index) -> None:
    index.cut = 100
    with pytest.raises(UnavailableError, match="run it again to go on"):
        fetch("pypi:demo==1.0")
    index.cut = 0
    fetch("pypi:demo==1.0")
    assert index.asked[-1] == ("/files/demo-1.0.tar.gz", "bytes=100-")


def test_a_server_without_ranges_starts_again(index: Index) -> None:
    index.cut = 100
    with pytest.raises(UnavailableError):
        fetch("pypi:demo==1.0")
    index.cut, index.ranges = 0, False
    assert len(list(fetch("pypi:demo==1.0").files())) == 4


def test_a_spoilt_earlier_try_is_thrown_away(index: Index, tmp_path: Path) -> None:
    settings = index_settings()
    found = find_source_archive("demo", "1.0", settings)
    part = tmp_path / "d" / f"{found.sha256[:16]}-{found.filename}.part"
    part.parent.mkdir()
    part.write_bytes(b"something else")
    assert download(found, part.parent, settings, 1 << 20).read_bytes() == index.archive


def test_an_archive_past_the_limit_is_refused_while_it_comes(index: Index, tmp_path: Path) -> None:
    settings = index_settings()
    found = find_source_archive("demo", "1.0", settings)
    with pytest.raises(InputError, match="larger than 50 bytes"):
        download(found, tmp_path / "d", settings, 50)


def test_an_index_without_hashes_is_not_trusted(index: Index) -> None:
    index.sha256 = ""
    with pytest.raises(IntegrityError, match="no SHA-256"):
        fetch("pypi:demo==1.0")


def test_an_extra_index_is_asked_second(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    (real,) = index_settings().indexes
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", real)
    monkeypatch.setenv("PIP_INDEX_URL", real.replace("/simple", "/elsewhere"))
    assert len(list(fetch("pypi:demo==1.0").files())) == 4
    assert index.asked[0][0] == "/elsewhere/demo/"


def test_an_index_of_files(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "mirror" / "demo" / "index.html"
    page.parent.mkdir(parents=True)
    (page.parent / "demo-1.0.tar.gz").write_bytes(index.archive)
    page.write_text(f'<a href="demo-1.0.tar.gz#sha256={index.sha256}">demo</a>')
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "mirror").as_uri())
    assert len(list(fetch("pypi:demo==1.0").files())) == 4
    assert index.asked == []


def test_an_index_that_cannot_be_read_is_not_an_index_without_it(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/simple")
    assert len(list(fetch("pypi:demo==1.0").files())) == 4
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9"):
        fetch("pypi:demo==2.0")


def test_a_password_in_the_index_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9") as caught:
        fetch("pypi:demo==1.0")
    assert "secret" not in str(caught.value)


def test_settings_of_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert index_settings().indexes == (STANDARD_INDEX,)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://one/simple\ncert = /a.pem\ntimeout = 7\nextra-index-url =\n  https://two\n  https://three\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    settings = index_settings()
    assert settings.indexes == ("https://one/simple", "https://two", "https://three")
    assert settings.certificates == "/a.pem"
    monkeypatch.setenv("PIP_INDEX_URL", "https://four")
    assert index_settings().indexes[0] == "https://four"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UnavailableError, match="no-index"):
        index_settings()


def test_missing_certificates_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", "/missing.pem")
    with pytest.raises(UnavailableError, match=r"/missing\.pem"):
        fetch("pypi:demo==1.0")
