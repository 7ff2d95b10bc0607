"""Records, artifacts, paths: nothing half done, nothing lost, errors that name the place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codemill.core.artifact import folder_identity, is_finished, read_manifest, write_manifest
from codemill.core.contracts import Answer, Message, Status, Task, Verdict
from codemill.core.errors import InputError, IntegrityError, UnavailableError, nearest
from codemill.core.paths import atomic_folder, atomic_write, cache_dir, locked, safe_relative
from codemill.core.records import RecordLog, dumps, from_json, read_records, write_records


@given(st.text(), st.sampled_from(["", "\ud800", "\udfff"]), st.integers(0, 99))
def test_contracts_survive_json(text: str, lone_surrogate: str, sample: int) -> None:
    answer = Answer(task_id=text, completion=text + lone_surrogate, sample=sample, metadata={"k": [1, None]})
    assert from_json(Answer, json.loads(dumps(answer)), "here") == answer


def test_nested_contracts_survive_json() -> None:
    task = Task(id="t", verifier={"kind": "program"}, messages=(Message(role="user", content="hi"),), metadata={"a": 1})
    assert from_json(Task, json.loads(dumps(task)), "here") == task
    verdict = Verdict(task_id="t", status=Status.TIMEOUT, score=0.0)
    assert from_json(Verdict, json.loads(dumps(verdict)), "here").status is Status.TIMEOUT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task_id": "a", "compleshun": "x"}', r"a\.jsonl:2: unknown field 'compleshun'"),
        ('{"completion": "x"}', r"a\.jsonl:2: Answer field 'task_id'"),
        ('{"task_id": 3}', r"a\.jsonl:2: Answer field 'task_id'"),
        ("not json", r"a\.jsonl:2: not a line of JSON"),
        ("[1]", r"a\.jsonl:2"),
    ],
)
def test_bad_records_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"task_id": "ok"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        list(read_records(path, Answer))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        list(read_records(tmp_path / "none.jsonl", Answer))
    (tmp_path / "b.jsonl").write_bytes(b'{"task_id": "\xff"}\n')
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_records(tmp_path / "b.jsonl", Answer))


@pytest.mark.parametrize("torn", ["", '{"task_id": "torn', "x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    write_records(path, [Answer(task_id="a"), Answer(task_id="b")])
    with path.open("a") as file:
        file.write(torn)
    with RecordLog(path) as log:
        log.append(Answer(task_id="c"))
    assert [answer.task_id for answer in read_records(path, Answer)] == ["a", "b", "c"]
    only = tmp_path / "only.jsonl"
    only.write_text("never finished")
    with RecordLog(only):
        pass
    assert only.read_bytes() == b""


def test_what_fails_leaves_the_old_behind(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "f") as out:
        out.write(b"new")
        raise RuntimeError
    assert (tmp_path / "f").read_text() == "old"
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("x")
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]
    for text in ("one", "two"):
        with atomic_folder(tmp_path / "d") as folder:
            (folder / text).write_text(text)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["two"]


def test_manifests(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("1")
    assert not is_finished(tmp_path)
    with pytest.raises(InputError, match="not a finished"):
        read_manifest(tmp_path)
    plain = folder_identity(tmp_path)
    first = write_manifest(tmp_path, kind="k", config={"a": 1}, inputs={"model": "m"})
    assert is_finished(tmp_path)
    assert folder_identity(tmp_path) == first["fingerprint"] != plain
    assert read_manifest(tmp_path)["files"]["data"]["bytes"] == 1
    again = write_manifest(tmp_path, kind="k", config={"a": 1}, inputs={"model": "m"}, seconds=9)
    assert again["fingerprint"] == first["fingerprint"]  # what is inside, not when it was made
    for change in ({"config": {"a": 2}}, {"inputs": {"model": "n"}}):
        assert (
            write_manifest(tmp_path, **{"kind": "k", "config": {"a": 1}, **change})["fingerprint"]
            != first["fingerprint"]
        )
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(IntegrityError):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b", "a\\b"])
def test_unsafe_paths(name: str) -> None:
    with pytest.raises(InputError, match="unsafe path"):
        safe_relative(name, "archive.zip")


def test_safe_paths() -> None:
    assert str(safe_relative("a/b.py", "x")) == "a/b.py"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UnavailableError, match="CODEMILL_CACHE"):
        cache_dir()
    monkeypatch.delenv("CODEMILL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "codemill"


def test_locks_exclude(tmp_path: Path) -> None:
    order: list[str] = []

    def other() -> None:
        with locked(tmp_path / "lock"):
            order.append("other")

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "other"]


def test_nearest() -> None:
    assert nearest("stepz", ["steps", "lr"]) == "did you mean 'steps'?"
    assert nearest("zzz", ["b", "a"]) == "valid names: a, b"


@pytest.mark.parametrize(
    "code",
    [
        "import codemill.cli",
        "import codemill.core.records, codemill.core.artifact, codemill.core.progress",
        "import codemill.sandbox, codemill.corpus.build, codemill.corpus.sources, codemill.corpus.fim",
        "import codemill.tasks.build, codemill.tasks.verifiers, codemill.tasks.benchmarks, codemill.models.tokenizer",
        "import codemill.evaluation.evaluate, codemill.evaluation.summary, codemill.evaluation.solve",
        "import codemill.recipe.load, codemill.recipe.plan, codemill.recipe.run, codemill.report",
    ],
)
def test_these_rooms_need_no_torch(code: str) -> None:
    check = f"{code}; import sys; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
