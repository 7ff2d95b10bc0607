"""Sources as words, folders on disk, and the cache of snapshots."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
from corpus_support import PROGRAM, fill

from codemill.core.errors import ConfigError, InputError, UnavailableError
from codemill.corpus.folders import collect_folder
from codemill.corpus.snapshot import Collector, Limits
from codemill.corpus.sources import fetch, parse_source, resolve


@pytest.mark.parametrize(
    ("text", "scheme", "location", "revision", "name"),
    [
        ("path:some/folder", "path", "some/folder", "", "folder"),
        ("pypi:More_Itertools==10.8.0", "pypi", "more-itertools", "10.8.0", "more-itertools"),
        ("pypi:a == 1.0", "pypi", "a", "1.0", "a"),
        ("git:https://host/team/repo.git", "git", "https://host/team/repo.git", "", "repo"),
        ("git:https://host/team/repo.git@v1.0", "git", "https://host/team/repo.git", "v1.0", "repo"),
        ("git:git@host:team/repo", "git", "git@host:team/repo", "", "repo"),
        ("git:git@host:team/repo@main", "git", "git@host:team/repo", "main", "repo"),
        ("git:ssh://git@host/repo.git@feature/x", "git", "ssh://git@host/repo.git", "feature/x", "repo"),
        ("git:file:///srv/repo@v2", "git", "/srv/repo", "v2", "repo"),
        ("git:some/folder@abc", "git", "some/folder", "abc", "folder"),
    ],
)
def test_sources_are_read(text: str, scheme: str, location: str, revision: str, name: str) -> None:
    source = parse_source(text)
    assert (source.scheme, source.location, source.revision, source.name) == (scheme, location, revision, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some/folder", "path:DIR"),
        ("path:", "path:DIR"),
        ("gti:x", "did you mean 'git'"),
        ("path:a\nb", "control character"),
        ("pypi:toolz", "needs its version"),
        ("pypi:toolz==", "needs its version"),
        ("pypi:toolz==1.*", "not one exact version"),
        ("pypi:toolz[extra]==1.0", "not the name of a project"),
        ("pypi:../../etc==1.0", "not the name of a project"),
        ("git:-oProxyCommand=x", "not a repository"),
        ("git:ext::sh -c x", "not a repository"),
        ("git:repo@-x", "not a revision"),
        ("git:https://host/repo@", "not a revision"),
        ("git:ftp://host/repo", "protocol 'ftp'"),
        ("git:https://user:secret@host/repo", "credential helper"),
    ],
)
def test_words_that_are_no_source_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_source(text)
    assert "secret" not in str(caught.value)


def test_a_folder_is_collected_without_following_anything(tmp_path: Path) -> None:
    folder = fill(tmp_path / "p", {"a.py": PROGRAM, "deep/b.py": "b = 1\n", ".git/config": "x", "venv/c.py": "c"})
    (folder / "root").symlink_to("/")
    (folder / "loop").symlink_to(".")
    (folder / "password.py").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.py")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(folder)  # a socket's address is short
    listener.bind("socket.py")
    os.chdir(here)
    (folder / "two\nlines.py").write_text("x")
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.py")).write_text("x")
    snapshot = fetch(f"path:{folder}")
    listener.close()
    assert [path for path, _ in snapshot.files()] == ["a.py", "deep/b.py"]
    assert {skipped.path: skipped.reason for skipped in snapshot.skipped} == {
        ".git": "folder .git is not source",
        "venv": "folder venv is not source",
        "root": "symbolic link",
        "loop": "symbolic link",
        "password.py": "symbolic link",
        "pipe.py": "not a regular file",
        "socket.py": "not a regular file",
        "two\\nlines.py": "unprintable character in the file name",
        "bad\\udcff.py": "file name is not UTF-8",
    }


@pytest.mark.parametrize("trap", ["link", "pipe"])
def test_a_file_swapped_after_the_look_at_it_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    folder = fill(tmp_path / "p", {"a.py": PROGRAM, "b.py": PROGRAM})
    real = os.stat

    def look_then_swap(path: str, **options: object) -> os.stat_result:
        found = real(path, **options)  # type: ignore[arg-type]
        if path == "b.py":
            (folder / "b.py").unlink()
            (folder / "b.py").symlink_to("/etc/passwd") if trap == "link" else os.mkfifo(folder / "b.py")
        return found

    root = tmp_path / "files"
    root.mkdir()
    collector = Collector(root, "test")
    with monkeypatch.context() as patch:
        patch.setattr("codemill.corpus.folders.os.stat", look_then_swap)
        collect_folder(folder, collector)
    assert [path.name for path in root.iterdir()] == ["a.py"]
    assert [skipped.path for skipped in collector.skipped] == ["b.py"]


def test_the_order_in_which_files_come_does_not_change_the_revision() -> None:
    digests = []
    for order in (("a.py", "b.py"), ("b.py", "a.py")):
        collector = Collector(None, "test")
        for name in order:
            collector.store(name, [name.encode()])
        digests.append(collector.digest())
    assert digests[0] == digests[1]


def test_the_revision_of_a_folder_is_that_of_its_content(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", {"a.py": PROGRAM, "b/c.py": "1\n"})
    two = fill(tmp_path / "two", {"b/c.py": "1\n", "a.py": PROGRAM})
    assert resolve(f"path:{one}") == resolve(f"path:{two}")
    (two / "b/c.py").write_text("2\n")
    assert resolve(f"path:{one}") != resolve(f"path:{two}")
    (one / "b/c.py").write_text("2\n")
    (one / "d.py").symlink_to("a.py")
    assert resolve(f"path:{one}") != resolve(f"path:{two}")


def test_a_snapshot_stays_when_the_folder_changes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "p", {"a.py": "1\n"})
    before = fetch(f"path:{folder}")
    (folder / "a.py").write_text("2\n")
    after = fetch(f"path:{folder}")
    assert before.revision != after.revision
    assert [(b.root / "a.py").read_text() for b in (before, after)] == ["1\n", "2\n"]


def test_a_damaged_snapshot_is_made_again(tmp_path: Path) -> None:
    source = f"path:{fill(tmp_path / 'p', {'z.py': '1', 'a/b.py': '2'})}"
    first = fetch(source)
    (first.root / "a/b.py").unlink()
    assert [path for path, _ in fetch(source).files()] == ["a/b.py", "z.py"]


def test_a_second_fetch_reads_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"path:{fill(tmp_path / 'p', {'a.py': '1'})}"
    first = fetch(source)

    def refuse(*_: object) -> None:
        raise AssertionError("collected again")

    monkeypatch.setattr("codemill.corpus.sources._collect", refuse)
    assert fetch(source) == first


def test_limits_are_part_of_what_is_cached(tmp_path: Path) -> None:
    source = f"path:{fill(tmp_path / 'p', {'a.py': 'x' * 100, 'b.py': 'x'})}"
    assert len(list(fetch(source).files())) == 2
    small = fetch(source, limits=Limits(file_bytes=10))
    assert [path for path, _ in small.files()] == ["b.py"]
    assert small.skipped[0].reason == "larger than 10 bytes"


def test_a_full_disk_is_not_taken_for_an_unreadable_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"path:{fill(tmp_path / 'p', {'a.py': '1'})}"

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("codemill.corpus.snapshot.os.write", full)
        with pytest.raises(UnavailableError, match="No space left"):
            fetch(source)
    assert [path.name for path in (cache / "sources").iterdir() if path.is_dir()] == []
    assert len(list(fetch(source).files())) == 1


def test_a_folder_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"path:{fill(tmp_path / 'p', {'a.py': '1'})}"
    monkeypatch.setattr("codemill.corpus.sources.resolve", lambda *_, **__: "another revision")
    with pytest.raises(InputError, match="changed while it was read"):
        fetch(source)


def test_missing_and_unreadable_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        fetch(f"path:{tmp_path}/missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a folder"):
        fetch(f"path:{tmp_path}/file")


def test_what_an_ordinary_user_may_not_read_is_recorded(tmp_path: Path) -> None:
    folder = fill(tmp_path / "p", {"a.py": "1", "b.py": "2", "c/d.py": "3"})
    (folder / "b.py").chmod(0)
    (folder / "c").chmod(0)
    if os.access(folder / "b.py", os.R_OK):
        pytest.skip("root reads everything")
    try:
        assert {s.path: s.reason for s in fetch(f"path:{folder}").skipped} == {
            "b.py": "cannot be read: Permission denied",
            "c": "cannot be read: Permission denied",
        }
        folder.chmod(0)
        with pytest.raises(InputError, match="Permission denied"):
            fetch(f"path:{folder}")
    finally:
        folder.chmod(0o755)
        (folder / "c").chmod(0o755)


@pytest.mark.network
def test_a_real_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = fetch("pypi:toolz==1.0.0")
    assert (snapshot.name, snapshot.revision, snapshot.skipped) == ("toolz", "1.0.0", ())
    paths = [path for path, _ in snapshot.files()]
    assert len(paths) == 42
    assert {"setup.py", "toolz/itertoolz.py", "toolz/tests/test_itertoolz.py"} <= set(paths)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "http://127.0.0.1:9/more")
    assert fetch("pypi:toolz==1.0.0") == snapshot  # offline from now on
    shutil.rmtree(snapshot.root)
    with pytest.raises(UnavailableError, match="cannot be read"):
        fetch("pypi:toolz==1.0.0")
