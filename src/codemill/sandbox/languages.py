"""The languages in which programs are verified: how a program of one source file is built and run in each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from codemill.core.errors import ConfigError, nearest
from codemill.sandbox.plan import python_argv

OUTPUTS = "out"  # the folder, in a build's working folder, whose files are what was built
_MANY_TASKS = 64  # runtimes that start a dozen threads of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """How a program of one source file is built and run.

    `tools`: the tools it needs, each with its alternatives in order of preference.
    `build`, `run`: commands; in both, `{name}` is the path of the tool of that name (the first of its alternatives),
        `{source}` the file's name, `{main}` its name without extension (the main class in Java), `{heap}` MiB for a
        collected heap. In `run`, `{built}` is the folder of what was built.
    `obtain`: where the tools come from, for who lacks them.
    `address_space`: as in `Policy`.
    `start_seconds`: what its runtime may take before and after the program proper, on top of a time limit.
    `options`: variables that bound its tools where the commands that start them are not `build` and `run`.
    `out_of_memory`: what its runtime says on standard error when it gives up for lack of memory.
    """

    name: str
    source: str
    tools: tuple[tuple[str, ...], ...] = ()
    build: tuple[tuple[str, ...], ...] = ()
    run: tuple[str, ...]
    obtain: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    address_space: bool = True
    processes: int = 32
    start_seconds: float = 0.5
    out_of_memory: str = r"(?!)"


_NODE_FLAGS = ("--max-old-space-size={heap}", "--v8-pool-size=1")
_NODE_MEMORY = r"JavaScript heap out of memory|allocation failed|process out of memory"
_TSC = ("--noCheck", "--pretty", "false", "--target", "es2022", "--module", "commonjs", "--outDir", OUTPUTS, "{source}")
_JVM = ("-XX:+UseSerialGC", "-XX:-UsePerfData", "-XX:ReservedCodeCacheSize=64m")
_JAVAC = ("-J-Xmx{heap}m", *("-J" + flag for flag in _JVM), "-J-XX:TieredStopAtLevel=1")

_NODE = Language(
    name="javascript",
    source="main.js",
    tools=(("node", "nodejs"),),
    run=("{node}", *_NODE_FLAGS, "{source}"),
    obtain="install Node.js 18 or newer",
    env={"UV_THREADPOOL_SIZE": "2", "NODE_DISABLE_COMPILE_CACHE": "1", "OPENSSL_CONF": "/dev/null"},
    options={"NODE_OPTIONS": "--max-old-space-size={heap}"},
    address_space=False,
    processes=_MANY_TASKS,
    out_of_memory=_NODE_MEMORY,
)
_TYPESCRIPT = replace(
    _NODE,
    name="typescript",
    source="main.ts",
    tools=(*_NODE.tools, ("tsc",)),
    build=(("{node}", "{tsc}", *_TSC),),
    run=("{node}", *_NODE_FLAGS, "{built}/main.js"),
    obtain="install Node.js and `npm install --global typescript` (5.6 or newer), or a Node.js that transforms types",
)

LANGUAGES: Mapping[str, Language] = {
    language.name: language
    for language in (
        Language(name="python", source="main.py", run=python_argv("{source}")),
        _NODE,
        _TYPESCRIPT,
        Language(
            name="bash",
            source="main.sh",
            tools=(("bash",),),
            run=("{bash}", "--noprofile", "--norc", "{source}"),
            obtain="install bash",
            out_of_memory=r"xrealloc: cannot allocate|xmalloc: cannot allocate",
        ),
        Language(
            name="c",
            source="main.c",
            tools=(("gcc", "clang", "cc"),),
            build=(("{gcc}", "-std=gnu17", "-O2", "-o", f"{OUTPUTS}/program", "{source}", "-lm"),),
            run=("{built}/program",),
            obtain="install gcc or clang",
        ),
        Language(
            name="c++",
            source="main.cpp",
            tools=(("g++", "clang++", "c++"),),
            build=(("{g++}", "-std=gnu++20", "-O2", "-o", f"{OUTPUTS}/program", "{source}"),),
            run=("{built}/program",),
            obtain="install g++ (10 or newer) or clang++",
        ),
        Language(
            name="java",
            source="Main.java",
            tools=(("javac",),),
            build=(("{javac}", *_JAVAC, "-proc:none", "-encoding", "UTF-8", "-d", OUTPUTS, "{source}"),),
            run=("{java}", "-Xmx{heap}m", "-Xss16m", *_JVM, "-cp", "{built}", "{main}"),
            obtain="install a JDK, 17 or newer",
            options={"JAVA_TOOL_OPTIONS": "-Xmx{heap}m -XX:+UseSerialGC -XX:-UsePerfData"},
            address_space=False,
            processes=_MANY_TASKS,
            start_seconds=2.0,
            out_of_memory=r"java\.lang\.OutOfMemoryError: (?!unable to create)|insufficient memory for the Java Runtime",
        ),
        Language(
            name="go",
            source="main.go",
            tools=(("go",),),
            build=(
                ("{compile}", "-p", "main", "-importcfg", "{std}/importcfg", "-pack", "-o", "main.a", "{source}"),
                ("{link}", "-importcfg", "{std}/importcfg", "-s", "-w", "-o", f"{OUTPUTS}/program", "main.a"),
            ),
            run=("{built}/program",),
            obtain="install Go 1.18 or newer",
            env={"GOMEMLIMIT": "{heap}MiB", "GOMAXPROCS": "2"},
            address_space=False,
            processes=_MANY_TASKS,
            out_of_memory=r"runtime: out of memory|runtime: cannot allocate memory|fatal error: out of memory",
        ),
        Language(
            name="rust",
            source="main.rs",
            tools=(("rustc",), ("cc", "gcc", "clang")),
            build=(
                (
                    *("{rustc}", "--edition", "2021", "-O", "-C", "strip=symbols", "-C", "codegen-units=1"),
                    # The linker that newer versions bring along does not start without /proc.
                    *("-C", "linker={cc}", "-C", "link-arg=-fuse-ld=bfd"),
                    *("-o", f"{OUTPUTS}/program", "{source}"),
                ),
            ),
            run=("{built}/program",),
            obtain="install rustc and a C compiler, which links for it",
            out_of_memory=r"memory allocation of \d+ bytes failed",
        ),
    )
}


def language_of(name: str) -> Language:
    """The language of that name. Raises `ConfigError` for another."""
    try:
        return LANGUAGES[name]
    except KeyError:
        raise ConfigError(f"language {name!r} cannot be run; {nearest(name, LANGUAGES)}") from None


# Java names its files after their classes -------------------------------------------------------------------------

# Each pattern takes time in proportion to the text, whatever that is: nothing that fails is tried over from within.
_JAVA_NOISE = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\Z)|"(?:\\.|[^"\\\n])*"?|'
    r"'(?:\\.|[^'\\\n])*'?|//[^\n]*|/\*.*?(?:\*/|\Z)",
    re.DOTALL,
)
_JAVA_PACKAGE = re.compile(r"^[ \t]*package[ \t]+([\w.]+)[ \t]*;", re.MULTILINE)
_JAVA_TYPE = re.compile(r"\b(?:class|interface|enum|record)[ \t\n]+(\w+)")
_JAVA_MAIN = re.compile(r"\bvoid[ \t\n]+main[ \t\n]*\(")
_MODIFIERS = 200  # characters before a type's keyword that may hold its modifiers


def java_names(text: str) -> tuple[str, str]:
    """The main class of a program and the name that its file must have.

    The file is named after its public type; the main class is the last top-level type that begins before the first
    `main` method. Where there is neither, both are `Main`.
    """
    code = _JAVA_NOISE.sub(" ", text)
    package = _JAVA_PACKAGE.search(code)
    tops = _top_level_types(code)
    public = next((name for _, name, is_public in tops if is_public), None)
    main = _JAVA_MAIN.search(code)
    before = [name for start, name, _ in tops if main and start < main.start()]
    chosen = before[-1] if before else public or "Main"
    return (f"{package[1]}.{chosen}" if package else chosen), f"{public or chosen}.java"


def _top_level_types(code: str) -> list[tuple[int, str, bool]]:
    """Position and name of each type outside of all braces, and whether it is public."""
    found, depth, place = [], 0, 0
    for match in _JAVA_TYPE.finditer(code):
        depth += code.count("{", place, match.start()) - code.count("}", place, match.start())
        place = match.start()
        if depth == 0:
            modifiers = re.split(r"[;{}]", code[max(0, place - _MODIFIERS) : place])[-1]
            found.append((place, match[1], "public" in modifiers.split()))
    return found
