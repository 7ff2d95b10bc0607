"""The registry: what it lists is complete and consistent, and a wrong name is answered with the right one."""

from __future__ import annotations

import re

import pytest

from codemill.core.errors import ConfigError
from codemill.models.registry import Wheels, find_model, models


def test_every_variant_is_pinned_by_one_hash_and_its_parts_add_up() -> None:
    hashes = [variant.sha256 for model in models() for variant in model.variants]
    assert len(set(hashes)) == len(hashes) >= 2
    for model in models():
        assert model.license == "Apache-2.0"
        for variant in model.variants:
            assert re.fullmatch("[0-9a-f]{64}", variant.sha256)
            wheels = [source for source in variant.sources if isinstance(source, Wheels)]
            assert wheels, "without the Hub there must be another source"
            assert all(sum(part.size for part in source.parts) == variant.size for source in wheels)


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_models_are_found_by_name(name: str) -> None:
    assert find_model(name).name == name


def test_an_unknown_name_is_answered_with_the_nearest_and_with_the_other_forms() -> None:
    with pytest.raises(ConfigError, match=r"'smollm-135m'.*did you mean 'smollm2-135m'.*hf:OWNER/NAME.*\./NAME"):
        find_model("smollm-135m")
    with pytest.raises(ConfigError, match=r"valid names: .*qwen2\.5-coder-0\.5b"):
        find_model("zzz")
