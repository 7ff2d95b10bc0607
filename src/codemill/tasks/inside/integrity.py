"""Whether what a repository's tests rest on is still what it was: control files, plugins, the code of the test tools.

Tests run in the process that imported the answer, so this is no wall: an answer that walks to these objects gets round
them. It stops the ways that are tried: files that are rewritten and put back, plugins and start-up hooks left in the working
folder, patched test tools. Made before anything of the repository runs; `look` is called wherever something could be gained.
"""

from __future__ import annotations

import hashlib
import importlib
import os

TYPE_CHECKING = False  # spares the jail the import of typing; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

CONTROL_NAMES = (
    "conftest.py",
    "pytest.ini",
    ".pytest.ini",
    "pytest.toml",
    ".pytest.toml",
    "tox.ini",
    "setup.cfg",
    "pyproject.toml",
    "sitecustomize.py",
    "usercustomize.py",
)
START_UP_SUFFIXES = (".pth", ".pyc")
METADATA_SUFFIXES = (".dist-info", ".egg-info")
TOOLS = (
    "builtins",
    "doctest",
    "pytest",
    "unittest.case",
    "_pytest.outcomes",
    "_pytest.python",
    "_pytest.python_api",
    "_pytest.raises",
    "_pytest.reports",
    "_pytest.runner",
    "_pytest.skipping",
    "_pytest.unittest",
)
# Programs do replace these for good, for reasons of their own.
OFTEN_REPLACED = frozenset({"open", "print", "input", "help", "exit", "quit", "breakpoint", "__import__"})


class Files:
    """The working folder's control files, and which files were there at all."""

    def __init__(self, control: dict[str, str], watched: bool) -> None:
        self._control, self._watched = control, watched
        self._sha256, self._stat, self._walk, self._open = hashlib.sha256, os.stat, os.walk, open
        self._folder = os.getcwd()
        self._known = set(self._names()) if watched else set()
        self._states = {path: self._state(path) for path in control} if watched else {}

    def changed(self, contents: bool) -> str:
        """A control file that is not what it was, or a new one; '' when all is as it should be.

        Where files are watched, one that was changed and restored is noticed too, by the time of its last change, which a
        program cannot set. `contents`: look at those as well.
        """
        for path, state in self._states.items():
            if self._state(path) != state:
                return path
        if contents:
            for path, expected in self._control.items():
                if self._hash(path) != expected:
                    return path
        return next((path for path in self._names() if path not in self._control and self._decides(path)), "")

    def is_new(self, path: str) -> bool:
        """Whether a file inside the folder was not there in the beginning."""
        inside = os.path.realpath(path)
        return (
            self._watched
            and inside.startswith(self._folder + os.sep)
            and os.path.relpath(inside, self._folder) not in self._known
        )

    def _names(self) -> Iterator[str]:
        for folder, _, names in self._walk(self._folder):
            for name in names:
                yield os.path.relpath(os.path.join(folder, name), self._folder)

    def _decides(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if name == "entry_points.txt":
            return folder.endswith(METADATA_SUFFIXES) and path not in self._known
        return name in CONTROL_NAMES or name.endswith(START_UP_SUFFIXES)

    def _state(self, path: str) -> tuple[int, int, int] | None:
        try:
            found = self._stat(os.path.join(self._folder, path), follow_symlinks=False)
        except OSError:
            return None
        return found.st_ino, found.st_ctime_ns, found.st_size

    def _hash(self, path: str) -> str:
        try:
            with self._open(os.path.join(self._folder, path), "rb") as file:
                return self._sha256(file.read()).hexdigest()
        except OSError:
            return ""


class Code:
    """The functions and methods of the test tools, by identity."""

    def __init__(self, with_pytest: bool) -> None:
        self._modules = {}
        for name in TOOLS:
            if with_pytest or "pytest" not in name:
                try:
                    self._modules[name] = importlib.import_module(name)
                except ImportError:  # another version of pytest
                    continue
        self._before = dict(self._functions())

    def changed(self) -> str:
        """A function that is another one now, or a method that its class did not have; ''."""
        now, before = dict(self._functions()), self._before
        changed = (name for name, value in before.items() if now.get(name) is not value)
        added = (name for name in now if name not in before and name.rpartition(".")[0] in before)
        return next(changed, "") or next(added, "")

    def _functions(self) -> Iterator[tuple[str, Any]]:
        for module, loaded in self._modules.items():
            for name, value in list(vars(loaded).items()):
                if name in OFTEN_REPLACED or not callable(value):
                    continue
                yield f"{module}.{name}", value
                if isinstance(value, type) and value.__module__ == module and module != "builtins":
                    for part, method in list(vars(value).items()):
                        if callable(method) or isinstance(method, classmethod | staticmethod | property):
                            yield f"{module}.{name}.{part}", method


class Guard:
    """Remembers the first thing that was tampered with, in words. `watched`: there is an answer, so all is looked at;
    else control files must have their contents in the end."""

    def __init__(self, control: dict[str, str], watched: bool, with_pytest: bool) -> None:
        self.problem = ""
        self._files = Files(control, watched)
        self._code = Code(with_pytest) if watched else None

    def look(self, final: bool = False) -> None:
        if final or self._code is not None:
            path = self._files.changed(contents=final)
            if path:
                self.problem = self.problem or f"the control file {path} was changed while the tests ran"
        self.look_at_code()

    def look_at_code(self) -> None:
        name = self._code.changed() if self._code is not None and not self.problem else ""
        if name:
            self.problem = f"{name} was replaced while the tests ran"

    def look_at_plugin(self, plugin: object) -> None:
        file = getattr(plugin, "__file__", None)
        if isinstance(file, str) and self._files.is_new(file) and not self.problem:
            self.problem = f"pytest was given a plugin that the repository does not have: {os.path.basename(file)}"
