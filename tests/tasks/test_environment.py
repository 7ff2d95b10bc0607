"""Dependencies are read, never run, and come as wheels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tasks_support import write_files

from codemill.core.errors import InputError, UnavailableError
from codemill.tasks.environment import Dependencies, declared_dependencies, install
from codemill.tasks.layout import is_control, is_program_file, read_layout

FORMS = {
    "pyproject": {
        "pyproject.toml": "[project]\nname='me'\ndependencies=['six>=1', 'tomli; python_version < \"3\"']\n"
        "[project.optional-dependencies]\ntest=['pytest>=7', 'mock', 'me[x]']\ndocs=['sphinx']\n"
    },
    "groups": {
        "pyproject.toml": "[project]\nname='me'\ndependencies=['six >= 1']\n[dependency-groups]\n"
        "base=['mock']\ntest=[{include-group='base'}, 'pytest>=7']\n"
    },
    "setup.cfg": {
        "setup.cfg": "[metadata]\nname=me\n[options]\ninstall_requires =\n  six>=1\n[options.extras_require]\n"
        "test =\n  pytest>=7\n  mock\n"
    },
    "setup.py": {
        "setup.py": "from setuptools import setup\nopen('ran', 'w').close()\nVERSION = 1\n"
        "setup(name='me', version=VERSION, install_requires=['six>=1'], tests_require=['pytest>=7', 'mock'])\n"
    },
    "requirement files": {
        "PKG-INFO": "Metadata-Version: 2.1\nName: me\nRequires-Dist: six>=1\nRequires-Dist: sphinx; extra == 'docs'\n\n",
        "requirements-test.txt": "# tests\n-r other.txt\n--index-url https://example.org\npytest>=7\nmock  # for old\n",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_declarations_are_read(form: str, tmp_path: Path) -> None:
    write_files(tmp_path, FORMS[form])
    assert declared_dependencies(tmp_path).requirements == ("mock", "pytest>=7", "six>=1")
    assert not (tmp_path / "ran").exists()


def test_pytest_is_always_there(tmp_path: Path) -> None:
    assert declared_dependencies(tmp_path).requirements == ("pytest",)


@pytest.mark.parametrize(
    "text", ["six @ https://example.org/six.whl", "-e .", "git+https://example.org/x", "../six", "a b"]
)
def test_addresses_and_options_are_refused(text: str, tmp_path: Path) -> None:
    write_files(tmp_path, {"pyproject.toml": f"[project]\nname='me'\ndependencies=['{text}']\n"})
    with pytest.raises(InputError, match="is not a plain name with versions"):
        declared_dependencies(tmp_path)
    write_files(tmp_path, {"pyproject.toml": f"[project]\nname='me'\noptional-dependencies.test=['{text}']\n"})
    assert declared_dependencies(tmp_path) == Dependencies("me", ("pytest",), (text,))


def test_broken_declarations_are_as_good_as_none(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"pyproject.toml": "[project", "setup.cfg": "no section", "setup.py": "setup(", "PKG-INFO": ""}
    )
    assert declared_dependencies(tmp_path).requirements == ("pytest",)


@pytest.mark.network
def test_installing_once_and_read_only() -> None:
    environment = install(Dependencies("", ("iniconfig==2.0.0",)))
    assert environment.installed == ("iniconfig==2.0.0",)
    files = [path for path in (environment.folder / "iniconfig").rglob("*") if path.is_file()]
    modes = {path.stat().st_mode & 0o222 for path in files}
    assert modes == {0}
    before = os.stat(environment.folder).st_mtime_ns
    assert install(Dependencies("", ("iniconfig==2.0.0",))) == environment
    assert os.stat(environment.folder).st_mtime_ns == before
    own = install(Dependencies("iniconfig", ("iniconfig==2.0.0",)))
    assert not (own.folder / "iniconfig" / "__init__.py").exists()


@pytest.mark.network
def test_what_has_no_wheel_is_said() -> None:
    with pytest.raises(UnavailableError, match=r"no wheels for iniconfig==0\.0\.77: "):
        install(Dependencies("", ("iniconfig==0.0.77",)))


def test_layouts(tmp_path: Path) -> None:
    write_files(tmp_path / "src", {"src/a/__init__.py": "", "src/a/b.py": "x = 1"})
    write_files(
        tmp_path / "flat", {"a/__init__.py": "", "tox.ini": "[pytest]\naddopts = --cov --import-mode=importlib\n"}
    )
    write_files(tmp_path / "lib", {"lib/m.py": "", "setup.cfg": "[options]\npackage_dir =\n  = lib\n"})
    src, flat, lib = (read_layout(tmp_path / name) for name in ("src", "flat", "lib"))
    assert [src.module_of(p) for p in ("src/a/b.py", "src/a/__init__.py", "src/a-b.py")] == ["a.b", "a", None]
    assert (flat.module_of("a/__init__.py"), flat.pytest_args) == ("a", ("--import-mode=importlib",))
    assert lib.module_of("lib/m.py") == "m"


def test_control_and_program_files() -> None:
    control = ["tests/x.py", "a/test_x.py", "conftest.py", "a/pytest.ini", "x.pth", "a/__pycache__/m.pyc", "setup.py"]
    assert all(is_control(path) for path in control)
    assert [is_program_file(p) for p in ("a/b.py", "docs/conf.py", "a/tests/b.py", "a/b.txt")] == [
        True,
        False,
        False,
        False,
    ]
