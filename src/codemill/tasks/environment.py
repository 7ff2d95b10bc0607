"""A repository's dependencies, installed once as wheels into the user's cache.

What is needed is read from files only: PKG-INFO, pyproject.toml, setup.cfg, requirement files of tests, and the
literals of setup.py's call (parsed, never run). Each requirement must be a plain PEP 508 name with versions: addresses
and pip options are refused. pip installs built wheels and nothing else, so no build script of anybody runs.
"""

from __future__ import annotations

import ast
import compileall
import email.parser
import os
import platform
import py_compile
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from codemill.core.artifact import fingerprint, is_finished, read_manifest, write_manifest
from codemill.core.errors import InputError, UnavailableError
from codemill.core.paths import atomic_folder, cache_dir, locked, safe_relative
from codemill.tasks.functions import parse
from codemill.tasks.layout import read_ini, read_toml, table

TEST_GROUPS = ("test", "tests", "testing")
FALLBACK_GROUPS = ("dev", "develop", "development")  # only where no test group is declared
TEST_REQUIREMENT_FILES = (
    *("requirements-test.txt", "requirements-tests.txt", "requirements-testing.txt", "test-requirements.txt"),
    *("requirements_test.txt", "requirements/test.txt", "requirements/tests.txt", "requirements/testing.txt"),
)
PIP_SECONDS = 900
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What a repository declares. `name` is its own distribution name, empty when unknown; both lists are sorted."""

    name: str
    requirements: tuple[str, ...]
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Environment:
    """An installed set of dependencies: a read-only folder to put on the import path."""

    id: str
    folder: Path
    installed: tuple[str, ...]


def environment_folder(identity: str) -> Path:
    """Where an environment lies, installed or not."""
    safe_relative(identity, "environment id")
    return cache_dir() / "environments" / identity


def declared_dependencies(workspace: Path) -> Dependencies:
    """The run-time and test requirements of a repository that hold on this interpreter, plus pytest.

    Raises `InputError` when a run-time requirement is refused (an address, an option, not PEP 508); a refused test
    requirement is only listed.
    """
    pyproject = read_toml(workspace / "pyproject.toml")
    setup = read_ini(workspace / "setup.cfg")
    call = _setup_call(workspace / "setup.py")
    info = _package_info(workspace)
    name = str(
        table(pyproject, "project").get("name") or setup.get("metadata", {}).get("name") or call.get("name") or ""
    )
    runtime = _runtime(pyproject, setup, call, info)
    accepted, refused = _validated(runtime, set())
    if refused:
        raise InputError(f"requirement {refused[0]!r} is not a plain name with versions, so it cannot be installed")
    tests, refused = _validated(_tests(workspace, pyproject, setup, call, info), set(TEST_GROUPS))
    own = canonicalize_name(name) if name else ""
    kept = [requirement for requirement in [*accepted, *tests] if canonicalize_name(requirement.name) != own]
    if not any(canonicalize_name(requirement.name) == "pytest" for requirement in kept):
        kept.append(Requirement("pytest"))
    texts = sorted({_plain(requirement) for requirement in kept})
    return Dependencies(own, tuple(texts), tuple(sorted(set(refused))))


def _plain(requirement: Requirement) -> str:
    """Name, extras and versions; the marker has been evaluated."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{canonicalize_name(requirement.name)}{extras}{requirement.specifier}"


def _validated(texts: Iterable[str], extras: set[str]) -> tuple[list[Requirement], list[str]]:
    """Requirements that hold here, and the texts that are not requirements we accept."""
    accepted, refused = [], []
    for text in texts:
        try:
            requirement = Requirement(text.split(" #")[0].strip())
        except InvalidRequirement:
            refused.append(text[:200])
            continue
        if requirement.url:
            refused.append(text[:200])
        elif requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *sorted(extras))
        ):
            accepted.append(requirement)
    return accepted, refused


def _package_info(workspace: Path) -> list[str]:
    """`Requires-Dist` of the metadata that a source archive carries."""
    for path in [workspace / "PKG-INFO", *sorted(workspace.glob("*.egg-info/PKG-INFO"))]:
        try:
            message = email.parser.Parser().parsestr(path.read_text(encoding="utf-8"), headersonly=True)
        except (OSError, ValueError):
            continue
        return [str(value) for value in message.get_all("Requires-Dist", [])]
    return []


def _runtime(
    pyproject: dict[str, Any], setup: dict[str, dict[str, str]], call: dict[str, Any], info: list[str]
) -> list[str]:
    declared = _strings(table(pyproject, "project").get("dependencies"))
    declared += _lines(setup.get("options", {}).get("install_requires", ""))
    declared += _strings(call.get("install_requires"))
    return declared + [text for text in info if "extra ==" not in text]


def _tests(
    workspace: Path, pyproject: dict[str, Any], setup: dict[str, dict[str, str]], call: dict[str, Any], info: list[str]
) -> list[str]:
    found = [text for text in info if re.search(r"extra == ['\"](tests?|testing)['\"]", text)]
    found += _lines(setup.get("options", {}).get("tests_require", "")) + _strings(call.get("tests_require"))
    optional = table(pyproject, "project", "optional-dependencies")
    groups = table(pyproject, "dependency-groups")
    extras = setup.get("options.extras_require", {})
    called = call.get("extras_require")
    for names in (TEST_GROUPS, FALLBACK_GROUPS):
        for name in names:
            found += _strings(optional.get(name)) + _group(groups, name, 0) + _lines(extras.get(name, ""))
            found += _strings(called.get(name)) if isinstance(called, dict) else []
        for file in TEST_REQUIREMENT_FILES if names is TEST_GROUPS else ():
            found += _requirement_file(workspace / file)
        if found:
            break
    return found


def _group(groups: dict[str, Any], name: str, depth: int) -> list[str]:
    """A PEP 735 group with the groups it includes."""
    found = []
    for entry in groups.get(name, []) if isinstance(groups.get(name), list) and depth < 8 else []:
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(entry, dict) and isinstance(entry.get("include-group"), str):
            found += _group(groups, entry["include-group"], depth + 1)
    return found


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return _lines(value)
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list | tuple) else []


def _lines(text: str) -> list[str]:
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def _requirement_file(path: Path) -> list[str]:
    """The requirements of a file; lines that are options (`-r`, `--index-url`) are left out, never followed."""
    try:
        return [line for line in _lines(path.read_text(encoding="utf-8")) if not line.startswith("-")]
    except (OSError, UnicodeDecodeError):
        return []


def _setup_call(path: Path) -> dict[str, Any]:
    """The literal keyword arguments of the `setup(...)` call in setup.py. The file is parsed, never run."""
    try:
        tree = parse(path.read_bytes().decode("utf-8"), str(path))
    except (OSError, UnicodeDecodeError, InputError):
        return {}
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "setup":
            for keyword in node.keywords:
                try:
                    found[keyword.arg or ""] = ast.literal_eval(keyword.value)
                except (ValueError, TypeError, MemoryError, RecursionError):
                    continue
    return found


def install(dependencies: Dependencies) -> Environment:
    """Install the requirements as wheels, or find them installed. Needs the network the first time.

    Raises `UnavailableError` with pip's reason when a wheel cannot be had.
    """
    key = {
        "requirements": list(dependencies.requirements),
        "own": dependencies.name,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "format": FORMAT,
    }
    identity = fingerprint(key)
    folder = environment_folder(identity)
    with locked(folder.parent / f"{identity}.lock"):
        if not is_finished(folder):
            with atomic_folder(folder) as temporary:
                wanted = dependencies.requirements
                options = ("--target", str(temporary), "--no-compile", "--no-warn-conflicts")
                run_pip("install", *options, "--", *wanted, wanted=", ".join(wanted))
                _remove_own(temporary, dependencies.name)
                _compile(temporary)
                installed = _installed(temporary)
                write_manifest(temporary, kind="environment", config=key, facts={"installed": installed})
                _make_read_only(temporary)
    return Environment(identity, folder, tuple(read_manifest(folder)["facts"]["installed"]))


def run_pip(*arguments: str, wanted: str) -> None:
    """Run the user's own pip, built wheels only. Raises `UnavailableError` with its reason; `wanted` says what for."""
    options = ("--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet")
    command = [sys.executable, "-m", "pip", arguments[0], *options, *arguments[1:]]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, timeout=PIP_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"pip took longer than {PIP_SECONDS} s for {wanted}") from None
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise UnavailableError(f"{sys.executable} has no pip; add it with: {sys.executable} -m ensurepip")
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or [f"exit code {done.returncode}"]
    raise UnavailableError(f"no wheels for {wanted}: {errors[-1].removeprefix('ERROR: ')[:300]}")


def _remove_own(folder: Path, name: str) -> None:
    """Take out a released copy of the repository itself, which some dependency asked for: it holds the answers."""
    for distribution in metadata.distributions(path=[str(folder)]):
        if name and canonicalize_name(distribution.metadata["Name"] or "") == name:
            for file in distribution.files or []:
                path = Path(str(distribution.locate_file(file))).resolve()
                if path.is_relative_to(folder.resolve()):
                    path.unlink(missing_ok=True)


def _compile(folder: Path) -> None:
    """Byte code beside the sources, for start-up time; the folder never changes, so it needs no checks."""
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(folder, quiet=2, invalidation_mode=mode, workers=1, stripdir=str(folder))


def _installed(folder: Path) -> list[str]:
    found = metadata.distributions(path=[str(folder)])
    return sorted(f"{canonicalize_name(one.metadata['Name'] or '')}=={one.version}" for one in found)


def _make_read_only(folder: Path) -> None:
    """Files only: a cache whose folders cannot be written cannot be deleted by its owner either."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.chmod(path, path.stat().st_mode & ~0o222 | 0o444)
