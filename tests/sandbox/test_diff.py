"""Differences as text: what `git apply` and our own reader make of them, and reading what others wrote."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codemill.core.errors import InputError
from codemill.sandbox import diff
from codemill.sandbox.diff import EXECUTABLE, FILE, LINK, Effort, Version, file_diff, matching_blocks, quoted
from codemill.sandbox.folder import checked, link_stays_inside
from codemill.sandbox.patch import parse_diff, patched

LINES = st.lists(
    st.sampled_from(["a", "b", "c", "", "{", "}", "ä", "x\r", "\x0c", "\u2028", "-- q", "+++ b/x"]), max_size=30
)
TEXTS = st.builds(lambda lines, end: "\n".join(lines) + end, LINES, st.sampled_from(["", "\n"])).map(str.encode)
CONTENTS = st.one_of(TEXTS, st.binary(max_size=300), st.sampled_from([b"\0" * 5000, b"\xff", b"\n", b"\r"]))
MODES = st.sampled_from([FILE, EXECUTABLE])
VERSIONS = st.one_of(
    st.none(), st.builds(Version, MODES, CONTENTS), st.builds(Version, st.just(LINK), TEXTS.filter(len))
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=12).filter(
    lambda name: name.lower() not in (".", "..", ".git")
)


def applied(text: str, before: dict[str, Version]) -> dict[str, Version]:
    state = dict(before)
    for patch in parse_diff(text, 1 << 20):
        after = patched(patch, state.get(patch.old) if patch.old else state.get(patch.name))
        if patch.old and not patch.copied:
            state.pop(patch.old, None)
        if patch.new and after is not None:
            state[patch.new] = after
    return state


@given(NAMES, VERSIONS, VERSIONS)
@settings(max_examples=300, deadline=None)
def test_our_own_reader_gets_back_what_was_written(name: str, before: Version | None, after: Version | None) -> None:
    text = file_diff(name, before, after, Effort())
    text.encode()
    assert (text == "") == (before == after)
    old = {name: before} if before else {}
    assert applied(text, old) == ({name: after} if after else {})


@given(
    st.dictionaries(
        st.sampled_from(["f", "d/e", 'q "x\t', "ünï\n", " blank"]), st.tuples(VERSIONS, VERSIONS), max_size=4
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_git_gets_the_same(tmp_path: Path, files: dict[str, tuple[Version | None, Version | None]]) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    shutil.rmtree(tmp_path / "tree", ignore_errors=True)
    tree = tmp_path / "tree"
    tree.mkdir()
    files = {name: tuple(v if v is None or v.mode != LINK else _link(v) for v in pair) for name, pair in files.items()}  # type: ignore[misc]
    for name, (before, _) in files.items():
        if before is not None:
            _put(tree / name, before)
    effort = Effort()
    text = "".join(file_diff(name, before, after, effort) for name, (before, after) in sorted(files.items()))
    if text:
        command = [git, "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "-"]
        done = subprocess.run(command, cwd=tree, input=text.encode(), capture_output=True)
        assert done.returncode == 0, (done.stderr.decode(), text)
    for name, (_, after) in files.items():
        assert _get(tree / name) == after


def _link(version: Version) -> Version:
    return Version(LINK, b"to/" + bytes(byte % 26 + 97 for byte in version.data[:20]))


def _put(path: Path, version: Version) -> None:
    path.parent.mkdir(exist_ok=True)
    if version.mode == LINK:
        path.symlink_to(version.data.decode())
    else:
        path.write_bytes(version.data)
        path.chmod(version.mode & 0o777)


def _get(path: Path) -> Version | None:
    if path.is_symlink():
        return Version(LINK, str(path.readlink()).encode())
    if not path.exists():
        return None
    return Version(EXECUTABLE if path.stat().st_mode & 0o100 else FILE, path.read_bytes())


@given(LINES, LINES, st.sampled_from([0, 30, 4_000_000]))
@settings(max_examples=300, deadline=None)
def test_matching_lines_are_equal_and_in_order(old: list[str], new: list[str], steps: int) -> None:
    i = j = 0
    for a, b, size in matching_blocks(old, new, Effort(steps)):
        assert a >= i
        assert b >= j
        assert size > 0
        assert old[a : a + size] == new[b : b + size]
        i, j = a + size, b + size


@given(LINES, LINES)
@settings(max_examples=200, deadline=None)
def test_lines_without_anchors_get_the_longest_match(old: list[str], new: list[str]) -> None:
    row = [0] * (len(new) + 1)
    for line in old:
        last, row = row, [0]
        for j, other in enumerate(new):
            row.append(last[j] + 1 if line == other else max(last[j + 1], row[j]))
    found = diff._common(old, new, 0, len(old), 0, len(new))
    assert len(found) == row[-1]
    assert all(old[i] == new[j] for i, j in found)
    assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(found))


def test_hostile_files_are_compared_in_bounded_steps() -> None:
    old = [str(n % 997) for n in range(40_000)]
    new = [str(n * 31 % 991) for n in range(40_000)]
    effort = Effort()
    blocks = matching_blocks(old, new, effort)
    assert effort.steps > -300_000
    assert all(old[a : a + size] == new[b : b + size] for a, b, size in blocks)


def test_a_move_of_a_block_is_a_short_diff() -> None:
    old = [f"line {n}\n" for n in range(200)]
    new = [*old[50:60], *old[:50], "fresh\n", *old[60:]]
    text = file_diff("f", Version(FILE, "".join(old).encode()), Version(FILE, "".join(new).encode()), Effort())
    assert sum(line.startswith(("+", "-")) for line in text.splitlines()) == 2 + 21


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("a/b", "a/b"), ("a b", "a b"), ("ä", '"\\303\\244"'), ("\udcff", '"\\377"'), ('"\\\n\x01', '"\\"\\\\\\n\\001"')],
)
def test_names_are_quoted_as_git_does(name: str, wanted: str) -> None:
    assert quoted(name) == wanted


GIT = """From 1234 Mon Sep 17 00:00:00 2001
Subject: text before, with
--- a line that begins like a name

diff --git a/old name.py b/new name.py
similarity index 90%
rename from old name.py
rename to new name.py
index 0123..4567 100644
--- a/old name.py\t
+++ b/new name.py\t
@@ -10,3 +10,4 @@ def f():
 a
-b
+B
+C
 c
diff --git a/script b/script
old mode 100644
new mode 100755
diff --git a/none b/none
new file mode 100644
index 0000..e69d
--\x20
2.39.5
"""


def test_a_patch_mail_of_git_is_read() -> None:
    before = {
        "old name.py": Version(FILE, b"moved\n" * 3 + b"a\nb\nc\nd"),
        "script": Version(FILE, b"#!"),
    }
    assert applied(GIT, before) == {
        "new name.py": Version(FILE, b"moved\n" * 3 + b"a\nB\nC\nc\nd"),
        "script": Version(EXECUTABLE, b"#!"),
        "none": Version(FILE, b""),
    }


def test_hunks_find_their_lines_near_the_place_they_name() -> None:
    data = b"x\ny\n" * 10 + b"mark\n" + b"x\ny\n" * 10
    text = "--- f\n+++ f\n@@ -18,2 +18,2 @@\n x\n-y\n+Y\n@@ -25,1 +25,1 @@\n-x\n+X\n"
    lines = applied(text, {"f": Version(FILE, data)})["f"].data.split(b"\n")
    assert (lines.index(b"Y"), lines.index(b"X")) == (17, 23)


def test_context_that_lost_its_blank_is_taken() -> None:
    assert (
        applied("--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n\n-b\n+c\n", {"f": Version(FILE, b"a\n\nb\n")})["f"].data
        == b"a\n\nc\n"
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("diff --git a/f b/f\nindex 1..2\nGIT binary patch\ndelta 5\nzabc\n\n", "delta"),
        (
            "diff --git a/f b/f\nindex 1..2\nGIT binary patch\nliteral 99999999999\nzabc\n\n",
            "more than may be unpacked",
        ),
        ("diff --git a/f b/f\nindex 1..2\nGIT binary patch\nliteral 5\nzabc\n\n", "no line of binary contents"),
        ("diff --git a/f b/f\nindex 1..2\nGIT binary patch\nliteral 5\nEabcdefgh\n\n", "binary contents"),
        ("diff --git a/f b/f\nBinary files a/f and b/f differ\n", "--binary"),
        ("diff --git a/f b/f\nold mode 100644\nnew mode 120000\n", "becomes a link"),
        ("--- a/f\n+++ b/f\n@@ -1,2 +1,1 @@\n a\n?\n", "must begin with"),
        ("--- a/f\n+++ b/f\n@@ -99999999999999999999,2 +1,1 @@\n x\n-y\n", "does not fit"),
        ("--- a/f\n+++ b/f\n@@ -1 +1 @@\n+1\n+2\n-a\n", "more lines"),
        ("--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n", "holds more"),
        ("--- /dev/null\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n", "names no file"),
        ("--- a/.GIT/x\n+++ b/.GIT/x\n@@ -1 +0,0 @@\n-a\n", "may touch"),
        ('--- "a/..\\057x"\n+++ "b/..\\057x"\n@@ -1 +0,0 @@\n-a\n', "unsafe path"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        applied(text, {"f": Version(FILE, b"a\nb\n"), ".GIT/x": Version(FILE, b"a\n")})


@given(st.text(st.sampled_from('-+@ ab/\n0,19\\"dif'), max_size=200), st.binary(max_size=100))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str, data: bytes) -> None:
    for start in (
        "",
        "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n",
        "diff --git a/f b/f\n",
        "diff --git a/f b/f\nGIT binary patch\nliteral 5\n",
    ):
        with contextlib.suppress(InputError):
            applied(start + text, {"f": Version(FILE, data)})


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        ("l", "a/b", True),
        ("l", "../a", False),
        ("d/l", "../a", True),
        ("d/l", "../../a", False),
        ("d/l", "a/..", False),
        ("l", "/a", False),
        ("l", ".", True),
        ("l", "", False),
    ],
)
def test_links_that_lead_out_are_known_by_their_name(path: str, target: str, inside: bool) -> None:
    assert link_stays_inside(path, target) is inside


def test_paths_from_callers_are_checked() -> None:
    assert [checked(path) for path in ("", ".", "a/b", "a/", "-x", " ")] == ["", "", "a/b", "a", "-x", " "]
    for path in ("/", "..", "a/..", "a//b", "a/./b", "\0"):
        with pytest.raises(InputError, match="unsafe path"):
            checked(path)
