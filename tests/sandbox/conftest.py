"""One sandbox for each way of building one: everything, no mount namespace, no namespaces at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sandbox_support import BUILDS, LIMITS, Run, runner, warm_runner
from workspace_support import SMALL

from codemill.core.errors import IsolationError
from codemill.sandbox import Sandbox, Workspace


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder() -> Iterator[None]:
    """What is left there can then only be ours, whoever runs the same tests beside."""
    folder = tempfile.mkdtemp(prefix="codemill-tests-")
    os.chmod(folder, 0o711)  # users of the programs come through it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        patch.setenv("TMPDIR", folder)
        yield
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def sandboxes() -> Iterator[Callable[[str], Sandbox]]:
    made: dict[str, Sandbox] = {}

    def get(build: str) -> Sandbox:
        if build not in made:
            try:
                made[build] = Sandbox(LIMITS, workers=2, layers=BUILDS[build])
            except IsolationError as error:
                pytest.skip(f"this machine cannot isolate so: {error}")
        return made[build]

    yield get
    for sandbox in made.values():
        sandbox.close()


@pytest.fixture(params=BUILDS)
def sandbox(request: pytest.FixtureRequest, sandboxes: Callable[[str], Sandbox]) -> Sandbox:
    return sandboxes(request.param)


@pytest.fixture
def plain(sandboxes: Callable[[str], Sandbox]) -> Sandbox:
    """All layers; for what does not depend on them."""
    return sandboxes("full")


@pytest.fixture(params=["job", "call"])
def run(request: pytest.FixtureRequest, sandbox: Sandbox) -> Run:
    """Code in a process started for it, and in a fork of a warm interpreter: whatever is attacked must hold in both."""
    return (runner if request.param == "job" else warm_runner)(sandbox)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "pkg" / "empty").mkdir(parents=True)
    (root / "README.md").write_text("one\ntwo\nthree\n")
    (root / "pkg" / "tool.sh").write_text("#!/bin/sh\necho tool\n")
    (root / "pkg" / "tool.sh").chmod(0o755)
    (root / "pkg" / "data.bin").write_bytes(bytes(range(256)) * 8)
    (root / "docs").symlink_to("pkg")
    os.utime(root / "README.md", ns=(1_000_000_000_000_000_007,) * 2)
    return root


@pytest.fixture
def ws(sandbox: Sandbox, source: Path) -> Iterator[Workspace]:
    with sandbox.workspace(source, policy=SMALL) as workspace:
        yield workspace


@pytest.fixture
def plain_ws(plain: Sandbox, source: Path) -> Iterator[Workspace]:
    with plain.workspace(source, policy=SMALL) as workspace:
        yield workspace
