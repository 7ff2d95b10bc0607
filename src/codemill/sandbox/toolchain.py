"""Finding a language's tools on this machine.

They are looked for on the user's PATH and asked, outside the jail, who they are and where they are installed. A job that
uses them is shown that place and nothing else of the user's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from codemill.core.artifact import fingerprint
from codemill.core.errors import UnavailableError
from codemill.core.paths import atomic_folder, cache_dir, locked
from codemill.sandbox.languages import LANGUAGES, Language, language_of
from codemill.sandbox.plan import base_python
from codemill.sandbox.policy import MIB, Policy

_SYSTEM = ("/usr/", "/lib", "/bin/", "/sbin/")  # every job sees these
_PATH = "/usr/local/bin:/usr/bin:/bin"
_ASK_SECONDS = 60.0
_LIBRARY_SECONDS = 1800.0
_HEAP_SHARE = 0.75  # of the memory limit, so that a collector works before the watcher kills


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """A language and its tools on this machine.

    `tools`: path of each by name. `trees`: what a job must be able to read to use them. `folders`: for its PATH.
    `version`: what the tools say they are; part of the identity of what they build. `self_exe`: as in `Job`.
    """

    language: Language
    tools: Mapping[str, str]
    trees: tuple[Path, ...] = ()
    folders: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    self_exe: Path | None = None

    def limited(self, policy: Policy) -> Policy:
        """A policy under which these tools, and what they build, can run at all."""
        language = self.language
        processes = max(policy.processes, language.processes)
        return replace(policy, address_space=policy.address_space and language.address_space, processes=processes)

    def environment(self, memory_bytes: int) -> dict[str, str]:
        """Variables for a job that uses these tools under a memory limit."""
        heap = str(_heap(memory_bytes))
        path = {"PATH": ":".join((*self.folders, _PATH))} if self.folders else {}
        return {**path, **{key: value.replace("{heap}", heap) for key, value in self.language.env.items()}, **self.env}

    def argv(self, command: tuple[str, ...], memory_bytes: int, **values: str) -> tuple[str, ...]:
        """A command of the language with its placeholders filled in."""
        values = {**self.tools, "source": self.language.source, "heap": str(_heap(memory_bytes)), **values}
        return tuple(re.sub(r"\{([a-z+]+)\}", lambda match: values[match[1]], word) for word in command)


def together(toolchains: Sequence[Toolchain]) -> Toolchain:
    """Several toolchains (or none) as one, for jobs whose commands use the tools of each."""
    languages = [toolchain.language for toolchain in toolchains]
    env: dict[str, str] = {}
    for toolchain in toolchains:
        for key, value in toolchain.env.items():
            env[key] = f"{env[key]}:{value}" if key in env else value
    shared = Language(
        name=" and ".join(language.name for language in languages),
        source="",
        run=(),
        env={key: value for each in languages for key, value in (*each.env.items(), *each.options.items())},
        address_space=all(language.address_space for language in languages),
        processes=max((language.processes for language in languages), default=32),
        out_of_memory="|".join(language.out_of_memory for language in languages) or r"(?!)",
    )
    return Toolchain(
        language=shared,
        tools={},
        trees=tuple(dict.fromkeys(tree for toolchain in toolchains for tree in toolchain.trees)),
        folders=tuple(dict.fromkeys(folder for toolchain in toolchains for folder in toolchain.folders)),
        env=env,
        version="\n".join(toolchain.version for toolchain in toolchains),
        self_exe=next((toolchain.self_exe for toolchain in toolchains if toolchain.self_exe), None),
    )


def _heap(memory_bytes: int) -> int:
    return max(16, int(_HEAP_SHARE * memory_bytes / MIB))


def find_toolchain(name: str) -> Toolchain:
    """The tools of a language, looked for on PATH; kept for the process once found.

    Raises `ConfigError` for a language that is not known and `UnavailableError` that names the tool which is missing.
    Go's first use compiles its standard library into the cache, which takes about a minute.
    """
    return _find(language_of(name).name, os.environ.get("PATH", os.defpath), str(cache_dir()))


@lru_cache(maxsize=64)
def _find(name: str, path: str, cache: str) -> Toolchain:
    language = LANGUAGES[name]
    found = {}
    for names in language.tools:
        try:
            found[names[0]] = _which(language, names, path)
        except UnavailableError:
            if language.name == "typescript" and names == ("tsc",):
                return _typescript_by_node(language, found["node"])
            raise
    match language.name:
        case "python":
            return _toolchain(language, {"python3": base_python()}, (), sys.version)  # every job can read it
        case "javascript" | "typescript":
            return _javascript(language, found)
        case "java":
            return _java(language, found)
        case "go":
            return _go(language, found, Path(cache))
        case "rust":
            return _rust(language, found)
        case _:
            (tool,) = found.values()
            return _toolchain(language, found, _installation(tool), _ask(language, tool, "--version"))


def _which(language: Language, names: tuple[str, ...], path: str) -> str:
    for name in names:
        if tool := shutil.which(name, path=path):
            return os.path.abspath(tool)
    wanted = " or ".join(names)
    raise UnavailableError(f"{language.name}: no {wanted} on PATH; {language.obtain}")


def _ask(language: Language, *argv: str, seconds: float = _ASK_SECONDS, **env: str) -> str:
    """What a tool of the user's says about itself. It runs in no project's folder: that could change its answer."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            cwd="/",
            env={**os.environ, **env},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{language.name}: {argv[0]} does not run: {error}; {language.obtain}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-300:].replace("\n", " | ")
        raise UnavailableError(f"{language.name}: `{' '.join(argv)}` failed: {said}; {language.obtain}")
    return (done.stdout or done.stderr).strip()


def _toolchain(
    language: Language, tools: Mapping[str, str], trees: tuple[Path, ...], version: str, **env: str
) -> Toolchain:
    folders = dict.fromkeys(os.path.dirname(tool) for tool in tools.values() if not tool.startswith(_SYSTEM))
    return Toolchain(
        language=language, tools=dict(tools), trees=trees, folders=tuple(folders), env=env, version=version
    )


def _installation(tool: str) -> tuple[Path, ...]:
    """What a tool outside the system's folders needs to be read: its prefix, or only itself in a prefix that it
    shares with a user's own files."""
    real = os.path.realpath(tool)
    own = tuple(Path(path) for path in dict.fromkeys((tool, real)) if not path.startswith(_SYSTEM))
    prefix = Path(real).parent.parent
    shared = (Path("/"), Path("/opt"), Path.home(), Path.home() / ".local")
    if real.startswith(_SYSTEM) or Path(real).parent.name != "bin" or prefix in shared:
        return own
    return (*own, prefix)


def _javascript(language: Language, found: dict[str, str]) -> Toolchain:
    node, _, version = _ask(language, found["node"], "-p", "process.execPath + ' ' + process.version").rpartition(" ")
    tools, trees = {**found, "node": node}, _installation(node)
    if "tsc" in found:
        tools["tsc"] = os.path.realpath(found["tsc"])
        typescript = _ask(language, node, tools["tsc"], "--version")
        if [int(number) for number in re.findall(r"\d+", typescript)[:2]] < [5, 6]:
            raise UnavailableError(f"typescript: {found['tsc']} is {typescript}; {language.obtain}")
        parents = Path(tools["tsc"]).parents
        modules = next((parent for parent in parents if parent.name == "node_modules"), parents[1])
        trees += () if str(modules).startswith(_SYSTEM) else (modules,)
        version += " " + typescript
        native = sorted(modules.glob("@typescript/typescript-*/lib/tsc"))
        if native:  # from version 7 on `tsc` only starts this one
            _, _, *arguments = language.build[0]
            language = replace(language, build=(("{tsc}", *arguments),))
            tools["tsc"] = str(native[0])
            return replace(_toolchain(language, tools, trees, version), self_exe=native[0])
    return _toolchain(language, tools, trees, version)


def _typescript_by_node(language: Language, node: str) -> Toolchain:
    """Without a compiler: Node.js can turn types into nothing by itself, from version 22.7 on."""
    flag = "--experimental-transform-types"
    if _ask(language, node, "-p", f"process.allowedNodeEnvironmentFlags.has('{flag}')") != "true":
        raise UnavailableError(f"typescript: no tsc on PATH; {language.obtain}")
    run = (*language.run[:-1], flag, "--disable-warning=ExperimentalWarning", "{source}")
    return _javascript(replace(language, build=(), run=run), {"node": node})


def _java(language: Language, found: dict[str, str]) -> Toolchain:
    """Compiler and runtime of one JDK: those on PATH may be of different versions."""
    javac = os.path.realpath(found["javac"])
    java = os.path.join(os.path.dirname(javac), "java")
    if not os.access(java, os.X_OK):
        raise UnavailableError(f"java: {javac} is not inside a JDK; put the JDK's own bin folder on PATH")
    home = Path(javac).parent.parent
    # Distributions keep the settings of a JDK elsewhere, behind links; without them it does not start.
    links = (
        home / "conf" / "security" / "java.security",
        home / "lib" / "jvm.cfg",
        home / "conf" / "logging.properties",
    )
    outside = {Path(os.path.realpath(link)).parent for link in links if link.is_symlink()}
    roots = [path for path in outside if not any(path.is_relative_to(other) for other in outside - {path})]
    trees = tuple(path for path in (home, *sorted(roots)) if not str(path).startswith(_SYSTEM))
    # A JDK finds its libraries by /proc, which the jail has not.
    libraries = f"{home}/lib:{home}/lib/server"
    version = _ask(language, java, "-version") or "unknown"
    return _toolchain(language, {"javac": javac, "java": java}, trees, version, LD_LIBRARY_PATH=libraries)


def _rust(language: Language, found: dict[str, str]) -> Toolchain:
    """The compiler itself: the one on PATH may be rustup's, which looks for the user's settings."""
    root = Path(_ask(language, found["rustc"], "--print", "sysroot"))
    rustc = str(root / "bin" / "rustc")
    if not os.access(rustc, os.X_OK):
        rustc = found["rustc"]
    trees = () if str(root).startswith(_SYSTEM) else (root,)
    version = _ask(language, rustc, "-vV") + "\n" + _ask(language, found["cc"], "--version").split("\n")[0]
    tools = {**found, "rustc": rustc}
    return _toolchain(
        language, tools, (*trees, *_installation(found["cc"])), version, LD_LIBRARY_PATH=str(root / "lib")
    )


def _go(language: Language, found: dict[str, str], cache: Path) -> Toolchain:
    """Go's compiler and linker, called as its own build does, with the standard library compiled beforehand: `go build`
    wants a cache that it can write to, and a jail must not write to what the next one reads."""
    go = found["go"]
    version = _ask(language, go, "version", GOTOOLCHAIN="local")
    where = _ask(language, go, "env", "GOROOT", "GOTOOLDIR", GOTOOLCHAIN="local").split("\n")
    root, folder = (Path(os.path.realpath(line)) for line in where)
    tools = {"go": str(root / "bin" / "go"), "compile": str(folder / "compile"), "link": str(folder / "link")}
    std = Path(os.path.realpath(cache / "go")) / fingerprint([version, str(root)])
    with locked(std.with_suffix(".lock")):
        if not (std / "importcfg").is_file():
            _compile_go_library(language, go, std)
    trees = tuple(path for path in (root, folder, std) if not str(path).startswith(_SYSTEM))
    found_tools = _toolchain(language, tools, trees, version)
    return replace(found_tools, tools={**found_tools.tools, "std": str(std)})


def _compile_go_library(language: Language, go: str, std: Path) -> None:
    with atomic_folder(std) as folder:
        scratch = folder / "scratch"
        settings = {"GOCACHE": str(scratch), "GOTOOLCHAIN": "local", "GO111MODULE": "off", "CGO_ENABLED": "0"}
        template = "{{if .Export}}{{.ImportPath}} {{.Export}}{{end}}"
        plain = {"GOFLAGS": "", "GOOS": "", "GOARCH": "", "GOEXPERIMENT": ""}
        command = (go, "list", "-export", "-f", template, "std")
        listing = _ask(language, *command, seconds=_LIBRARY_SECONDS, **settings, **plain)
        lines = []
        for number, line in enumerate(filter(None, listing.split("\n"))):
            name, _, archive = line.partition(" ")
            copy = f"{number}.a"
            shutil.copyfile(archive, folder / copy)
            lines.append(f"packagefile {name}={std / copy}\n")
        (folder / "importcfg").write_text("".join(lines))
        shutil.rmtree(scratch)
