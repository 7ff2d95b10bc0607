"""The same attacks once more as an ordinary user, when the tests run as root: root's powers must not be what isolates."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

NOBODY = 65534
# One of each kind, with all layers and with the fewest.
CHOSEN = (
    "(full or bare) and (read or changed or socket or interfaces or privilege or other_process or daemons-leave"
    " or list or children or fork or subprocess or filled or says_what)"
    " or (test_workspace and not (bare or mountless or swapping or deep or killed))"
)
FILES = (
    *("test_isolation.py", "test_limits.py", "test_lifecycle.py"),
    *("test_workspace_steps.py", "test_workspace_files.py", "test_workspace_states.py", "test_workspace_callers.py"),
)


def _can_run(user: int, interpreter: str) -> bool:
    """Whether the user can start it, and the interpreter that an environment's copy of it stands for."""
    check = "import os, sys; sys.exit(not os.access(sys._base_executable, os.X_OK))"
    try:
        return subprocess.run([interpreter, "-c", check], user=user, group=user, extra_groups=[]).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(os.geteuid() != 0, reason="already an ordinary user: every other test here is this one")
def test_everything_holds_for_an_ordinary_user() -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [os.path.realpath(sys.executable), shutil.which(version, path="/usr/local/bin:/usr/bin") or version]
    interpreter = next((name for name in candidates if _can_run(NOBODY, name)), None)
    if interpreter is None:
        pytest.skip(f"user {NOBODY} can run none of {', '.join(candidates)}")
    here = Path(__file__).parent
    import codemill

    packages = [Path(codemill.__file__).parents[1], Path(pytest.__file__).parents[1]]
    home = tempfile.mkdtemp(prefix="codemill-nobody-")
    try:
        os.chown(home, NOBODY, NOBODY)
        tests = [str(here / name) for name in FILES]
        command = [interpreter, "-m", "pytest", "-p", "no:cacheprovider", "-k", CHOSEN, "--basetemp", f"{home}/t"]
        done = subprocess.run(
            [*command, *tests],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=home,
            env={
                "HOME": home,
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": os.pathsep.join(map(str, packages)),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(f"user {NOBODY} cannot reach the packages of this environment: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    summary = done.stdout.strip().splitlines()[-1]
    assert " passed" in summary, done.stdout[-3000:]
    assert int(summary.split(" passed")[0].split()[-1]) >= 30, summary
