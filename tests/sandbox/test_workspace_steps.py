"""A repository over many steps: what commands find, leave and may use, and what is left of it all at the end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sandbox_support import BUILDS, processes_with, wait_until
from workspace_support import CLOSED, SMALL, host_folder, left, picture, python

from codemill.core.errors import ConfigError, InputError
from codemill.sandbox import Layers, OverLimitError, Policy, Sandbox, Workspace, python_argv, supervise

# Steps --------------------------------------------------------------------------------------------------------------


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


# Limits -------------------------------------------------------------------------------------------------------------


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


def test_what_a_quick_command_leaves_is_measured_at_its_end(
    plain_ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise._Run, "_disk_look_is_due", lambda self: False)  # as if it had ended before the first
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


# Beginning and end --------------------------------------------------------------------------------------------------


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
