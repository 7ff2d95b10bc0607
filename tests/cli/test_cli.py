"""The command line: help, JSON, exit codes, one-line errors; and the commands that README shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MIT = ROOT / "LICENSE"
PROBLEMS = [
    {
        "task_id": f"HumanEval/{i}",
        "prompt": f"def add{i}(a, b):\n",
        "entry_point": f"add{i}",
        "canonical_solution": "    return a + b\n",
        "test": "def check(f):\n    assert f(1, 2) == 3\n",
    }
    for i in range(3)
]


def codemill(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from codemill.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_names_every_command_and_imports_no_torch() -> None:
    done = codemill("--help")
    assert done.returncode == 0
    for name in ("pull", "corpus", "tasks", "train", "evaluate", "grade", "run", "sandbox"):
        assert re.search(rf"\b{name}\b", done.stdout)


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_documented_commands_and_flags_exist(path: Path) -> None:
    """Every `codemill ...` line in the documentation names a real command with real flags."""
    helps: dict[str, str] = {}
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", path.read_text(), re.M | re.S))
    shown = re.findall(r"^codemill .+$", blocks, re.M) + re.findall(r"`(codemill [^`\n]+)`", path.read_text())
    for line in shown:
        words = line.split("#")[0].split()[1:]
        if not words or words[0].startswith("-"):
            continue
        command = words[:2] if words[0] in ("corpus", "tasks", "sandbox") else words[:1]
        key = " ".join(command)
        if key not in helps:
            done = codemill(*command, "--help")
            assert done.returncode == 0, f"{path.name}: codemill {key}"
            helps[key] = done.stdout
        for flag in (word for word in words if word.startswith("--")):
            assert flag.split("=")[0] in helps[key], f"{path.name}: codemill {key} {flag}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull", "smollm2-135"], "did you mean 'smollm2-135m'"),
        (["corpus", "build", "ftp:x", "-o", "/tmp/never"], "ftp:x"),
        (["corpus", "build", "path:.", "--keep", "permisive", "-o", "/tmp/never"], "keep_tiers"),
        (["tasks", "build", "/no/corpus", "-o", "/tmp/never"], "/no/corpus"),
        (["tasks", "build", "/no/corpus", "-o", "/tmp/never", "--set", "held_ot=3"], "did you mean 'held_out'"),
        (["train", "smollm2-135m", "/no/corpus", "-o", "/tmp/never", "--set", "lr=-1"], "lr"),
        (["grade", "humaneval:/none", "/none"], "/none"),
        (["run", "/no/recipe.yaml"], "/no/recipe.yaml"),
        (["evaluate", "./nowhere", "humaneval", "-o", "/tmp/never"], "nowhere"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str) -> None:
    done = codemill(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not Path("/tmp/never").exists()


def test_unknown_commands_and_flags() -> None:
    assert codemill("puls").returncode == 2
    assert codemill("pull", "--sped").returncode == 2
    assert codemill("--version").stdout.strip()


def test_grade(tmp_path: Path) -> None:
    """Others' samples become verdicts; wrong ids and broken lines are named; a second run does not reuse the first."""
    benchmark = tmp_path / "HumanEval.jsonl"
    benchmark.write_text("".join(json.dumps(p) + "\n" for p in PROBLEMS))
    answers = tmp_path / "samples.jsonl"
    bodies = ["    return a + b\n", "    return a - b\n", "    return a + b\n", "    import os; os._exit(0)\n"]
    ids = [0, 0, 1, 2]
    rows = [{"task_id": f"HumanEval/{i}", "completion": body} for i, body in zip(ids, bodies, strict=True)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = codemill("grade", f"humaneval:{benchmark}", str(answers), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    (summary,) = result["suites"].values()
    assert summary["scores"]["pass@1"]["value"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert summary["statuses"]["passed"] == 2
    verdicts = [json.loads(line) for line in Path(result["verdicts"]).read_text().splitlines()]
    assert sorted((v["task_id"], v["sample"], v["status"] == "passed") for v in verdicts)[:2] == [
        ("HumanEval/0", 0, True),
        ("HumanEval/0", 1, False),
    ]
    rows[0]["completion"] = "    return 0\n"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = codemill("grade", f"humaneval:{benchmark}", str(answers))
    assert "33.3 %" in table.stdout
    answers.write_text('{"task_id": "HumanEval/9", "completion": ""}\n')
    wrong = codemill("grade", f"humaneval:{benchmark}", str(answers))
    assert wrong.returncode == 2
    assert "samples.jsonl:1" in wrong.stderr


def test_corpus_build_prints_a_table_or_json(tmp_path: Path) -> None:
    source = tmp_path / "r"
    source.mkdir()
    (source / "LICENSE").write_text(MIT.read_text())  # this project's own licence: Apache-2.0
    (source / "a.py").write_text("def f(x):\n    return x + 1\n")
    (source / "b[red].py").write_text("def f(x):\n    return x + 2\n")  # a name that a terminal library might interpret
    table = codemill("corpus", "build", f"path:{source}", "-o", str(tmp_path / "c1"))
    assert table.returncode == 0, table.stderr
    assert "Apache-2.0" in table.stdout
    data = json.loads(codemill("corpus", "build", f"path:{source}", "-o", str(tmp_path / "c2"), "--json").stdout)
    assert data["documents"] == 3


def test_sandbox_check_says_what_holds() -> None:
    rows = json.loads(codemill("sandbox", "check", "--json").stdout)
    assert {"files", "network", "syscalls", "privileges", "processes", "memory", "time", "output"} == {
        r["axis"] for r in rows
    }
