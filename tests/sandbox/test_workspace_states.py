"""Snapshots of a workspace, ways back, and differences as text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from workspace_support import check_diff, host_folder, picture, python

from codemill.core.errors import InputError
from codemill.sandbox import OverLimitError, Sandbox, Workspace, snapshots

# Snapshots ----------------------------------------------------------------------------------------------------------


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


# Diffs --------------------------------------------------------------------------------------------------------------


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


def test_the_documentation_shows_what_works(plain: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "sandbox.md"
    code = page.read_text().split("## A workspace for agents")[1].split("```python\n")[1].split("```")[0]
    (tmp_path / "greet.py").write_text("def main():\n    print('Helo')\n")
    exec(code.replace("path/to/repository", str(tmp_path)), {})
    shown = capsys.readouterr().out
    assert shown.startswith("exited 0 Hello\n")
    assert "(Change(path='greet.py', kind='changed', note=''),) diff --git a/greet.py" in shown
    assert "junk" not in shown
