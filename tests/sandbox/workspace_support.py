"""Helpers of the workspace tests."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from codemill.sandbox import Policy, Workspace, python_argv

SMALL = Policy(wall_seconds=8.0, cpu_seconds=8.0, memory_bytes=256 << 20, disk_bytes=8 << 20, file_bytes=4 << 20)


CLOSED = """
import os
os.makedirs("shut/inner/deep"); open("shut/inner/deep/file", "w").write("in the dark")
os.chmod("shut/inner/deep/file", 0); os.chmod("shut/inner/deep", 0); os.chmod("shut/inner", 0); os.chmod("shut", 0)
os.chmod("pkg", 0o300); os.chmod("README.md", 0)
"""


def python(ws: Workspace, code: str, *arguments: str, timeout: float | None = None) -> bytes:
    """Run a program that must end well; what it prints."""
    outcome = ws.run(python_argv("-c", code, *arguments), timeout=timeout)
    assert (outcome.end, outcome.exit_code) == ("exited", 0), outcome
    return outcome.stdout


def picture(root: Path) -> dict[str, object]:
    """All there is to know about a tree, seen from the host."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        what: object = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
        times = 0 if path.is_symlink() else status.st_mtime_ns
        found[str(path.relative_to(root))] = (what, stat.S_IMODE(status.st_mode), times)
    return found


def host_folder(ws: Workspace) -> Path:
    return ws._kept.path


def check_diff(ws: Workspace, source: Path) -> None:
    """`git apply` makes of the source what the workspace holds."""
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(source, copy, symlinks=True)
        for path in sorted(copy.rglob("*"), reverse=True):
            if not path.is_symlink() and path.is_dir() and not any(path.iterdir()):
                path.rmdir()  # git does not know of empty folders, and stumbles over them
        apply = [git, "-c", "core.autocrlf=false", "apply", "--whitespace=nowarn", "-"]
        done = subprocess.run(apply, cwd=copy, input=ws.diff().encode(), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

        def contents(root: Path) -> dict[str, object]:
            return {
                os.fsdecode(path.relative_to(root)): path.readlink()
                if path.is_symlink()
                else (path.read_bytes(), bool(path.stat().st_mode & 0o100))
                for path in root.rglob("*")
                if path.is_symlink() or path.is_file()
            }

        assert contents(copy) == contents(host_folder(ws) / "codemill")


def left() -> list[str]:
    """Workspaces of this process that are still there."""
    return sorted(path.name for path in Path(tempfile.gettempdir()).glob(f"codemill-workspace-{os.getpid()}-*"))
