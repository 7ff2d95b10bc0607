"""One sandbox for each way of building one: everything, no mount namespace, no namespaces at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sandbox_support import BUILDS, LIMITS, Run, runner

from codemill.core.errors import IsolationError
from codemill.sandbox import Layers, Sandbox


def make(layers: Layers) -> Sandbox:
    try:
        return Sandbox(LIMITS, workers=2, layers=layers)
    except IsolationError as error:
        pytest.skip(f"this machine cannot isolate so: {error}")


@pytest.fixture(scope="session", params=BUILDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with make(BUILDS[request.param]) as made:
        yield made


@pytest.fixture(scope="session")
def plain() -> Iterator[Sandbox]:
    """All layers; for what does not depend on them."""
    with make(Layers()) as made:
        yield made


@pytest.fixture()
def run(sandbox: Sandbox) -> Run:
    return runner(sandbox)
