"""A cache of its own, one sandbox, and pytest as an environment; no test here needs a network unless it says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tasks_support import installed_pytest

from codemill.core.errors import IsolationError
from codemill.sandbox import Sandbox
from codemill.tasks.environment import Environment


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODEMILL_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def environment(cache: Path) -> Environment:
    return installed_pytest()


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    try:
        with Sandbox() as made:
            yield made
    except IsolationError as error:
        pytest.skip(f"this machine cannot isolate: {error}")
