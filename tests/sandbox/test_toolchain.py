"""Every language that this machine has: programs are built once, run many times, and held to their limits."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_support import processes_with

from codemill.core.errors import ConfigError, UnavailableError
from codemill.sandbox import Job, Outcome, Policy, Sandbox, python_argv
from codemill.sandbox import build as building
from codemill.sandbox.build import Build, Built, Program, build, build_policy, build_program
from codemill.sandbox.languages import LANGUAGES, java_names, language_of
from codemill.sandbox.toolchain import find_toolchain, together
from language_support import ADD, BROKEN, HOG, SPIN, STORM, share_go_library, toolchain_or_skip

LIMITS = Policy(wall_seconds=10.0, cpu_seconds=10.0, memory_bytes=256 << 20)
everywhere = pytest.mark.parametrize("name", LANGUAGES)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    share_go_library(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEMILL_CACHE", str(folder))
        yield folder


def built(name: str, text: str, sandbox: Sandbox) -> tuple[Program | None, Built]:
    return asyncio.run(build_program(toolchain_or_skip(name), text, sandbox))


def program(name: str, text: str, sandbox: Sandbox) -> Program:
    made, how = built(name, text, sandbox)
    assert made is not None, how
    return made


def run(made: Program, sandbox: Sandbox, policy: Policy = LIMITS, stdin: bytes = b"", *arguments: str) -> Outcome:
    return sandbox.run_blocking(made.job(policy, arguments, stdin))


@everywhere
@pytest.mark.parametrize("layers", ["full", "mountless", "bare"])
def test_a_program_is_built_once_and_run_many_times(
    name: str, layers: str, sandboxes: Callable[[str], Sandbox]
) -> None:
    sandbox = sandboxes(layers)
    made = program(name, ADD[name] + {"bash": "#", "python": "#"}.get(name, "//") + layers, sandbox)
    for first, second in ((3, 4), (-5, 5)):
        outcome = run(made, sandbox, LIMITS, b"%d %d\n" % (first, second))
        assert (outcome.end, outcome.exit_code, outcome.stdout) == ("exited", 0, b"%d\n" % (first + second)), outcome
    assert "nothing" not in outcome.isolation.values()
    held_by = "RLIMIT_AS" if made.toolchain.language.address_space else "RLIMIT_DATA"
    assert held_by in outcome.isolation["memory"]


@everywhere
def test_a_broken_program_is_refused_with_the_tools_own_words(name: str, plain: Sandbox) -> None:
    made, how = built(name, BROKEN[name], plain)
    if made is None:
        outcome = how.outcome
        assert outcome is not None
        assert how.started
        assert how.codes[-1] != 0
        assert not how.missing
    else:
        outcome = run(made, plain)
        assert outcome.exit_code not in (0, None)
    said = outcome.stdout + outcome.stderr
    assert re.search(rb"undeclared|[Ss]yntax|expected|TS1", said), said


@everywhere
def test_a_memory_hog_ends_for_lack_of_memory(name: str, plain: Sandbox) -> None:
    made = program(name, HOG[name], plain)
    outcome = run(made, plain)
    pattern = made.toolchain.language.out_of_memory
    aborted = name == "c" and outcome.signal == 6  # its malloc was refused, as it said
    assert outcome.end == "memory" or aborted or re.search(pattern, outcome.stderr.decode()), outcome
    assert not outcome.succeeded
    assert outcome.peak_bytes < 2 * LIMITS.memory_bytes


@everywhere
def test_an_endless_loop_times_out(name: str, plain: Sandbox) -> None:
    outcome = run(program(name, SPIN[name], plain), plain, replace(LIMITS, wall_seconds=0.4))
    assert outcome.end == "timeout"
    assert 0.3 < outcome.seconds < 5
    by_processor = run(program(name, SPIN[name], plain), plain, replace(LIMITS, cpu_seconds=0.5))
    assert by_processor.end == "timeout"
    assert by_processor.seconds < 8


@everywhere
def test_a_storm_of_processes_or_threads_is_bounded_and_leaves_nothing(name: str, plain: Sandbox) -> None:
    made = program(name, STORM[name], plain)
    token = "token-of-the-storm"
    outcome = run(made, plain, replace(LIMITS, wall_seconds=1.0), b"", token)
    assert outcome.end in ("timeout", "processes", "exited", "signal", "memory")
    assert not outcome.succeeded
    assert outcome.seconds < 5
    assert processes_with(token) == []


@everywhere
def test_what_was_built_is_kept_and_cannot_be_changed_by_a_run(name: str, plain: Sandbox) -> None:
    made, _ = built(name, ADD[name], plain)
    if made is None or made.folder is None:
        pytest.skip(f"{name} is run from its source")
    again, second = built(name, ADD[name], plain)
    assert second.outcome is None
    assert again == made
    before = {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()}
    assert before
    vandal = f"""
import os
for folder, names, files in os.walk({str(made.folder)!r}):
    print(len(files))
    for name in files:
        for mode in ("ab", "wb"):
            try: open(os.path.join(folder, name), mode)
            except OSError: pass
            else: print("opened")
        try: os.unlink(os.path.join(folder, name))
        except OSError: pass
try: open(os.path.join({str(made.folder)!r}, "new"), "w")
except OSError: pass
"""
    job = Job(argv=python_argv("main.py"), files={"main.py": vandal.encode()}, readable=(made.folder,))
    outcome = plain.run_blocking(job)
    assert outcome.stdout.split()[0] == b"%d" % len(before)
    assert b"opened" not in outcome.stdout
    assert {path: path.read_bytes() for path in made.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [name for name, language in LANGUAGES.items() if language.tools])
def test_a_missing_tool_is_named_with_the_way_to_get_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError) as raised:
        find_toolchain(name)
    assert LANGUAGES[name].tools[0][0] in str(raised.value)
    assert LANGUAGES[name].obtain in str(raised.value)


def test_a_tool_that_does_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gcc").write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"gcc --version` failed: out of order; install gcc"):
        find_toolchain("c")


def test_a_tool_outside_the_systems_folders_brings_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: Sandbox
) -> None:
    """A compiler in a prefix of its own that needs a file beside it, reached by a link."""
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    (prefix / "lib").mkdir()
    (prefix / "lib" / "template").write_text("#!/bin/sh\necho made by hand\n")
    real = prefix / "bin" / "gcc-own"
    real.write_text(
        "#!/bin/sh\ncase $1 in --version) echo own 1.0; exit;; esac\n"
        f"cp {prefix}/lib/template out/program && chmod +x out/program\n"
    )
    real.chmod(0o755)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "gcc").symlink_to(real)
    monkeypatch.setenv("PATH", f"{tmp_path}/links:{os.environ['PATH']}")
    toolchain = find_toolchain("c")
    assert toolchain.version == "own 1.0"
    made, how = asyncio.run(build_program(toolchain, "int main;", plain))
    assert made is not None, how
    assert run(made, plain).stdout == b"made by hand\n"


def test_unknown_languages_are_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="did you mean 'javascript'"):
        language_of("javascrip")


def test_together_joins_what_jobs_need() -> None:
    assert together(()).language.address_space
    found = [toolchain_or_skip(name) for name in ("python", "javascript", "java")]
    both = together(found)
    assert not both.language.address_space
    assert both.language.processes == 64
    environment = both.environment(512 << 20)
    assert environment["NODE_OPTIONS"] == "--max-old-space-size=384"
    assert environment["JAVA_TOOL_OPTIONS"].startswith("-Xmx384m")
    for words in ("JavaScript heap out of memory", "java.lang.OutOfMemoryError: Java heap space"):
        assert re.search(both.language.out_of_memory, words)
    assert not re.search(together(()).language.out_of_memory, "anything")


JAVA = [
    ("class Main { public static void main(String[] a) {} }", "Main", "Main.java"),
    ("public class Solution { public static void main(String[] a) {} }", "Solution", "Solution.java"),
    ("package a.b;\npublic final class X { static public void main(String... a) {} }", "a.b.X", "X.java"),
    ("class Helper { int main; }\nclass App { public static void main(String[] a) {} }", "App", "App.java"),
    (
        "// public class No { void main(\n/* public class Nor { */ class A { public static void main(String[] a) {} }",
        "A",
        "A.java",
    ),
    ('class A { String s = "public class B { static void main("; }\npublic enum C { D }', "C", "C.java"),
    ("public class Out { static class In { } public static void main(String[] a) {} }", "Out", "Out.java"),
    ("public interface I { static void main(String[] a) {} }", "I", "I.java"),
    ('class T { String s = """\n  public class U { " } """; public static void main(String[] a) {} }', "T", "T.java"),
    ("", "Main", "Main.java"),
]


@pytest.mark.parametrize(("text", "main", "file"), JAVA)
def test_java_files_and_classes_are_found(text: str, main: str, file: str) -> None:
    assert java_names(text) == (main, file)


def test_java_names_of_hostile_text_come_at_once() -> None:
    pieces = (
        '"',
        "/*",
        "public ",
        "class a {",
        "'\\",
        '"""\\',
        "class a ",
        "\n",
        "package a",
        "void ",
        "void main",
        "{",
        " ",
    )
    for piece in pieces:
        main, file = java_names(piece * (400_000 // len(piece)))
        assert re.fullmatch(r"\w+", main)
        assert re.fullmatch(r"\w+\.java", file)


def test_java_runs_under_any_name(plain: Sandbox) -> None:
    text = (
        "package deep.er;\nrecord Pair(int a, int b) {}\nclass Helper { static int two() { return 2; } }\n"
        "public class Anything { public static void main(String[] a) { System.out.println(a[0] + Helper.two()); } }\n"
    )
    assert run(program("java", text, plain), plain, LIMITS, b"", "x").stdout == b"x2\n"


def test_java_recurses_deeper_than_its_default(plain: Sandbox) -> None:
    text = "class Main { static int d(int n) { return n == 0 ? 0 : 1 + d(n - 1); }\n"
    text += "public static void main(String[] a) { System.out.println(d(100000)); } }"
    assert run(program("java", text, plain), plain).stdout == b"100000\n"


# Builds -----------------------------------------------------------------------------------------------------------


def built_by(sandbox: Sandbox, *steps: str, seconds: float = 20.0, **fields: object) -> Built:
    request = Build(steps=tuple(("sh", "-c", step) for step in steps), **fields)  # type: ignore[arg-type]
    return asyncio.run(build(request, sandbox, build_policy(LIMITS, seconds)))


def contents(how: Built) -> dict[str, str]:
    assert how.folder is not None, how
    return {p.relative_to(how.folder).as_posix(): p.read_text() for p in how.folder.rglob("*") if p.is_file()}


def test_a_build_of_several_steps_hands_back_new_files_only(plain: Sandbox) -> None:
    how = built_by(plain, "echo 1 > a; mkdir out/deep", "cat a in > out/deep/b", files={"in": b"2\n"})
    assert contents(how) == {"deep/b": "1\n2\n"}
    assert how.codes == (0, 0)
    assert how.folder is not None
    assert os.access(how.folder / "deep" / "b", os.X_OK)


def test_a_build_beside_its_files_cannot_change_them(plain: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("inner\n")
    (tmp_path / "script").write_text("#!/bin/sh\n")
    (tmp_path / "script").chmod(0o755)
    step = (
        "echo changed > kept; rm -r folder; echo file > folder; echo bad > script; rm given; mkdir given; "
        "echo x > given/x; ln -s /etc/passwd link; mkfifo pipe; echo new > new"
    )
    how = built_by(plain, step, workspace=tmp_path, files={"given": b"given\n"}, outputs=".")
    found = contents(how)
    assert found == {
        "kept": "kept\n",
        "folder/inner": "inner\n",
        "script": "#!/bin/sh\n",
        "given": "given\n",
        "new": "new\n",
    }
    assert how.folder is not None
    assert os.access(how.folder / "script", os.X_OK)
    assert (tmp_path / "kept").read_text() == "kept\n"


def test_everything_that_decides_a_build_is_part_of_its_identity(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    plain = {"steps": (("cc",),), "files": {"a": b"1"}}
    variants = [
        {},
        {"steps": (("cc", "-O"),)},
        {"steps": (("cc",), ("cc",))},
        {"files": {"a": b"2"}},
        {"files": {"b": b"1"}},
        {"outputs": "."},
        {"env": {"A": "1"}},
        {"tools": ("cc 2",)},
        {"workspace": tmp_path},
    ]
    names = [Build(**{**plain, **variant}).identity() for variant in variants]  # type: ignore[arg-type]
    assert len(set(names)) == len(names)
    assert names[0] == Build(**plain).identity()  # type: ignore[arg-type]


def test_builds_that_want_too_much_end(plain: Sandbox) -> None:
    assert built_by(plain, "sleep 60", seconds=0.4).outcome.end == "timeout"  # type: ignore[union-attr]
    flood = built_by(plain, "for i in 1 2 3 4 5; do head -c 60000000 /dev/zero > out/$i; done")
    assert flood.folder is None
    assert flood.outcome is not None
    assert flood.outcome.end in ("output", "disk", "exited")
    assert built_by(plain, "kill -9 $PPID").folder is None
    assert built_by(plain, "exit 3").codes == (3,)
    many = built_by(plain, "cd out; i=0; while [ $i -lt 11000 ]; do : > $i; i=$((i+1)); done")
    assert many.folder is None
    assert "10,000" in many.problem


def test_a_missing_command_is_not_the_programs_fault_a_missing_product_is(plain: Sandbox) -> None:
    policy = build_policy(LIMITS, 10.0)
    tool = asyncio.run(build(Build(steps=(("no-such-tool", "x"),)), plain, policy))
    assert (tool.folder, tool.missing) == (None, "no-such-tool")
    product = asyncio.run(build(Build(steps=(("./product",),)), plain, policy))
    assert (product.folder, product.missing, product.codes) == (None, "", (127,))


def test_a_build_cannot_reach_the_result_channel(plain: Sandbox) -> None:
    forged = json.dumps({"files": [["program", 1]]})
    how = built_by(plain, f"for n in 3 4 5 6 7; do ( echo '{forged}' >&$n ) 2>/dev/null; done; echo real > out/program")
    assert contents(how) == {"program": "real\n"}


HOSTILE = [
    b'{"ready": true}\n{"code": 0}\n{"files": [["../up", 1]]}\nx',
    b'{"ready": true}\n{"code": 0}\n{"files": [["/abs", 1]]}\nx',
    b'{"ready": true}\n{"code": 0}\n{"files": [["a", 1], ["a", 1]]}\nxx',
    b'{"ready": true}\n{"code": 0}\n{"files": [["a", 99]]}\nx',
    b'{"ready": true}\n{"code": 0}\n{"files": [["a", -1]]}\nx',
    b'{"ready": true}\n{"code": 0}\n{"files": [["a", true]]}\nx',
    b'{"ready": true}\n{"code": 0}\n{"files": [["", 1]]}\nx',
    b'{"ready": true}\n{"code": 0}\n{"files": {"a": 1}}\nx',
    b'{"ready": true}\n{"code": 0}\n{"files": 3}\n',
    b'{"ready": true}\n{"code": "x"}\n',
    b"[]\n",
    b"3\n",
    b"[" * 100_000,
    b"\xff\n",
]


@pytest.mark.parametrize("report", HOSTILE, ids=range(len(HOSTILE)))
def test_a_forged_report_gives_no_file(report: bytes) -> None:
    read = building._read(report)
    assert read.files is None
    assert read.built.problem


@given(st.binary(max_size=200))
def test_no_report_raises(data: bytes) -> None:
    building._read(data)
    building._read(b'{"ready": true}\n{"code": 0}\n' + data)
    building._read(b'{"files": ' + data)


def test_names_that_are_both_file_and_folder_are_a_problem_of_the_build(tmp_path: Path, cache: Path) -> None:
    from codemill.core.errors import InputError

    with pytest.raises(InputError, match="both a file and a folder"):
        building._keep(tmp_path / "0" / "name", {"a": (b"", False), "a/b": (b"", False)})
    assert list((tmp_path / "0").iterdir()) == []


def test_who_comes_second_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "0" / "name"
    building._keep(folder, {"a": (b"first", False)})
    building._keep(folder, {"a": (b"second", False)})
    assert (folder / "files" / "a").read_bytes() == b"first"
    assert [path.name for path in folder.parent.iterdir()] == ["name"]


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_SHARD_BYTES", 2500)
    for number in range(4):
        folder = tmp_path / "0" / str(number)
        building._keep(folder, {"a": (bytes(1000), False)})
        os.utime(folder, (1000 + number, 1000 + number))
    building._keep(tmp_path / "0" / "last", {"a": (bytes(1000), False)})
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == ["3", "last"]
    for number in range(3):  # what is in use stays, whatever its size
        building._keep(tmp_path / "0" / f"used{number}", {"a": (bytes(1000), False)})
    assert {"last", "used0", "used1", "used2"} <= {path.name for path in (tmp_path / "0").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_address_space_can_be_left_unlimited_but_not_what_is_written_to(plain: Sandbox) -> None:
    code = """
import mmap
reserved = mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
print("reserved", flush=True)
mmap.mmap(-1, 8 << 30, flags=mmap.MAP_PRIVATE)
"""
    policy = replace(LIMITS, address_space=False)
    outcome = plain.run_blocking(Job(argv=python_argv("main.py"), files={"main.py": code.encode()}, policy=policy))
    assert outcome.stdout == b"reserved\n"
    assert b"Cannot allocate memory" in outcome.stderr
