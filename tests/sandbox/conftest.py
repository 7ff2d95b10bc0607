"""One sandbox for each way of building one: everything, no mount namespace, no namespaces at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sandbox_support import BUILDS, LIMITS, Run, runner, warm_runner

from codemill.core.errors import IsolationError
from codemill.sandbox import Sandbox


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
