"""Git repositories whose content, configuration and transport are hostile: objects are read, nothing runs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from corpus_support import PROGRAM, fill, serve

from codemill.core.errors import InputError, UnavailableError
from codemill.corpus.git_source import collect_remote
from codemill.corpus.snapshot import Collector, Snapshot
from codemill.corpus.sources import fetch, resolve

IDENTITY = {
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null",
}  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **IDENTITY}
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "repo", {"a.py": PROGRAM, "deep/b.py": "b = 1\r\n", "tool.sh": "#!/bin/sh\n"})
    (folder / "tool.sh").chmod(0o755)
    git(folder, "init", "--quiet", "--initial-branch=main")
    commit(folder)
    return folder


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in snapshot.files()}


def test_a_commit_is_read_byte_for_byte_and_uncommitted_changes_are_not(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    (repository / "a.py").write_text("changed = 1\n")
    (repository / "new.py").write_text("new = 1\n")
    snapshot = fetch(f"git:{repository}")
    assert snapshot.revision == first
    wanted = {"a.py": PROGRAM.encode(), "deep/b.py": b"b = 1\r\n", "tool.sh": b"#!/bin/sh\n"}
    assert contents(snapshot) == wanted
    assert {file.stat().st_mode & 0o777 for _, file in snapshot.files()} == {0o644}


def test_revisions(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "tag", "-a", "v1", "-m", "x")
    (repository / "a.py").write_text("second = 2\n")
    second = commit(repository)
    for revision, wanted in [
        ("", second),
        ("@v1", first),
        ("@main", second),
        ("@main~1", first),
        (f"@{first[:9]}", first),
    ]:
        assert resolve(f"git:{repository}{revision}") == wanted
    with pytest.raises(InputError, match="no commit 'nope'"):
        resolve(f"git:{repository}@nope")


def test_links_submodules_and_strange_names_are_skipped_with_a_reason(repository: Path) -> None:
    (repository / "link.py").symlink_to("/etc/passwd")
    (repository / "two\nlines.py").write_text("x")
    Path(os.fsdecode(os.fsencode(repository) + b"/bad\xff.py")).write_text("x")
    git(repository, "add", "--all")
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},sub")
    git(repository, "commit", "--quiet", "-m", "x")
    snapshot = fetch(f"git:{repository}")
    assert set(contents(snapshot)) == {"a.py", "deep/b.py", "tool.sh"}
    assert {skipped.path: skipped.reason for skipped in snapshot.skipped} == {
        "link.py": "symbolic link",
        "sub": "submodule",
        "two\\nlines.py": "unprintable character in the file name",
        "bad\\udcff.py": "file name is not UTF-8",
    }


def test_nothing_that_the_repository_names_is_run(repository: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    run = f"touch {witness}; cat"
    fill(repository, {".gitattributes": "*.py filter=evil diff=evil export-ignore ident\n", "id.py": "# $Id$\n"})
    commit(repository)
    for key in (
        "filter.evil.smudge",
        "filter.evil.clean",
        "filter.evil.process",
        "diff.evil.textconv",
        "core.fsmonitor",
    ):
        git(repository, "config", key, run)
    for key in ("core.pager", "core.sshCommand", "core.editor", "alias.cat-file", "pager.ls-tree", "credential.helper"):
        git(repository, "config", key, f"!{run}")
    for hook in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        (repository / ".git/hooks").mkdir(exist_ok=True)
        (repository / ".git/hooks" / hook).write_text(f"#!/bin/sh\n{run}\n")
        (repository / ".git/hooks" / hook).chmod(0o755)
    snapshot = fetch(f"git:{repository}")
    assert contents(snapshot)["id.py"] == b"# $Id$\n"
    assert not witness.exists()


def test_the_environment_cannot_point_git_elsewhere(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = fill(tmp_path / "other", {"other.py": "1"})
    git(other, "init", "--quiet")
    commit(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git/objects"))
    monkeypatch.delenv("GIT_DIR")
    wanted = set(contents(fetch(f"git:{repository}")))
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert wanted == set(contents(fetch(f"git:{repository}@main"))) == {"a.py", "deep/b.py", "tool.sh"}


def test_folders_that_are_no_repository(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(InputError, match="not the top folder of a git repository"):
        fetch(f"git:{tmp_path}/plain")
    with pytest.raises(InputError, match="not the top folder"):
        fetch(f"git:{repository}/deep")
    with pytest.raises(InputError, match="is not a folder"):
        fetch(f"git:{tmp_path}/missing")


def test_a_missing_object_is_an_error_and_git_does_not_go_and_get_it(repository: Path, tmp_path: Path) -> None:
    identity = git(repository, "rev-parse", "HEAD:a.py")
    (repository / ".git/objects" / identity[:2] / identity[2:]).unlink()
    git(repository, "config", "core.repositoryFormatVersion", "1")
    git(repository, "config", "extensions.partialClone", "origin")
    git(repository, "config", "remote.origin.promisor", "true")
    git(repository, "config", "protocol.allow", "always")
    git(repository, "config", "remote.origin.url", f"ext::touch {tmp_path}/witness")
    with pytest.raises(InputError, match="git fsck"):
        fetch(f"git:{repository}")
    assert not (tmp_path / "witness").exists()
    git_as_usual = subprocess.run(["git", "cat-file", "-p", identity], cwd=repository, check=False, capture_output=True)
    assert git_as_usual.returncode != 0
    assert (tmp_path / "witness").exists()  # so the trap was a real one


@pytest.fixture
def plain_server(repository: Path, tmp_path: Path) -> Iterator[str]:
    """The repository as plain files over HTTP: the server that cannot hand out a single commit."""
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "served.git")
    git(tmp_path / "served.git", "update-server-info")

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with serve(Files) as address:
        yield f"{address}/served.git"


def test_a_remote_repository_over_http(plain_server: str, repository: Path, cache: Path) -> None:
    snapshot = fetch(f"git:{plain_server}@main")
    assert snapshot.name == "served"
    assert snapshot.revision == git(repository, "rev-parse", "HEAD")
    assert contents(snapshot) == contents(fetch(f"git:{repository}"))
    assert [path for path in (cache / "sources").iterdir() if path.name.startswith(".git-")] == []
    with pytest.raises(InputError, match="no branch or tag 'nope'"):
        fetch(f"git:{plain_server}@nope")


def test_a_remote_branch_is_looked_up_once_until_refreshed(plain_server: str, repository: Path, tmp_path: Path) -> None:
    first = resolve(f"git:{plain_server}")
    (repository / "a.py").write_text("second = 2\n")
    second = commit(repository)
    git(tmp_path / "served.git", "fetch", "--quiet", str(repository), "+main:main")
    git(tmp_path / "served.git", "update-server-info")
    assert resolve(f"git:{plain_server}") == first
    assert resolve(f"git:{plain_server}", refresh=True) == second


def test_a_single_commit_from_a_git_server(repository: Path, tmp_path: Path) -> None:
    command = ["git", "daemon", "--export-all", f"--base-path={tmp_path}", "--listen=127.0.0.1", "--port=19418"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            collector = Collector(None, "test")
            head = git(repository, "rev-parse", "HEAD")
            for attempt in range(50):
                try:
                    collect_remote("git://127.0.0.1:19418/repo", head, collector, tmp_path)
                    break
                except UnavailableError:
                    if server.poll() is not None or attempt == 49:
                        pytest.skip("git daemon does not run on this machine")
                    time.sleep(0.1)
            assert collector.files == 3
        finally:
            server.terminate()


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="git cannot read it"):
        fetch("git:http://127.0.0.1:9/repo.git")
