"""What a model may hand to a workspace as its answer: none of it may look like a fault of ours, or be half done."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.core.errors import InputError
from codemill.core.text import visible
from codemill.sandbox import OverLimitError, Workspace, folder, patch, python_argv
from codemill.sandbox.diff import FILE, Effort, Version
from codemill.sandbox.folder import Entry, Folder
from codemill.sandbox.patch import Hunk, parse_diff, patched

HALF = "\ud800"  # what JSON's "\ud800" is read as; it stands for no byte
HEAD = "--- a/README.md\n+++ b/README.md\n"

MEANINGLESS: dict[str, Callable[[Workspace], Any]] = {
    "read": lambda ws: ws.read(HALF),
    "write name": lambda ws: ws.write(HALF, b""),
    "write text": lambda ws: ws.write("x", HALF),
    "delete": lambda ws: ws.delete(HALF),
    "list": lambda ws: ws.list(HALF),
    "walk": lambda ws: ws.walk(HALF),
    "shell": lambda ws: ws.run("echo " + HALF),
    "argument": lambda ws: ws.run(["echo", HALF]),
    "variable": lambda ws: ws.run("true", env={"A": HALF}),
    "diff": lambda ws: ws.apply(f"{HEAD}@@ -1 +1 @@\n-one\n+{HALF}\n"),
    "endless": lambda ws: ws.run("true", timeout=float("inf")),
    "not a number": lambda ws: ws.run("true", timeout=float("nan")),
    "too long": lambda ws: ws.run("true", timeout=1e30),
}


@pytest.mark.parametrize("name", MEANINGLESS)
def test_what_means_nothing_is_refused(plain_ws: Workspace, name: str) -> None:
    with pytest.raises(InputError):
        MEANINGLESS[name](plain_ws)
    assert plain_ws.changed() == ()


def test_bytes_that_are_no_text_come_back_as_they_were(plain_ws: Workspace) -> None:
    plain_ws.write("x", b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert plain_ws.read("x") == b"caf\xe9"


LEASE = """
import fcntl, os, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fcntl.fcntl(os.open("README.md", os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_WRLCK)
open("ready", "w").close()
while not os.path.exists("enough"):
    time.sleep(0.01)
"""


def test_a_program_that_keeps_a_file_to_itself_is_named_for_it(plain_ws: Workspace) -> None:
    """It looks like a fault of the machine otherwise."""
    outcomes = []
    runs = threading.Thread(target=lambda: outcomes.append(plain_ws.run(python_argv("-c", LEASE))))
    runs.start()
    try:
        while runs.is_alive() and not any(entry.path == "ready" for entry in plain_ws.list()):
            time.sleep(0.01)
        if runs.is_alive():
            with pytest.raises(InputError, match="held, or moved about, by a program"):
                plain_ws.read("README.md")
    finally:
        plain_ws.write("enough", b"")
        runs.join()
    if not outcomes[0].succeeded:
        pytest.skip(f"no leases here: {outcomes[0].stderr[-200:]!r}")
    assert plain_ws.read("README.md") == b"one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("hunks", "why"),
    [
        ("@@ -1 +1 @@\n-one\n+1\n+lost\n", "more lines than it says"),
        ("@@ -1 +1 @@\n-one\n+1\n-two\n", "more lines than it says"),
        ("@@ -1 +1 @@\n-one\n+1\n@@ -3 +3x @@\n-three\n+3\n", "no head of a hunk"),
        ("@@ -1 +1 @@\n-one\n+1\n@@ @@\n-three\n+3\n", "no head of a hunk"),
        ("@@ -" + "9" * 5000 + " +1 @@\n-one\n+1\n", "without a hunk"),
    ],
    ids=["added", "removed", "bad head", "bare head", "long number"],
)
def test_no_part_of_a_diff_is_passed_over(plain_ws: Workspace, hunks: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        plain_ws.apply(HEAD + hunks)
    assert plain_ws.changed() == ()


def test_a_size_of_any_length_is_no_fault_of_ours() -> None:
    with pytest.raises(InputError, match="literal"):
        parse_diff(
            f"diff --git a/b b/b\nnew file mode 100644\nGIT binary patch\nliteral {'9' * 5000}\nAAA\n\n", 1 << 20
        )


def test_the_end_of_a_mail_and_the_next_file_are_no_lines_of_a_hunk() -> None:
    diff = HEAD + "@@ -1 +1 @@\n-one\n+1\n--- a/b\n+++ b/b\n@@ -1 +1 @@\n-x\n+y\n-- \n2.40\n"
    assert [(part.name, len(part.hunks)) for part in parse_diff(diff, 1 << 20)] == [("README.md", 1), ("b", 1)]


def test_rights_taken_away_while_a_folder_is_looked_at(tmp_path: Path) -> None:
    """As a program does that runs while the disk is measured: the error is an ordinary one, whoever looks."""
    opened = Folder(tmp_path)
    try:
        with pytest.raises(PermissionError, match="meanwhile"), opened._opened_folder(""):
            raise PermissionError("meanwhile")
    finally:
        opened.close()


@pytest.mark.parametrize("again", [1, 1000])
def test_rights_taken_away_at_the_worst_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: int) -> None:
    """Between opening a folder and looking into it: once is an accident, again and again is hiding."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"x" * 5000)
    taken, real = [0], folder._list

    def list_later(path: str, descriptor: int, most: int | None) -> list[Entry]:
        if path == "sub" and taken[0] < again:
            taken[0] += 1
            raise PermissionError(errno.EACCES, "closed meanwhile")
        return real(path, descriptor, most)

    monkeypatch.setattr(folder, "_list", list_later)
    opened = Folder(tmp_path)
    try:
        size, count = opened.use(1 << 20, 100)
        if again == 1:
            assert count == 2
            assert [entry.path for entry in opened.walk(racing=True)] == ["sub", "sub/file"]
        else:
            assert size > 1 << 20
            with pytest.raises(OverLimitError, match="'sub': is kept closed"):
                list(opened.walk(racing=True))
    finally:
        opened.close()


CLOSED_HOME = """
import os, time
os.chmod(os.environ["HOME"], 0)
for i in range(1000):
    open(f"fill{i}", "wb").write(b"x" * (1 << 20))
    time.sleep(0.01)
"""


def test_a_closed_home_hides_nothing(ws: Workspace) -> None:
    """From the watcher of an ordinary user. Ten seconds of writing would end by the clock."""
    assert ws.run(python_argv("-c", CLOSED_HOME)).end == "disk"
    ws.rollback(ws.base)
    assert ws.run("echo x > x").succeeded


def _unseen(text: str) -> str:
    return "".join(character for character in text if visible(character) != character)


BLEEP = "a\x1b[31m\u202eb\x9b"

SHOWN: dict[str, Callable[[Workspace], Any]] = {
    "read": lambda ws: ws.read(BLEEP),
    "unsafe": lambda ws: ws.read("/" + BLEEP),
    "below a file": lambda ws: ws.write("README.md/" + BLEEP, b""),
    "long": lambda ws: ws.write(BLEEP * 100, b""),
    "list": lambda ws: ws.list(BLEEP),
    "program": lambda ws: ws.run([BLEEP]),
    "snapshot": lambda ws: ws.rollback(BLEEP),
    "diff of nothing": lambda ws: ws.apply(f"--- a/{BLEEP}\n+++ b/{BLEEP}\n@@ -1 +1 @@\n-one\n+1\n"),
    "diff of git": lambda ws: ws.apply(f"--- a/.git/{BLEEP}\n+++ b/.git/{BLEEP}\n@@ -1 +1 @@\n-one\n+1\n"),
    "mode": lambda ws: ws.apply(f"diff --git a/x b/x\nnew file mode {BLEEP}\n"),
    "hunk": lambda ws: ws.apply(f"{HEAD}@@ -1 +1 @@\n{BLEEP}\n"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_people_read_commands_no_terminal(plain_ws: Workspace, name: str) -> None:
    with pytest.raises(InputError) as caught:
        SHOWN[name](plain_ws)
    assert _unseen(str(caught.value)) == ""


def test_names_and_output_command_no_terminal(plain_ws: Workspace) -> None:
    from codemill.tasks.harness import tail

    outcome = plain_ws.run(["printf", f"out {BLEEP}"])
    assert _unseen(tail(outcome.stdout)) == ""
    plain_ws.write(BLEEP, b"\x00")
    assert plain_ws.run(["mkfifo", BLEEP + "pipe"]).succeeded
    for shown in (plain_ws.list(), plain_ws.changed(), plain_ws.walk()):
        assert _unseen(repr(shown)) == ""
    assert _unseen(plain_ws.diff()) == ""
    with pytest.raises(OverLimitError) as caught:
        plain_ws.diff(limit=10)
    assert _unseen(str(caught.value)) == ""


class Counted(bytes):
    """A line that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = bytes.__hash__


def test_lines_that_repeat_are_compared_in_linear_numbers() -> None:
    """Trying every place would take 200,000 comparisons."""
    lines, wanted = [Counted(b"a\n") for _ in range(2000)], (*(Counted(b"a\n") for _ in range(100)), Counted(b"b\n"))
    Counted.compared = 0
    assert patch._find(lines, wanted, 0, 0, Effort()) is None
    assert 2000 <= Counted.compared <= 3 * (len(lines) + len(wanted))


def test_looking_for_lines_has_an_end() -> None:
    part = parse_diff(f"{HEAD}@@ -1 +1 @@\n-b\n+c\n", 1 << 20)[0]
    before = Version(FILE, b"a\n" * 100 + b"b\n")
    assert patched(part, before, Effort(102)) == Version(FILE, b"a\n" * 100 + b"c\n")
    with pytest.raises(InputError, match="too far from the line"):
        patched(part, before, Effort(101))


LINE = st.sampled_from([b"a\n", b"b\n"])


@given(st.lists(LINE, max_size=14), st.lists(LINE, max_size=5), st.integers(0, 20))
def test_a_hunk_goes_to_the_nearest_place_that_holds_its_lines(
    lines: list[bytes], wanted: list[bytes], start: int
) -> None:
    part = parse_diff(f"{HEAD}@@ -1 +1 @@\n-a\n+b\n", 1 << 20)[0]
    part.hunks = [Hunk(start, tuple(wanted), (b"NEW\n",))]
    last = len(lines) - len(wanted)
    places = [place for place in range(last + 1) if lines[place : place + len(wanted)] == wanted]
    before = Version(FILE, b"".join(lines))
    if not places:
        with pytest.raises(InputError, match="does not fit"):
            patched(part, before)
        return
    after = patched(part, before)
    assert after is not None
    found = after.data.split(b"NEW\n", 1)[0].count(b"\n")
    assert found in places
    assert abs(found - min(start, last)) == min(abs(place - min(start, last)) for place in places)
