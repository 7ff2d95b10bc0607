"""Recipes: what is refused before any work, and how it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from codemill.core.errors import ConfigError
from codemill.recipe.load import load_recipe
from codemill.recipe.plan import plan

GOOD = """\
name: small
stages:
  base: {use: model, name: smollm2-135m}
  corpus:
    use: corpus
    sources: [pypi:toolz==1.0.0]
  tasks: {use: tasks, corpus: corpus, held_out: 5}
  before:
    use: evaluate
    model: base
    suites:
      - {name: mine, tasks: tasks, max_tokens: 32}
  tuned:
    use: train
    model: base
    documents: tasks
    steps: 3
  after: {same_as: before, model: tuned}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


def test_a_good_recipe(recipe: Path) -> None:
    loaded = load_recipe(
        recipe, ["tuned.steps=7", "tuned.fim.rate=0", "before.suites.mine.max_tokens=48", "name=other"]
    )
    assert loaded.name == "other"
    assert loaded.stages["tuned"].steps == 7  # type: ignore[union-attr]
    assert loaded.stages["tuned"].fim.rate == 0  # type: ignore[union-attr]
    before, after = loaded.stages["before"], loaded.stages["after"]
    assert before.suites == after.suites  # type: ignore[union-attr]
    assert after.suites[0].max_tokens == 48  # type: ignore[union-attr]
    assert (before.model, after.model) == ("base", "tuned")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 3", "stepz: 3", r"r\.yaml:17: stages\.tuned\.stepz: unknown key 'stepz'; did you mean 'steps'"),
        ("max_tokens: 32", "max_token: 32", r"r\.yaml:12: .*did you mean 'max_tokens'"),
        ("steps: 3", "steps: many", r"r\.yaml:17: stages\.tuned\.steps: .*'many'"),
        ("use: train", "use: trane", r"r\.yaml:1[34]: .*did you mean 'train'"),
        (
            "model: base\n    suites",
            "model: bass\n    suites",
            r"r\.yaml:10: stages\.before: model 'bass' .*did you mean 'base'",
        ),
        ("documents: tasks", "documents: base", r"r\.yaml:16: .*documents 'base'"),
        ("model: tuned", "model: later", r"r\.yaml:18: .*model 'later'"),
        ("smollm2-135m", "smollm-135m", r"r\.yaml:3: .*did you mean 'smollm2-135m'"),
        ("pypi:toolz==1.0.0", "pypi:toolz", r"r\.yaml:6: .*toolz"),
        ("pypi:toolz==1.0.0", "path:/no/such/folder", r"r\.yaml:6: .*no such folder"),
        ("tasks: tasks", "tasks: humaneval:/none.jsonl", r"r\.yaml:11: .*none\.jsonl: no such file"),
        ("same_as: before", "same_as: befor", r"r\.yaml:18: .*did you mean 'before'"),
        ("name: small", "name: ../escape", r"r\.yaml:1: name"),
        ("steps: 3", "steps: 3\n    steps: 4", r"r\.yaml:18: 'steps' is given twice"),
        ("stages:", "stages: &a", r"not allowed|stages"),
    ],
)
def test_mistakes_name_the_line_and_the_way_out(recipe: Path, old: str, new: str, message: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    if new == "stages: &a":
        text += "  copy: *a\n"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [unclosed", "not YAML"),
        ("just words", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("name: x\n", "stages"),
        ("name: x\nstages: {}\n", "stages"),
        ("!!python/object/apply:os.system ['true']", "not YAML|mapping"),
        ("name: !!python/name:os.system\nstages: {a: {use: model, name: smollm2-135m}}", "not YAML|name"),
        ("a: " + "[" * 3000, "not YAML|nested"),
    ],
)
def test_what_is_no_recipe(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "missing.yaml")
    (tmp_path / "big.yaml").write_text("#" * (2 << 20))
    with pytest.raises(ConfigError, match="at most"):
        load_recipe(tmp_path / "big.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuned.steps", "stage.field=value"),
        ("tund.steps=1", "did you mean 'tuned'"),
        ("tuned.steps=[", "not YAML"),
        ("tuned.steps.deep=1", "is a value"),
        ("before.suites.nine.limit=1", "neither a number"),
        ("tuned.stps=1", "did you mean 'steps'"),
    ],
)
def test_overrides_that_miss(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe, [override])


def test_plan_needs_no_weights(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "empty"))
    rows = {row["stage"]: row for row in plan(load_recipe(recipe))}
    assert rows["base"]["parameters"] == 134_515_008
    assert rows["tuned"]["tokens_at_most"] == 3 * 4096
    assert rows["tuned"]["flops"] == 4 * 134_515_008 * 3 * 4096


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert plan(load_recipe(path))
