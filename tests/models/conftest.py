"""Fixtures of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from codemill.core.paths import cache_dir, locked
from codemill.models.fetch import fetch
from codemill.models.registry import find_model


@pytest.fixture(scope="session")
def original_gguf() -> Callable[[str], Path]:
    """The published GGUF file of a model, which a pull does not keep; fetched once per machine, for comparisons."""

    def find(name: str) -> Path:
        folder = cache_dir() / "test-originals" / name
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"):
            file = folder / "weights.gguf"
            fetch(find_model(name).variants[0], file, progress=False)
        return file

    return find
