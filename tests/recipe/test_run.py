"""The shipped quickstart, small: a model of a few thousand weights, a repository made here, no downloads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codemill.core.artifact import read_manifest
from codemill.core.records import read_records
from tiny import tiny_checkpoint

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
MODULE = '''"""Arithmetic."""


def {name}_sum(values):
    """Add up, {name}.

    >>> {name}_sum([1, 2, 3])
    6
    """
    total = 0
    for value in values:
        total += value
    return total


def {name}_scaled(values, factor):
    """Multiply each, {name}.

    >>> {name}_scaled([1, 2], 3)
    [3, 6]
    """
    result = [value * factor for value in values]
    return result
'''
PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(f):\n    assert f() == 1\n",
}


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    repository = tmp_path / "repository"
    (repository / "mathlets").mkdir(parents=True)
    (repository / "LICENSE").write_text("MIT License\n\n" + _mit())
    (repository / "mathlets" / "__init__.py").write_text("")
    for name in ("north", "south", "east", "west"):
        (repository / "mathlets" / f"{name}.py").write_text(MODULE.format(name=name))
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps(PROBLEM) + "\n")
    tiny_checkpoint(tmp_path / "model")
    changes = {
        "base.name": str(tmp_path / "model"),
        "corpus.sources": json.dumps([f"path:{repository}"]),
        "tasks.held_out": "4",
        "before.suites.humaneval.tasks": f"humaneval:{tmp_path / 'HumanEval.jsonl'}",
        "before.suites.humaneval.max_tokens": "8",
        "before.suites.held-out.max_prompt_tokens": "128",
        "before.suites.held-out.max_tokens": "8",
        "tuned.steps": "4",
        "tuned.max_tokens": "128",
        "tuned.micro_tokens": "256",
        "tuned.batch_tokens": "256",
        "tuned.checkpoint_every": "1",
    }
    flags = [flag for key, value in changes.items() for flag in ("--set", f"{key}={value}")]
    return [
        sys.executable,
        "-c",
        "from codemill.cli import main; main()",
        "run",
        str(RECIPE),
        "--out",
        str(tmp_path / "runs"),
        *flags,
    ]


def _mit() -> str:
    return (
        "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated "
        'documentation files (the "Software"), to deal in the Software without restriction, including without limitation '
        "the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to "
        "permit persons to whom the Software is furnished to do so, subject to the following conditions:\n\nThe above "
        "copyright notice and this permission notice shall be included in all copies or substantial portions of the "
        'Software.\n\nTHE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED.\n'
    )


def run(arguments: list[str], *more: str) -> dict[str, dict]:
    done = subprocess.run([*arguments, *more, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, dict] = json.loads(done.stdout)
    return result


def test_from_repository_to_report_and_found_again(arguments: list[str], tmp_path: Path) -> None:
    first = run(arguments)
    assert list(first) == ["base", "corpus", "tasks", "before", "tuned", "after", "report"]
    page = (tmp_path / "runs" / "quickstart" / "report.html").read_text()
    assert "mathlets" in page
    before, after = (read_manifest(Path(first[name]["folder"])) for name in ("before", "after"))
    tuned = read_manifest(Path(first["tuned"]["folder"]))
    assert after["inputs"]["model"] == tuned["fingerprint"] != before["inputs"]["model"]
    assert tuned["inputs"]["documents"] == read_manifest(Path(first["tasks"]["folder"]))["fingerprint"]
    second = run(arguments)
    assert all(stage["cached"] for name, stage in second.items() if name != "base")
    assert {n: s["folder"] for n, s in first.items()} == {n: s["folder"] for n, s in second.items()}
    # Another setting makes its stage and what depends on it anew, and nothing else.
    third = run(arguments, "--set", "tuned.steps=5")
    assert [name for name, stage in third.items() if stage["cached"]] == ["corpus", "tasks", "before"]


def test_a_changed_repository_is_noticed(arguments: list[str], tmp_path: Path) -> None:
    first = run(arguments, "--until", "corpus")
    (tmp_path / "repository" / "mathlets" / "new.py").write_text(MODULE.format(name="new"))
    second = run(arguments, "--until", "corpus")
    assert not second["corpus"]["cached"]
    assert first["corpus"]["folder"] != second["corpus"]["folder"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on(arguments: list[str], tmp_path: Path, how: signal.Signals) -> None:
    """Stopped once in training and once while answering; the result is the one of a run that was left alone."""
    whole = run([*arguments, "--set", "tuned.steps=12"])
    home = tmp_path / "runs" / "quickstart"
    tuned, after = Path(whole["tuned"]["folder"]), Path(whole["after"]["folder"])
    weights = (tuned / "model.safetensors").read_bytes()
    answers = {a["task_id"]: a["completion"] for a in _answers(after)}
    home.rename(tmp_path / "whole")
    command = [*arguments, "--set", "tuned.steps=12"]
    _stop_when(command, how, lambda: (home / tuned.name / "checkpoint" / "state.json").exists())
    _stop_when(command, how, lambda: any((home / after.name).glob("*/answers.jsonl")))
    resumed = run(command)
    assert (Path(resumed["tuned"]["folder"]) / "model.safetensors").read_bytes() == weights
    assert {a["task_id"]: a["completion"] for a in _answers(Path(resumed["after"]["folder"]))} == answers


def _answers(folder: Path) -> list[dict]:
    from codemill.core.contracts import Answer

    files = sorted(folder.glob("*/answers.jsonl"))
    return [{"task_id": a.task_id, "completion": a.completion} for file in files for a in read_records(file, Answer)]


def _stop_when(command: list[str], how: signal.Signals, seen: object) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not seen() and process.poll() is None and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.002)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    if how is signal.SIGINT and process.returncode not in (0, -signal.SIGINT):
        assert process.returncode == 130
        assert errors.rstrip().splitlines()[-1].startswith("codemill: stopped")


def test_what_cannot_be_done_says_so_in_one_line(arguments: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    untested = tmp_path / "untested"
    untested.mkdir()
    (untested / "LICENSE").write_text("MIT License\n\n" + _mit())
    (untested / "code.py").write_text("def f(x):\n    y = x + 1\n    return y\n" * 3)
    cases = [
        (["--set", f'corpus.sources=["path:{empty}"]'], "error: "),
        (["--set", f'corpus.sources=["path:{untested}"]'], "error: "),
        (["--set", f"base.name={tmp_path}"], "error: "),
    ]
    for flags, start in cases:
        done = subprocess.run([*arguments, *flags], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr[-500:]
        last = done.stderr.rstrip().splitlines()[-1]
        assert last.startswith(start)
        assert "Traceback" not in done.stderr
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        done = subprocess.run([*arguments, "--out", str(tmp_path / "locked" / "x")], capture_output=True, text=True)
        assert done.returncode == 2
        assert "--out" in done.stderr
