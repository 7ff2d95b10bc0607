"""A repository over many steps: what commands do to it, what the host reads from it, and how it goes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sandbox_support import BUILDS, processes_with, wait_until

from codemill.core.errors import ConfigError, InputError
from codemill.sandbox import Layers, Policy, Sandbox, Workspace, folder, python_argv, snapshots
from codemill.sandbox.folder import OverLimitError

SMALL = Policy(wall_seconds=8.0, cpu_seconds=8.0, memory_bytes=256 << 20, disk_bytes=8 << 20, file_bytes=4 << 20)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "pkg" / "empty").mkdir(parents=True)
    (root / "README.md").write_text("one\ntwo\nthree\n")
    (root / "pkg" / "tool.sh").write_text("#!/bin/sh\necho tool\n")
    (root / "pkg" / "tool.sh").chmod(0o755)
    (root / "pkg" / "data.bin").write_bytes(bytes(range(256)) * 8)
    (root / "docs").symlink_to("pkg")
    os.utime(root / "README.md", ns=(1_000_000_000_000_000_007,) * 2)
    return root


@pytest.fixture
def ws(sandbox: Sandbox, source: Path) -> Iterator[Workspace]:
    with sandbox.workspace(source, policy=SMALL) as workspace:
        yield workspace


@pytest.fixture
def plain_ws(plain: Sandbox, source: Path) -> Iterator[Workspace]:
    with plain.workspace(source, policy=SMALL) as workspace:
        yield workspace


def python(ws: Workspace, code: str, *arguments: str, timeout: float | None = None) -> bytes:
    """Run a program that must end well; what it prints."""
    outcome = ws.run(python_argv("-c", code, *arguments), timeout=timeout)
    assert (outcome.end, outcome.exit_code) == ("exited", 0), outcome
    return outcome.stdout


def picture(root: Path) -> dict[str, object]:
    """All there is to know about a tree, seen from the host."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        what: object = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
        times = 0 if path.is_symlink() else status.st_mtime_ns
        found[str(path.relative_to(root))] = (what, stat.S_IMODE(status.st_mode), times)
    return found


def host_folder(ws: Workspace) -> Path:
    return ws._kept.path


# Steps -----------------------------------------------------------------------------------------------------------


def test_a_step_finds_what_the_one_before_it_left(ws: Workspace) -> None:
    assert ws.run(
        "echo four >> README.md; mkdir new; mv pkg/data.bin new/; echo note > ~/note; pwd > $TMPDIR/at"
    ).succeeded
    outcome = ws.run('cat README.md ~/note; ls new; [ "$(pwd)" = "$(cat $TMPDIR/at)" ] && ./pkg/tool.sh; ls docs')
    assert outcome.stdout == b"one\ntwo\nthree\nfour\nnote\ndata.bin\ntool\nempty\ntool.sh\n"
    assert outcome.isolation
    assert "nothing" not in outcome.isolation.values()


def test_the_repository_itself_stays_as_it_is(ws: Workspace, source: Path) -> None:
    before = picture(source)
    assert ws.run("rm -rf README.md pkg/*; echo x > x").succeeded
    ws.write("pkg/tool.sh", b"other")
    assert picture(source) == before


def test_the_copy_is_faithful(ws: Workspace, source: Path) -> None:
    assert picture(host_folder(ws) / "codemill") == picture(source)
    assert ws.left_out == ()
    assert ws.changed() == ()
    assert ws.diff() == ""


def test_what_is_not_taken_along(plain: Sandbox, source: Path) -> None:
    (source / ".git" / "refs").mkdir(parents=True)
    (source / ".git" / "config").write_text("x")
    (source / "pkg" / ".git").write_text("gitdir: /elsewhere")
    os.mkfifo(source / "pipe")
    for name, target in {"abs": "/etc/passwd", "up": "../x", "turn": "docs/../../x", "self": "."}.items():
        (source / name).symlink_to(target)
    (source / "pkg" / "up").symlink_to("../README.md")
    with plain.workspace(source) as ws:
        paths = {entry.path for entry in ws.walk()}
        assert set(ws.left_out) == {"pipe", "abs", "up", "turn"}
        assert paths == {
            *("README.md", "docs", "pkg", "pkg/data.bin", "pkg/empty", "pkg/tool.sh", "pkg/up", "self"),
        }
        assert ws.diff() == ""
    with plain.workspace(source, history=True) as ws:
        assert ws.read(".git/config") == b"x"
        assert ws.run("echo y > .git/config; git -C . status || true").end == "exited"
        assert ws.changed() == ()


def test_nothing_outlives_its_command(ws: Workspace) -> None:
    token = f"left-over-{os.getpid()}"
    code = "import os, sys, time\nif os.fork() == 0:\n    try: os.setsid()\n    except OSError: pass\n    open('started', 'w')\n    time.sleep(60)"
    python(ws, code + "\nwhile not os.path.exists('started'): time.sleep(0.01)", token)
    assert processes_with(token) == []
    assert ws.run(["ls", "started"]).stdout == b"started\n"


def test_commands_have_their_input_variables_and_times(sandbox: Sandbox, source: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "file").write_text("readable")
    with sandbox.workspace(source, readable=[extra], env={"A": "1", "B": "2"}) as ws:
        outcome = ws.run(f"cat; echo $A$B; cat {extra}/file; echo x > {extra}/file", stdin=b"in ", env={"B": "3"})
        assert outcome.stdout == b"in 13\nreadable"
        assert ws.run(["cat"]).stdout == b""
        outcome = ws.run("sleep 30", timeout=0.3)
        assert outcome.end == "timeout"
        assert ws.run(python_argv("-c", "while True: pass"), timeout=0.3).end == "timeout"
    assert (extra / "file").read_text() == "readable"


def test_programs_that_are_not_there(plain_ws: Workspace) -> None:
    with pytest.raises(InputError, match="no-such-program"):
        plain_ws.run(["no-such-program"])
    assert plain_ws.run("no-such-program").exit_code == 127
    with pytest.raises(InputError, match="timeout"):
        plain_ws.run(["true"], timeout=0)


OUTSIDE = """
import os, sys
def attempt(name, action):
    try: action()
    except OSError: return
    print("BREACH", name)
secret = sys.argv[1]
for name in (secret, os.path.dirname(secret), "/proc/self/root" + secret, "../" * 30 + secret[1:]):
    attempt(f"read {name}", lambda: os.listdir(name) if os.path.isdir(name) else open(name).read())
    attempt(f"write {name}", lambda: open(name, "a"))
os.symlink(secret, "link"); attempt("through a link", lambda: open("link").read())
attempt("hard link", lambda: os.link(secret, "hard"))
attempt("move out", lambda: os.rename("README.md", os.path.dirname(secret) + "/moved"))
attempt("beside", lambda: open("../../store/x", "w") if os.path.isdir("../../store") else os.listdir("/missing"))
attempt("list beside", lambda: print(os.listdir("../../store")))
attempt("device", lambda: os.mknod("dev", 0o020666, os.makedev(1, 3)))
try: os.chown("README.md", 0, 0)
except OSError: pass
"""


def test_nothing_outside_is_reached(ws: Workspace, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    before = picture(tmp_path)
    owner = os.stat(host_folder(ws) / "codemill" / "README.md").st_uid
    assert python(ws, OUTSIDE, str(secret)) == b""
    assert os.stat(host_folder(ws) / "codemill" / "README.md").st_uid == owner
    assert picture(tmp_path) == before


def test_workspaces_do_not_see_each_other(sandbox: Sandbox, source: Path) -> None:
    with sandbox.workspace(source) as one, sandbox.workspace(source) as other:
        assert one.run("echo private > mine").succeeded
        target = host_folder(one) / "codemill" / "mine"
        assert other.run(["cat", str(target)]).exit_code == 1
        assert one.read("mine") == b"private\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of root")
def test_set_user_id_programs_have_no_effect(plain_ws: Workspace) -> None:
    box = host_folder(plain_ws) / "codemill"
    shutil.copy("/usr/bin/id", box / "id")
    (box / "id").chmod(0o6755)
    assert python(plain_ws, "import os; print(os.statvfs('.').f_flag & (os.ST_NOSUID | os.ST_NODEV))") == b"6\n"
    assert plain_ws.run(["./id", "-u"]).stdout == plain_ws.run(["id", "-u"]).stdout != b"0\n"


# Limits ----------------------------------------------------------------------------------------------------------


FILL = "import itertools\nfor i in itertools.count():\n    open(f'fill{i}', 'wb').write(b'x' * (1 << 20))"
COUNT = "import itertools\nfor i in itertools.count():\n    open(f'many{i}', 'wb').close()"
HIDDEN = """
import os
for _ in range(60):
    os.mkdir("d" * 200); os.chdir("d" * 200)
os.chmod("..", 0)
import itertools
for i in itertools.count():
    open(f'fill{i}', 'wb').write(b'x' * (1 << 20))
"""


@pytest.mark.parametrize("code", [FILL, COUNT, HIDDEN], ids=["bytes", "entries", "hidden"])
def test_the_disk_has_an_end(ws: Workspace, code: str) -> None:
    outcome = ws.run(python_argv("-c", code))
    assert outcome.end == "disk"
    with_room = ws.run("true")  # too much is there, but looking at it and deleting it are allowed
    assert with_room.end == "exited"
    ws.rollback(ws.base)
    assert ws.diff() == ""
    assert ws.run("echo x > x").succeeded
    assert ws._box.use(1 << 40, 1 << 20)[1] == 8
    assert os.listdir(host_folder(ws).parent / "trash") == []


def test_what_a_quick_command_leaves_is_measured_at_its_end(plain_ws: Workspace) -> None:
    code = "for i in range(4): open(f'f{i}', 'wb').write(b'x' * (4 << 20))"
    assert plain_ws.run(python_argv("-c", code)).end == "disk"
    assert plain_ws.run("rm f1 f2 f3").succeeded
    assert plain_ws.run("true").succeeded


def test_far_too_much_has_to_be_rolled_back(plain_ws: Workspace) -> None:
    for number in range(60):
        (host_folder(plain_ws) / "codemill" / f"huge{number}").write_bytes(b"x" * (6 << 20))
    with pytest.raises(OverLimitError, match="roll back"):
        plain_ws.run("true")
    with pytest.raises(OverLimitError, match="roll back"):
        plain_ws.snapshot()
    plain_ws.rollback(plain_ws.base)
    assert plain_ws.run("true").succeeded


def test_output_is_cut(plain: Sandbox, source: Path) -> None:
    with plain.workspace(source, policy=Policy(output_bytes=1000)) as ws:
        outcome = ws.run("yes | head -c 100000")
    assert len(outcome.stdout) == 1000
    assert outcome.stdout_dropped == 99000


def test_all_commands_together_have_an_end(plain: Sandbox, source: Path) -> None:
    with plain.workspace(source, total_seconds=1.0) as ws:
        assert ws.run("sleep 0.3").succeeded
        assert ws.run("sleep 30").end == "timeout"
        with pytest.raises(OverLimitError, match="used up"):
            ws.run("true")
    with pytest.raises(ConfigError, match="total_seconds"):
        plain.workspace(source, total_seconds=0)


def test_snapshots_have_an_end(plain: Sandbox, source: Path) -> None:
    policy = Policy(disk_bytes=1 << 20)
    with plain.workspace(source, policy=policy) as ws:
        names = []
        with pytest.raises(OverLimitError, match="forget"):
            for _ in range(100):
                ws.write("noise", os.urandom(900_000))
                names.append(ws.snapshot())
        assert 5 < len(names) < 50
        for name in names[:-1]:
            ws.forget(name)
        ws.snapshot()
        ws.rollback(names[-1])
        with pytest.raises(InputError, match=f"snapshot '{names[0]}'"):
            ws.rollback(names[0])
        with pytest.raises(InputError, match="stays"):
            ws.forget(ws.base)
        ws.rollback(ws.base)
        assert ws.diff() == ""


# Files -----------------------------------------------------------------------------------------------------------


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


CLOSED = """
import os
os.makedirs("shut/inner/deep"); open("shut/inner/deep/file", "w").write("in the dark")
os.chmod("shut/inner/deep/file", 0); os.chmod("shut/inner/deep", 0); os.chmod("shut/inner", 0); os.chmod("shut", 0)
os.chmod("pkg", 0o300); os.chmod("README.md", 0)
"""


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


# Snapshots -------------------------------------------------------------------------------------------------------


STEPS = [
    "echo 1 > README.md; touch -d 2001-01-01 README.md",
    "rm pkg/data.bin; mkdir -p new/dir/below; echo x > new/dir/x",
    "ln -s README.md latest; rm docs; mkdir docs; echo y > docs/y; echo scratch > ~/scratch",
    "rm -rf new; echo file > new; mv pkg/tool.sh pkg/empty/",
    "rm -rf *; echo all > new",
]


def test_rollback_is_exact_in_any_order(ws: Workspace) -> None:
    states = [(ws.base, picture(host_folder(ws)))]
    for step in STEPS:
        assert ws.run(step).succeeded
        states.append((ws.snapshot(), picture(host_folder(ws))))
    for index in (3, 5, 0, 4, 1, 2, 0, 5):
        name, wanted = states[index]
        ws.rollback(name)
        assert picture(host_folder(ws)) == wanted
    ws.rollback(ws.base)
    assert ws.diff() == ""


def test_a_rolled_back_tree_can_be_worked_in(ws: Workspace) -> None:
    assert ws.run("rm -rf *; echo x > README.md").succeeded
    ws.rollback(ws.base)
    assert ws.run("./pkg/tool.sh; echo four >> README.md; echo z > pkg/empty/z; rm pkg/data.bin").stdout == b"tool\n"
    assert ws.read("README.md") == b"one\ntwo\nthree\nfour\n"


def test_a_change_that_hides_itself_is_found(plain_ws: Workspace) -> None:
    """Same size, same times as far as a program can set them, in place and by another file."""
    hide = """
import os
status = os.stat("README.md")
with open("README.md", "r+") as out: out.write("ONE")
os.utime("README.md", ns=(status.st_atime_ns, status.st_mtime_ns))
with open("swap", "wb") as out: out.write(bytes(2048))
status = os.stat("pkg/data.bin")
os.rename("swap", "pkg/data.bin")
os.utime("pkg/data.bin", ns=(status.st_atime_ns, status.st_mtime_ns))
"""
    assert plain_ws.diff() == ""
    python(plain_ws, hide)
    assert [change.path for change in plain_ws.changed()] == ["README.md", "pkg/data.bin"]
    plain_ws.rollback(plain_ws.base)
    assert plain_ws.read("README.md") == b"one\ntwo\nthree\n"


@pytest.mark.parametrize("clock", ["fine", "coarse"])
def test_changes_at_once_after_a_snapshot_are_found(
    plain_ws: Workspace, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within one tick of the clock that file times are taken from: with a coarse one nothing tells the two apart."""
    if clock == "coarse":
        monkeypatch.setattr(snapshots, "_signature", lambda entry: (entry.status.st_ino, entry.size, 0, 0))
    for number in range(30):
        plain_ws.write("f", b"%04d" % number)
        inode = os.stat(host_folder(plain_ws) / "codemill" / "f")
        state = plain_ws.snapshot()
        with (host_folder(plain_ws) / "codemill" / "f").open("r+b") as out:
            out.write(b"x%03d" % number)
        os.utime(host_folder(plain_ws) / "codemill" / "f", ns=(inode.st_atime_ns, inode.st_mtime_ns))
        assert [change.path for change in plain_ws.changed(state)] == ["f"]
        later = plain_ws.snapshot()
        plain_ws.rollback(state)
        assert plain_ws.read("f") == b"%04d" % number
        plain_ws.rollback(later)
        assert plain_ws.read("f") == b"x%03d" % number


def test_files_that_became_one_are_two_again(ws: Workspace) -> None:
    assert ws.run("cp -p README.md copy").succeeded
    state = ws.snapshot()
    assert ws.run("ln -f README.md copy; echo both >> copy").succeeded
    ws.rollback(state)
    assert ws.run("ln -f README.md copy").succeeded
    ws.rollback(state)
    assert ws.run("echo one >> README.md").succeeded
    assert ws.read("copy") == b"one\ntwo\nthree\n"


def test_snapshots_share_what_did_not_change(plain_ws: Workspace) -> None:
    store = host_folder(plain_ws).parent / "store"

    def used() -> int:
        return sum(path.stat().st_size for path in store.iterdir())

    before = used()
    assert before == 14 + 20 + 2048
    for _ in range(5):
        plain_ws.snapshot()
    assert used() == before
    plain_ws.write("README.md", b"12345")
    names = [plain_ws.snapshot(), plain_ws.snapshot()]
    assert used() == before + 5
    plain_ws.forget(names[0])
    assert used() == before + 5
    plain_ws.forget(names[1])
    assert used() == before


# Diffs -----------------------------------------------------------------------------------------------------------


def check_diff(ws: Workspace, source: Path) -> None:
    """`git apply` makes of the source what the workspace holds."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(source, copy, symlinks=True)
        apply = [git, "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "-"]
        done = subprocess.run(apply, cwd=copy, input=ws.diff().encode(), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

        def contents(root: Path) -> dict[str, object]:
            return {
                os.fsdecode(path.relative_to(root)): path.readlink()
                if path.is_symlink()
                else (path.read_bytes(), bool(path.stat().st_mode & 0o100))
                for path in root.rglob("*")
                if path.is_symlink() or path.is_file()
            }

        assert contents(copy) == contents(host_folder(ws) / "codemill")


CHANGES = """
import os
open("README.md", "w").write("one\\n2\\nthree")
open("new file.txt", "w").write("x\\ny\\n"); open("empty", "w"); open("pkg/ünï", "w").write("ä\\n")
open("latin", "wb").write(b"caf\\xe9\\n"); open("crlf", "wb").write(b"a\\r\\nb\\r\\n\\r")
open("pkg/data.bin", "r+b").write(b"\\0\\1\\2other")
os.unlink("docs"); os.symlink("pkg/empty", "docs"); os.symlink("../README.md", "pkg/readme")
os.close(os.open("run.sh", os.O_CREAT | os.O_WRONLY, 0o755))
os.mkdir("__pycache__"); open("__pycache__/x.pyc", "w"); os.mkdir(".git"); open(".git/config", "w")
"""


def test_a_diff_is_what_git_takes(ws: Workspace, source: Path) -> None:
    python(ws, CHANGES)
    changes = {change.path: change.kind for change in ws.changed()}
    added = ("new file.txt", "empty", "pkg/ünï", "latin", "crlf", "pkg/readme", "run.sh")
    assert changes == {
        **dict.fromkeys(added, "added"),
        **dict.fromkeys(("README.md", "pkg/data.bin", "docs"), "changed"),
    }
    for path in ("__pycache__", ".git"):
        ws.delete(path)
    check_diff(ws, source)
    diff, here = ws.diff(), picture(host_folder(ws) / "codemill")
    ws.rollback(ws.base)
    assert ws.apply(diff) == tuple(sorted(changes))
    assert ws.diff() == diff
    assert picture(host_folder(ws) / "codemill").keys() == here.keys()


def test_modes_deletions_and_kinds(ws: Workspace, source: Path) -> None:
    ws.write("README.md", ws.read("README.md"), executable=True)
    ws.write("pkg/tool.sh", b"#!/bin/sh\n", executable=False)
    assert ws.run(
        "rm pkg/data.bin; rm docs; mkdir docs; echo x > docs/x; rm -r pkg/empty; echo y > pkg/empty"
    ).succeeded
    assert "old mode 100644\nnew mode 100755\n" in ws.diff()
    check_diff(ws, source)
    diff = ws.diff()
    ws.rollback(ws.base)
    ws.apply(diff)
    assert ws.diff() == diff


def test_files_and_folders_take_each_others_place(ws: Workspace, source: Path) -> None:
    assert ws.run(
        "rm -r pkg docs README.md; echo x > pkg; mkdir -p docs README.md/below; echo y > README.md/below/y"
    ).succeeded
    check_diff(ws, source)
    diff, there = ws.diff(), ws.snapshot()
    ws.rollback(ws.base)
    assert set(ws.apply(diff)) == {"README.md", "README.md/below/y", "docs", "pkg", "pkg/data.bin", "pkg/tool.sh"}
    assert ws.diff() == diff
    assert ws.changed(there) == ()
    ws.rollback(ws.base)
    ws.write("pkg/kept", b"not in the diff")
    with pytest.raises(InputError, match="'pkg' is a folder"):
        ws.apply(diff)
    assert [change.path for change in ws.changed()] == ["pkg/kept"]


def test_what_a_diff_cannot_carry_is_named(ws: Workspace, tmp_path: Path) -> None:
    python(ws, "import os\nos.mkfifo('pi\\npe'); os.symlink('/etc/passwd', 'out'); open('fine', 'w').write('x')")
    notes = {change.path: change.note for change in ws.changed()}
    assert notes == {"pi\npe": "a pipe or the like", "out": "a link that leads out", "fine": ""}
    head = ws.diff().split("diff --git", 1)[0]
    assert head == '# left out: out (a link that leads out)\n# left out: "pi\\npe" (a pipe or the like)\n'
    with pytest.raises(OverLimitError, match="more than 50"):
        ws.diff(limit=50)


def test_diffs_between_steps(plain_ws: Workspace) -> None:
    plain_ws.write("README.md", "one\n2\nthree\n")
    state = plain_ws.snapshot()
    plain_ws.write("README.md", "one\n2\n3\n")
    assert plain_ws.diff(state).endswith("@@ -1,3 +1,3 @@\n one\n 2\n-three\n+3\n")
    assert plain_ws.diff().endswith("@@ -1,3 +1,3 @@\n one\n-two\n-three\n+2\n+3\n")


def test_applying_is_all_or_nothing(plain_ws: Workspace, tmp_path: Path) -> None:
    good = "--- a/README.md\n+++ b/README.md\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
    for bad, why in {
        "--- a/pkg/tool.sh\n+++ b/pkg/tool.sh\n@@ -1 +1 @@\n-no such line\n+x\n": "does not fit",
        "--- a/gone\n+++ b/gone\n@@ -1 +1 @@\n-x\n+y\n": "'gone' is not there",
        "--- /dev/null\n+++ b/pkg/tool.sh\n@@ -0,0 +1 @@\n+x\n": "is there already",
        "--- /dev/null\n+++ b/../out\n@@ -0,0 +1 @@\n+x\n": "unsafe path",
        "--- /dev/null\n+++ /etc/out\n@@ -0,0 +1 @@\n+x\n": "unsafe path",
        "--- /dev/null\n+++ b/.git/hooks/x\n@@ -0,0 +1 @@\n+x\n": "may touch",
        "--- /dev/null\n+++ b/docs/x\n@@ -0,0 +1 @@\n+x\n": "is no folder",
        "--- /dev/null\n+++ b/README.md/x\n@@ -0,0 +1 @@\n+x\n": "is no folder",
        "diff --git a/l b/l\nnew file mode 120000\n--- /dev/null\n+++ b/l\n@@ -0,0 +1 @@\n+/etc/passwd\n": "leads out",
        "diff --git a/s b/s\nnew file mode 160000\n--- /dev/null\n+++ b/s\n@@ -0,0 +1 @@\n+x\n": "160000",
        "--- a/pkg/tool.sh\n+++ b/pkg/tool.sh\n@@ -1,9 +1,9 @@\n x\n": "fewer lines",
        "--- a/pkg/tool.sh\n+++ b/pkg/tool.sh\n": "without a hunk",
    }.items():
        with pytest.raises(InputError, match=why):
            plain_ws.apply(good + bad)
        assert plain_ws.diff() == ""
    with pytest.raises(InputError, match="no part begins"):
        plain_ws.apply("hello")
    assert plain_ws.apply(good) == ("README.md",)
    assert plain_ws.read("README.md") == b"one\n2\nthree\n"
    assert plain_ws.apply("") == ()


# Beginning and end -----------------------------------------------------------------------------------------------


def left() -> list[str]:
    return sorted(path.name for path in Path(tempfile.gettempdir()).glob("codemill-workspace-*"))


def test_nothing_is_left_at_the_end(sandbox: Sandbox, source: Path) -> None:
    def state() -> tuple[list[str], list[str], set[str]]:
        return left(), sorted(os.listdir("/proc/self/fd")), set(Path("/proc/self/mounts").read_text().splitlines())

    with sandbox.workspace(source) as ws:
        ws.run("true")
    before = state()
    for _ in range(3):
        with sandbox.workspace(source) as ws:
            python(ws, CLOSED)
            python(ws, "import os\nos.mkfifo('p'); os.symlink('/', 'l'); os.makedirs('/'.join('d' * 300))")
            ws.snapshot()
            ws.diff()
    assert state() == before
    for action in (lambda: ws.run("true"), lambda: ws.read("x"), ws.snapshot, lambda: ws.write("x", b"")):
        with pytest.raises(InputError, match="not open"):
            action()


def test_a_source_that_cannot_be_taken(plain: Sandbox, source: Path) -> None:
    before = left()
    for path in (source / "gone", source / "README.md"):
        with pytest.raises(InputError, match=path.name), plain.workspace(path):
            pass
    assert left() == before


HOLDER = """
import sys
sys.path[:0] = sys.argv[3:]
from pathlib import Path
from sandbox_support import BUILDS
from codemill.sandbox import Sandbox, python_argv
with Sandbox(layers=BUILDS[sys.argv[1]]).workspace(Path(sys.argv[2])) as ws:
    ws.run("mkdir -p a/b; echo x > a/b/c; chmod 0 a/b a")
    print(ws._kept.path.parent, flush=True)
    ws.run(["sleep", "300"], timeout=300)
"""


@pytest.mark.parametrize("build", BUILDS)
def test_the_next_start_removes_what_a_killed_one_left(
    build: str, source: Path, sandboxes: Callable[[str], Sandbox]
) -> None:
    sandbox = sandboxes(build)
    paths = [str(Path(__file__).parent), *sys.path]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, build, str(source), *paths], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        place = Path(holder.stdout.readline().decode().strip())
        assert place.name.startswith(f"codemill-workspace-{holder.pid}-")
        with sandbox.workspace(source):
            assert place.exists()  # its owner lives
        assert wait_until(lambda: any(_is_below(pid, holder.pid) for pid in processes_with("sleep")))
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert place.exists()
    with sandbox.workspace(source):
        assert not place.exists()
    assert left() == [name for name in left() if str(holder.pid) not in name]


def _is_below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
        if pid == ancestor:
            return True
    return False


def test_coroutines(plain: Sandbox, source: Path) -> None:
    token = f"async-{os.getpid()}"

    async def main() -> None:
        async with plain.workspace(source, policy=SMALL) as ws:
            outcomes = await asyncio.gather(*(ws.run(f"echo {n} >> order; cat order | wc -l") for n in range(4)))
            assert [int(outcome.stdout) for outcome in outcomes] == [1, 2, 3, 4]
            await ws.write("x", b"y")
            assert await ws.read("order") == b"0\n1\n2\n3\n"
            state = await ws.snapshot()
            task = asyncio.create_task(
                ws.run(python_argv("-c", "import time; open('up', 'w'); time.sleep(300)", token))
            )
            while not any(entry.path == "up" for entry in await ws.list()):
                await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await ws.rollback(state)
            assert processes_with(token) == []
            assert [change.path for change in await ws.changed()] == ["order", "x"]
            assert await ws.apply("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-y\n\\ No newline at end of file\n+z\n") == ("x",)
            assert "+z\n" in await ws.diff()
            await ws.delete("x")
            assert len(await ws.walk()) == 7

    before = left()
    asyncio.run(main())
    assert left() == before


def test_an_interrupt_kills_the_command(plain_ws: Workspace) -> None:
    token = f"interrupt-{os.getpid()}"
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            plain_ws.run(python_argv("-c", "import time; time.sleep(6)", token))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert processes_with(token) == []
    assert time.monotonic() - start < 6
    assert plain_ws.run("true").succeeded


def test_without_a_user_of_its_own(source: Path) -> None:
    with Sandbox(SMALL, layers=Layers(users=False)) as sandbox, sandbox.workspace(source) as ws:
        assert ws.run("echo x > x; cat x").stdout == b"x\n"
        assert ws.read("x") == b"x\n"
        ws.rollback(ws.base)
        assert ws.diff() == ""


def test_it_listens_to_no_socket_in_the_source(plain: Sandbox, source: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(source / "s"))
    try:
        with plain.workspace(source) as ws:
            assert ws.left_out == ("s",)
    finally:
        listener.close()
