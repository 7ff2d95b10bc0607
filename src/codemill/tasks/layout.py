"""How a repository is laid out, read from its files only: import roots, test settings, which files are the judge's.

Nothing of the repository runs here: configuration is parsed as TOML, INI and Python literals, never imported.
"""

from __future__ import annotations

import configparser
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

CONTROL_NAMES = frozenset(
    {
        "conftest.py",
        "pytest.ini",
        ".pytest.ini",
        "pytest.toml",
        ".pytest.toml",
        "tox.ini",
        "setup.cfg",
        "pyproject.toml",
    }
    | {"sitecustomize.py", "usercustomize.py", "setup.py", "noxfile.py", "pytest.py", "doctest.py", "unittest.py"}
)
CONTROL_SUFFIXES = frozenset({".pth", ".pyc"})
TEST_FOLDERS = frozenset({"tests", "test"})
NOT_IMPORTED = frozenset(
    {"docs", "doc", "examples", "example", "benchmarks", "benchmark", "scripts", "tools", ".github"}
)


def is_control(path: str) -> bool:
    """Whether a file decides how answers are judged: tests and their helpers, test settings, start-up hooks.

    Such files always come from the pristine repository, are never the subject of a task, and must be unchanged
    when the tests have ended.
    """
    parts = PurePosixPath(path).parts
    name = parts[-1]
    return (
        name in CONTROL_NAMES
        or PurePosixPath(name).suffix in CONTROL_SUFFIXES
        or re.fullmatch(r"test_.*\.py|.*_test\.py|tests?\.py", name) is not None
        or any(part in TEST_FOLDERS or part.endswith((".egg-info", ".dist-info")) for part in parts[:-1])
    )


def is_program_file(path: str) -> bool:
    """Whether a Python file belongs to the program itself: no test, no documentation, no script."""
    parts = PurePosixPath(path).parts
    return path.endswith(".py") and not is_control(path) and not NOT_IMPORTED.intersection(parts[:-1])


@dataclass(frozen=True, slots=True)
class Layout:
    """`roots` are the import roots, POSIX and relative, most specific first; `doctest_flags` names of `doctest`;
    `pytest_args` what is kept of the repository's own command line (its import mode and plugins)."""

    roots: tuple[str, ...]
    doctest_flags: tuple[str, ...]
    pytest_args: tuple[str, ...]

    def module_of(self, path: str) -> str | None:
        """Dotted name of a Python file, None where it cannot be imported by name."""
        for root in self.roots:
            inside = path if root == "." else path.removeprefix(root + "/") if path.startswith(root + "/") else None
            if inside is None:
                continue
            parts = list(PurePosixPath(inside).with_suffix("").parts)
            if parts[-1] == "__init__":
                parts.pop()
            if parts and all(part.isidentifier() for part in parts) and parts[-1] != "__main__":
                return ".".join(parts)
            return None
        return None


@lru_cache(maxsize=256)
def read_layout(workspace: Path) -> Layout:
    """The layout of a pristine repository folder. What cannot be read is treated as not there."""
    pyproject = read_toml(workspace / "pyproject.toml")
    settings = _pytest_settings(workspace, pyproject)
    return Layout(
        roots=_roots(workspace, pyproject),
        doctest_flags=tuple(flag for flag in _words(settings.get("doctest_optionflags")) if flag.isupper()),
        pytest_args=_kept_arguments(_words(settings.get("addopts"))),
    )


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}


def read_ini(path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error):
        return {}
    return {section: dict(parser[section]) for section in parser.sections()}


def table(data: Any, *keys: str) -> dict[str, Any]:
    """A nested table of parsed TOML, empty where it is missing or something else."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _pytest_settings(workspace: Path, pyproject: dict[str, Any]) -> dict[str, Any]:
    """The first settings found, in pytest's own order of files."""
    for name in ("pytest.ini", ".pytest.ini"):
        found = read_ini(workspace / name).get("pytest")
        if found is not None:
            return dict(found)
    if found := table(pyproject, "tool", "pytest", "ini_options") or table(pyproject, "tool", "pytest"):
        return found
    for name, section in (("tox.ini", "pytest"), ("setup.cfg", "tool:pytest")):
        if ini := read_ini(workspace / name).get(section):
            return dict(ini)
    return {}


def _words(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [word for word in value if isinstance(word, str)] if isinstance(value, list) else []


def _kept_arguments(words: list[str]) -> tuple[str, ...]:
    """Of `addopts` only what changes how tests are imported; reports, coverage and parallel runs are left out."""
    kept: list[str] = []
    pairs = zip(words, [*words[1:], ""], strict=False)
    for word, following in pairs:
        if word.startswith("--import-mode="):
            kept.append(word)
        elif word == "--import-mode" or (word == "-p" and re.fullmatch(r"[\w.]+", following)):
            kept += [word, following]
    return tuple(kept)


def _roots(workspace: Path, pyproject: dict[str, Any]) -> tuple[str, ...]:
    """Declared package folders, `src` where it holds Python, and the repository's own folder last."""
    setup = read_ini(workspace / "setup.cfg")
    declared = [
        *_words(table(pyproject, "tool", "setuptools", "packages", "find").get("where")),
        table(pyproject, "tool", "setuptools", "package-dir").get(""),
        *_words(setup.get("options.packages.find", {}).get("where")),
        *re.findall(r"(?m)^\s*=\s*(\S+)\s*$", setup.get("options", {}).get("package_dir", "")),
        "src",
    ]
    roots = []
    for name in declared:
        root = PurePosixPath(name) if isinstance(name, str) and name else None
        if root is None or root.is_absolute() or ".." in root.parts or str(root) == "." or str(root) in roots:
            continue
        folder = workspace / root
        if not (folder / "__init__.py").exists() and any(folder.rglob("*.py")):
            roots.append(str(root))
    return (*roots, ".")
