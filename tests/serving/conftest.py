from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_support import Running, checkpoint, running

from codemill.engine.engine import Engine
from codemill.engine.service import EngineService


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without fill-in tokens and without tools."""
    return checkpoint(tmp_path_factory.mktemp("plain") / "plain", infills=False, tools=False)


@pytest.fixture(scope="session")
def engine(folder: Path) -> Engine:
    return Engine.load(folder, dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Running]:
    with running(EngineService(Engine.load(folder, dtype="fp32", device="cpu"))) as server:
        yield server
