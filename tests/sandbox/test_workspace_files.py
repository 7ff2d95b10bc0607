"""Files of a workspace as the host reads and writes them, whatever programs plant there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from sandbox_support import wait_until
from workspace_support import CLOSED, SMALL, check_diff, host_folder, picture, python

from codemill.core.errors import InputError
from codemill.sandbox import OverLimitError, Workspace, folder, python_argv

# Files --------------------------------------------------------------------------------------------------------------


def test_files_are_read_written_and_deleted(ws: Workspace) -> None:
    ws.write("a/b/c.txt", "text ä\n")
    ws.write("pkg/tool.sh", "#!/bin/sh\necho changed\n")
    ws.write("fresh.sh", b"#!/bin/sh\necho fresh\n", executable=True)
    outcome = ws.run("cat a/b/c.txt; ./pkg/tool.sh; ./fresh.sh; echo more >> a/b/c.txt; mkdir a/b/d; rm fresh.sh")
    assert outcome.stdout == "text ä\nchanged\nfresh\n".encode()
    assert outcome.succeeded
    assert ws.read("a/b/c.txt") == "text ä\nmore\n".encode()
    ws.write("pkg/tool.sh", "x", executable=False)
    assert [(entry.path, entry.kind) for entry in ws.list("a/b")] == [("a/b/c.txt", "file"), ("a/b/d", "folder")]
    assert ws.list("a/b")[0].size == 13
    assert {entry.path: entry.kind for entry in ws.list()} == {
        **{"README.md": "file", "a": "folder", "docs": "link", "pkg": "folder"}
    }
    assert [entry.path for entry in ws.walk("a")] == ["a/b", "a/b/c.txt", "a/b/d"]
    assert not next(entry for entry in ws.list("pkg") if entry.path == "pkg/tool.sh").executable
    ws.delete("a")
    ws.delete("docs")
    assert {entry.path for entry in ws.list()} == {"README.md", "pkg"}
    assert ws.list("pkg/empty") == ()


@pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a\0b", "a/.", ".."])
def test_unsafe_paths_are_refused(plain_ws: Workspace, path: str) -> None:
    for action in (plain_ws.read, plain_ws.delete, lambda p: plain_ws.write(p, b"x")):
        with pytest.raises(InputError, match=r"path|repository itself"):
            action(path)


def test_missing_and_wrong_things_are_named(plain_ws: Workspace) -> None:
    for action in (plain_ws.read, plain_ws.delete, plain_ws.list, plain_ws.walk):
        with pytest.raises(InputError, match="'gone/x': is not there"):
            action("gone/x")
    with pytest.raises(InputError, match=r"'README.md/x': is no folder"):
        plain_ws.read("README.md/x")
    with pytest.raises(InputError, match=r"'pkg': is a folder"):
        plain_ws.read("pkg")
    with pytest.raises(InputError, match="a folder is there"):
        plain_ws.write("pkg", b"")
    with pytest.raises(InputError, match="folder"):
        plain_ws.write("README.md/x", b"")
    with pytest.raises(OverLimitError, match="at most 5"):
        plain_ws.read("README.md", limit=5)
    with pytest.raises(OverLimitError, match="a file may have"):
        plain_ws.write("big", b"x" * (SMALL.file_bytes + 1))
    with pytest.raises(InputError, match="too long"):
        plain_ws.write("n" * 300, b"")


@pytest.fixture(params=["openat2", "step by step"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the system call that opens a whole path safely."""
    if request.param == "openat2":
        if not folder._has_openat2():
            pytest.skip("this kernel has no openat2")
    else:
        monkeypatch.setattr(folder, "_has_openat2", lambda: False)
    return str(request.param)


PLANTED = """
import os, sys, socket
secret = sys.argv[1]
os.symlink(secret, "link"); os.symlink(os.path.dirname(secret), "up"); os.symlink("README.md", "inner")
os.mkfifo("pipe"); os.link("README.md", "hard"); os.mkdir("dir")
with open("sparse", "wb") as out: out.truncate(4 << 20)
"""


def test_what_is_planted_is_not_followed(ws: Workspace, way: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "secret").write_text("hunter2")
    python(ws, PLANTED, str(secret))
    for path, why in {
        **{"link": "symbolic link", "inner": "symbolic link", "up/secret": "symbolic link|is no folder"},
        **{"up/below/secret": "symbolic link|is no folder", "docs/tool.sh": "symbolic link|is no folder"},
        **{"pipe": "no file", "hard": "2 names", "dir": "a folder", "sparse": "at most 1000"},
    }.items():
        with pytest.raises(InputError, match=why):
            ws.read(path, limit=1000)
    for path in ("link", "pipe", "dir", "up/secret", "up/new", "up/below/secret", "up/below/new", "inner"):
        with pytest.raises(InputError, match=r"delete it first|symbolic link|is no folder"):
            ws.write(path, b"owned")
    with pytest.raises(InputError, match=r"symbolic link|is no folder"):
        ws.list("up/below")
    with pytest.raises(InputError, match=r"symbolic link|is no folder"):
        ws.delete("up/below/secret")
    for path in ("link", "up", "pipe"):
        ws.delete(path)
    ws.write("hard", b"own")
    assert ws.read("README.md") == b"one\ntwo\nthree\n"
    assert secret.read_text() == (tmp_path / "below" / "secret").read_text() == "hunter2"
    assert sorted(os.listdir(tmp_path)) == ["below", "repository", "secret"]
    assert os.listdir(tmp_path / "below") == ["secret"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of another user")
def test_files_of_another_user_are_not_read(plain_ws: Workspace, tmp_path: Path) -> None:
    """A hard link to a file of the host, should a program ever manage to make one."""
    (host_folder(plain_ws) / "codemill" / "foreign").write_text("root's")
    with pytest.raises(InputError, match="another user"):
        plain_ws.read("foreign")


NAMES = [
    b"new\nline",
    b"-rf",
    b"inv\xff\xfealid",
    b"n" * 255,
    b" blank ",
    b"quo\"te'\\",
    "ünï".encode(),
    b"$(x)",
    b"\x1b[31m",
]


def test_names_of_every_kind(ws: Workspace, source: Path) -> None:
    code = f"for name in {NAMES!r}:\n    open(name, 'wb').write(name)"
    python(ws, code)
    entries = {os.fsencode(entry.path): entry for entry in ws.list()}
    for name in NAMES:
        assert ws.read(entries[name].path) == name
        repr(entries[name]).encode()
    state = ws.snapshot()
    for name in NAMES:
        ws.delete(os.fsdecode(name))
    assert ws.changed() == ()
    ws.rollback(state)
    assert {os.fsencode(change.path) for change in ws.changed()} == set(NAMES)
    check_diff(ws, source)


def test_permissions_hide_nothing_and_stay(plain_ws: Workspace, source: Path) -> None:
    ws = plain_ws
    python(ws, CLOSED)

    def modes() -> list[int]:
        return [ws._tree.look(path).status.st_mode & 0o777 for path in ("shut", "shut/inner", "pkg", "README.md")]  # type: ignore[union-attr]

    assert ws.read("shut/inner/deep/file") == b"in the dark"
    assert ws.read("README.md") == b"one\ntwo\nthree\n"
    assert {entry.path for entry in ws.walk()} >= {"shut/inner/deep/file", "pkg/tool.sh"}
    assert modes() == [0, 0, 0o300, 0]
    state = ws.snapshot()
    assert "+in the dark" in ws.diff()
    ws.write("shut/inner/other", b"x")
    assert modes() == [0, 0, 0o300, 0]
    ws.rollback(ws.base)
    assert ws.diff() == ""
    assert picture(host_folder(ws) / "codemill") == picture(source)
    ws.rollback(state)
    assert modes() == [0, 0, 0o300, 0]
    assert ws.read("shut/inner/deep/file") == b"in the dark"
    assert os.geteuid() == 0 or ws.run(["cat", "README.md"]).exit_code == 1


DEEP = "import os, sys\nfor _ in range(int(sys.argv[1])):\n    os.mkdir(sys.argv[2]); os.chdir(sys.argv[2])\nopen('end', 'w')"


def test_folders_a_thousand_deep(plain_ws: Workspace) -> None:
    ws = plain_ws
    python(ws, DEEP, "1000", "d" * 60)
    assert len(ws.walk()) == 1000 + 7
    deepest = "/".join(["d" * 60] * 1000)
    assert ws.read(deepest + "/end") == b""
    state = ws.snapshot()
    ws.rollback(ws.base)
    assert ws.diff() == ""
    ws.rollback(state)
    assert ws.read(deepest + "/end") == b""
    ws.delete("d" * 60)
    assert ws.changed() == ()


def test_folders_too_deep_to_look_at(plain_ws: Workspace) -> None:
    assert plain_ws.run(python_argv("-c", DEEP, "3000", "d")).end == "disk"
    with pytest.raises(OverLimitError, match="deep"):
        plain_ws.walk()
    with pytest.raises(OverLimitError, match="deep"):
        plain_ws.snapshot()
    plain_ws.rollback(plain_ws.base)
    assert plain_ws.diff() == ""


SWAP = """
import os, sys
secret, folder = sys.argv[1], os.path.dirname(sys.argv[1])
def quiet(action, *arguments):
    try: action(*arguments)
    except OSError: pass
os.makedirs("there/below"); open("file", "w").write("mine")
open("there/secret", "w").write("mine"); open("there/below/secret", "w").write("mine")
open("ready", "w")
while True:
    for name, target in (("file", secret), ("there", folder)):
        quiet(os.rename, name, name + "-kept"); quiet(os.symlink, target, name)
        quiet(os.unlink, name); quiet(os.mkfifo, name); quiet(os.unlink, name); quiet(os.rename, name + "-kept", name)
"""


def test_swapping_under_the_hands_of_the_host(ws: Workspace, way: str, tmp_path: Path) -> None:
    """A program that puts a link in place of a file and of a folder, between every check and its use."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "secret").write_text("hunter2")
    runs = threading.Thread(target=ws.run, args=(python_argv("-c", SWAP, str(secret)),), kwargs={"timeout": 1.2})
    runs.start()
    assert wait_until(lambda: any(entry.path == "ready" for entry in ws.list()))
    seen: dict[bytes, int] = {}
    refused = 0
    while runs.is_alive():
        for action in (
            lambda: ws.read("file"),
            lambda: ws.read("there/secret"),
            lambda: ws.read("there/below/secret"),
            lambda: ws.write("there/secret", b"theirs"),
            lambda: ws.write("there/below/planted", b"theirs"),
            lambda: b"".join(os.fsencode(entry.path) for entry in ws.walk("there")),
        ):
            try:
                data = action() or b""
                seen[data] = seen.get(data, 0) + 1
            except InputError:
                refused += 1
    runs.join()
    assert seen.get(b"mine")
    assert refused
    assert not any(b"hunter2" in data or b"repository" in data for data in seen)
    assert secret.read_text() == (tmp_path / "below" / "secret").read_text() == "hunter2"
    assert sorted(os.listdir(tmp_path)) == ["below", "repository", "secret"]
    assert os.listdir(tmp_path / "below") == ["secret"]


def test_the_repository_itself_may_be_swapped(ws: Workspace, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    code = f"import os\nos.rename('../codemill', '../moved')\nos.symlink({str(tmp_path)!r}, '../codemill')"
    python(ws, code)
    with pytest.raises(InputError):
        ws.read("secret")
    with pytest.raises(InputError, match="roll back"):
        ws.run("true")
    ws.rollback(ws.base)
    assert ws.read("README.md").startswith(b"one")
    python(ws, "import os\nos.chmod('..', 0)\nos.chmod('.', 0)")
    assert ws.read("README.md").startswith(b"one")
    assert ws.run("cat README.md").succeeded
    python(ws, "import shutil\nshutil.rmtree('../codemill')")
    ws.rollback(ws.base)
    assert ws.run("cat README.md").succeeded
    assert secret.read_text() == "hunter2"
