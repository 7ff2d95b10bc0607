"""Reading a recipe: YAML with line numbers, overrides, and errors that name the line and the nearest valid name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from codemill.core.errors import ConfigError, nearest
from codemill.recipe.schema import INPUTS, STAGE_MODELS, EvaluateStage, Recipe, inputs_of

MAX_BYTES = 1 << 20
Lines = dict[tuple[str | int, ...], int]


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file with `--set` overrides (`stage.field=value`, the value as YAML) applied.

    Raises `ConfigError` before any work for whatever cannot be run as it is written.
    """
    data, lines = _read_yaml(path)
    for override in overrides:
        _apply(data, lines, override)
    _copy_same(data, lines, path)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, data, lines, path)) from None
    _check_inputs(recipe, lines, path)
    return recipe


def _read_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give the path of a recipe") from None
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(raw)} bytes; a recipe has at most {MAX_BYTES}")
    lines: Lines = {}
    try:
        node = yaml.compose(raw.decode("utf-8"), Loader=yaml.SafeLoader)
        data = _build(node, (), lines, set(), path) if node is not None else None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with `name` and `stages`, this is {type(data).__name__}")
    return data, lines


def _build(node: yaml.Node, at: tuple[str | int, ...], lines: Lines, seen: set[int], path: Path) -> Any:
    """Plain data of a YAML node, noting the line of each place. Aliases and repeated keys are refused."""
    line = node.start_mark.line + 1
    if id(node) in seen:  # composing has put one node in two places
        raise ConfigError(f"{path}:{line}: anchors and aliases are not allowed in a recipe")
    seen.add(id(node))
    lines[at] = line
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = key_node.start_mark.line + 1
            if key in result:
                raise ConfigError(f"{path}:{here}: {key!r} is given twice")
            result[key] = _build(value_node, (*at, key), lines, seen, path)
            lines[(*at, key)] = here
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(child, (*at, i), lines, seen, path) for i, child in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()


def _copy_same(data: dict[str, Any], lines: Lines, path: Path) -> None:
    """`same_as: OTHER` in a stage gives it everything an earlier stage says that it does not say itself."""
    stages = data.get("stages")
    if not isinstance(stages, dict):
        return
    earlier: dict[str, Any] = {}
    for name, stage in stages.items():
        if isinstance(stage, dict) and "same_as" in stage:
            other = stage.pop("same_as")
            if not isinstance(other, str) or not isinstance(earlier.get(other), dict):
                where = _where(("stages", name, "same_as"), lines, path)
                hint = nearest(str(other), earlier)
                raise ConfigError(f"{where}: stages.{name}: same_as {other!r} is no earlier stage; {hint}")
            stages[name] = stage = {**copy.deepcopy(earlier[other]), **stage}
        earlier[name] = stage


def _apply(data: dict[str, Any], lines: Lines, override: str) -> None:
    """Set `stage.field[.field]=value`; a top-level field needs no dot."""
    parts, value = parse_setting(override, "stage.field=value")
    stages = data.get("stages") if isinstance(data.get("stages"), dict) else {}
    assert isinstance(stages, dict)
    if parts[0] == "stages":
        parts = parts[1:]
    target: Any = stages
    if len(parts) == 1 and parts[0] in Recipe.model_fields:
        target = data
    elif parts[0] not in stages:
        raise ConfigError(f"--set {override}: no stage {parts[0]!r}; {nearest(parts[0], stages)}")
    for depth, part in enumerate(parts[:-1]):
        target = target[_index(target, part, override)] if isinstance(target, list) else target.setdefault(part, {})
        if not isinstance(target, dict | list):
            raise ConfigError(f"--set {override}: {'.'.join(parts[: depth + 1])} is a value, not a group of fields")
    if isinstance(target, list):
        target[_index(target, parts[-1], override)] = value
    else:
        target[parts[-1]] = value
    prefix = () if target is data else ("stages",)
    lines[(*prefix, *parts)] = 0  # 0: came from the command line


def parse_setting(given: str, form: str) -> tuple[list[str], Any]:
    """`a.b=value` as its path and its value, which is YAML. `form` is what an error says it should look like."""
    key, equals, text = given.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"--set {given}: write it as {form}")
    try:
        return parts, yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {given}: the value is not YAML") from None


def _index(values: list[Any], part: str, override: str) -> int:
    """A place in a list: its number, or the `name` of the element."""
    for i, value in enumerate(values):
        if part == str(i) or (isinstance(value, dict) and value.get("name") == part):
            return i
    raise ConfigError(f"--set {override}: {part!r} is neither a number below {len(values)} nor a name in that list")


def _explain(error: ValidationError, data: dict[str, Any], lines: Lines, path: Path) -> str:
    """The first problem on one line: where, what, and the nearest valid name."""
    problem = error.errors()[0]
    loc = list(problem["loc"])
    # pydantic puts the stage's kind into the location of a union's error.
    if len(loc) > 2 and loc[0] == "stages" and loc[2] in STAGE_MODELS:
        del loc[2]
    where = _where(tuple(loc), lines, path)
    name = ".".join(str(part) for part in loc)
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        message = f"unknown key {loc[-1]!r}; {nearest(str(loc[-1]), _fields_at(loc[:-1], data))}"
    elif problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = problem.get("ctx", {}).get("tag", "")
        message = f"`use: {given}` is no kind of stage; {nearest(str(given), STAGE_MODELS)}"
    elif "input" in problem and not isinstance(problem["input"], dict | list):
        message = f"{message} (it is {problem['input']!r})"
    return f"{where}: {name}: {message}"


def _fields_at(loc: Sequence[str | int], data: dict[str, Any]) -> list[str]:
    """The keys that are valid at a place."""
    model: type[BaseModel] = Recipe
    rest = list(loc)
    if len(rest) >= 2 and rest[0] == "stages":
        model = STAGE_MODELS[data["stages"][rest[1]]["use"]]
        rest = rest[2:]
    for part in rest:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [
            a
            for a in (annotation, *getattr(annotation, "__args__", ()))
            if isinstance(a, type) and issubclass(a, BaseModel)
        ]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _where(loc: tuple[str | int, ...], lines: Lines, path: Path) -> str:
    while loc and loc not in lines:
        loc = loc[:-1]
    line = lines.get(loc, 1)
    return f"{path}:{line}" if line else "--set"


def _check_inputs(recipe: Recipe, lines: Lines, path: Path) -> None:
    """Every stage's inputs are earlier stages of the right kind, and what can be missing outside is there."""
    earlier: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        for role, target in inputs_of(stage).items():
            where = _where(("stages", name, *([role] if role in INPUTS[stage.use] else ["suites"])), lines, path)
            allowed = INPUTS[stage.use].get(role, ("tasks",))
            fitting = [other for other, kind in earlier.items() if kind in allowed]
            if target not in fitting:
                hint = (
                    nearest(target, fitting)
                    if fitting
                    else f"there is no earlier stage that uses {' or '.join(allowed)}"
                )
                raise ConfigError(
                    f"{where}: stages.{name}: {role} {target!r} is no earlier {'/'.join(allowed)} stage; {hint}"
                )
        if isinstance(stage, EvaluateStage) and len({suite.name for suite in stage.suites}) < len(stage.suites):
            raise ConfigError(
                f"{_where(('stages', name, 'suites'), lines, path)}: stages.{name}: two suites have one name"
            )
        _check_outside(name, stage, lines, path)
        earlier[name] = stage.use


def _check_outside(name: str, stage: Any, lines: Lines, path: Path) -> None:
    """Models, sources and files that the stage names exist as far as that can be told without a network."""
    from codemill.corpus.sources import parse_source
    from codemill.models.registry import find_model

    try:
        if stage.use == "model" and not stage.name.startswith("hf:"):
            if "/" in stage.name or stage.name.startswith((".", "~")):
                if not (Path(stage.name).expanduser() / "config.json").is_file():
                    raise ConfigError(f"{stage.name}: no checkpoint folder there (no config.json)")
            else:
                find_model(stage.name)
        elif stage.use == "corpus":
            for source in stage.sources:
                parse_source(source)
                if source.startswith("path:") and not Path(source.removeprefix("path:")).expanduser().is_dir():
                    raise ConfigError(f"{source}: no such folder")
        elif stage.use == "evaluate":
            for suite in stage.suites:
                benchmark, _, file = suite.tasks.partition(":")
                if benchmark in ("humaneval", "mbpp") and file and not Path(file).expanduser().exists():
                    raise ConfigError(f"{suite.tasks}: no such file")
    except ConfigError as error:
        field = {"model": "name", "corpus": "sources", "evaluate": "suites"}[stage.use]
        raise ConfigError(f"{_where(('stages', name, field), lines, path)}: stages.{name}: {error}") from None
