"""Making tasks out of repositories, end to end."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tasks_support import repository_files, write_files

from codemill.core.artifact import read_manifest
from codemill.core.contracts import Answer, Document, Task, content_hash
from codemill.core.errors import ConfigError, InputError
from codemill.core.records import read_json_lines
from codemill.corpus.build import build_corpus
from codemill.corpus.store import read_documents
from codemill.sandbox import Sandbox
from codemill.tasks import repository
from codemill.tasks.benchmarks import load_tasks
from codemill.tasks.build import TasksConfig, build_tasks
from codemill.tasks.candidates import Candidate, Limits, choose_held_out_files, find_candidates, ordered
from codemill.tasks.discover import Discovery
from codemill.tasks.documents import LeakScanner, normal_form
from codemill.tasks.environment import Environment
from codemill.tasks.functions import SourceFile, find_functions
from codemill.tasks.question import time_limit
from codemill.tasks.verifiers import verify_all

CONFIG = TasksConfig(held_out=6, train=6, held_out_files=0.2, test_seconds=3, suite_seconds=30)


@dataclasses.dataclass(frozen=True)
class Built:
    corpus: Path
    folder: Path
    facts: dict[str, Any]

    @property
    def tasks(self) -> list[Task]:
        return load_tasks(self.folder)[0]

    def split(self, name: str) -> list[Task]:
        return [task for task in self.tasks if task.metadata["split"] == name]

    def training_text(self) -> list[str]:
        return [document.text for document in read_documents(self.folder / "train_documents.parquet")]

    def rejected(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for _, row in read_json_lines(self.folder / "rejected.jsonl"):
            found.setdefault(row["reason"], set()).add(row["qualname"])
        return found


@pytest.fixture(scope="module", autouse=True)
def place(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder, so that the sources have the same names, and with them the same draws, in every run."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "install", lambda dependencies: environment)
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def corpus(place: Path) -> Path:
    sources = ["path:src", "path:flat", "path:bare"]
    for layout in ("src", "flat"):
        files = repository_files(layout)
        if layout == "flat":  # another repository, or its files would be dropped as duplicates
            files = {name: text.replace("shapes", "forms") + "\n" for name, text in files.items()}
            files = {name.replace("shapes", "forms"): text for name, text in files.items()}
        write_files(place / layout, files)
    write_files(
        place / "bare", {"LICENSE": files["LICENSE"], "m.py": "numbers = [1, 2, 3]\nletters = 'some of them'\n"}
    )
    build_corpus(sources, place / "corpus")
    return place / "corpus"


@pytest.fixture(scope="module")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> Built:
    folder = tmp_path_factory.mktemp("tasks") / "out"
    return Built(corpus, folder, build_tasks(corpus, folder, CONFIG))


def test_the_folder_is_an_artifact(built: Built) -> None:
    manifest = read_manifest(built.folder)
    assert manifest["kind"] == "tasks"
    assert manifest["facts"] == json.loads(json.dumps(built.facts))
    assert manifest["inputs"] == {"corpus": read_manifest(built.corpus)["fingerprint"]}
    assert built.facts["split"] == {"held_out": 6, "train": len(built.split("train"))}
    assert built.split("train")
    assert set(built.facts["kind"]) == {"body", "span"}
    assert len(built.facts["held_out_by_repository"]) == 2
    isolated = sum(task.verifier.get("isolated", False) for task in built.tasks)
    assert built.facts["tests isolated from the answer"] == isolated > 0
    assert built.facts["tests in the answer's process"] == len(built.tasks) - isolated


def test_questions_come_from_the_files(built: Built) -> None:
    for task in built.tasks:
        workspace = built.folder / "workspaces" / task.verifier["workspace"]
        pristine = (workspace / task.metadata["path"]).read_text()
        gold = pristine[task.verifier["start"] : task.verifier["end"]]
        assert task.gold == gold
        assert len(gold.splitlines()) <= CONFIG.max_answer_lines
        assert task.metadata["license"] == "MIT"
        if task.metadata["split"] == "held_out":
            assert f"{task.prefix}{task.gold}{task.suffix}" == pristine
    assert len({task.id for task in built.tasks}) == len(built.tasks)


def test_the_verifier_passes_the_original_and_nothing_else(built: Built, sandbox: Sandbox) -> None:
    gold = [(t, Answer(task_id=t.id, completion=t.gold)) for t in built.tasks]
    empty = [(t, Answer(task_id=t.id, completion="", sample=1)) for t in built.tasks]
    verdicts = list(verify_all([*gold, *empty], sandbox, built.folder))
    assert len(verdicts) == 2 * len(built.tasks)
    assert not [v for v in verdicts if v.passed != (v.sample == 0)]


def test_everything_left_out_has_a_reason(built: Built) -> None:
    rejected = built.rejected()
    assert "untested" in rejected["no passing test enters it"]
    assert "shouted" in rejected["an answer that does nothing passes its tests"]
    assert rejected["its file shows a held-out function"]  # the two repositories share their functions
    assert any("no tests and no doctests" in reason for reason in built.facts["skipped"].values())


def test_functions_are_on_one_side_only(built: Built) -> None:
    clusters = [{task.metadata["cluster"] for task in built.split(name)} for name in ("held_out", "train")]
    assert clusters[0]
    assert not clusters[0] & clusters[1]


def telling_bodies(built: Built) -> dict[str, str]:
    """What must not be learnt from: held-out answers, bodies of held-out functions, and of all functions in held-out files."""
    held = list(read_documents(built.folder / "held_out_documents.parquet"))
    whole = {(document.repository, document.path) for document in held}
    wanted = {(t.metadata["repository"], t.metadata["path"], t.metadata["qualname"]) for t in built.split("held_out")}
    bodies = {task.id: task.gold or "" for task in built.split("held_out")}
    for document in read_documents(built.corpus):
        if document.language != "python":
            continue
        for function in find_functions(SourceFile(document.text, document.path)):
            place = (document.repository, document.path)
            if function.body and (place in whole or (*place, function.qualname) in wanted):
                bodies[f"{place}{function.qualname}"] = document.text[function.body.start : function.body.end]
    return bodies


def test_no_held_out_body_is_in_the_training_text(built: Built) -> None:
    bodies = telling_bodies(built)
    scanner = LeakScanner(bodies)
    assert len(scanner) >= 3
    shown = [f"{t.prefix}{t.gold}{t.suffix}" for t in built.split("train")]
    for text in [*built.training_text(), *shown]:
        assert scanner.find(text) == []
        # The same by other means: no two neighbouring telling lines of a body, whatever their indentation.
        squeezed = normal_form(text)
        assert not [name for name, body in bodies.items() if len(body) > 60 and normal_form(body) in squeezed]
    corpus_text = [document.text for document in read_documents(built.corpus)]
    assert any(scanner.find(text) for text in corpus_text)  # it was there before


def test_held_out_functions_leave_with_signature(built: Built) -> None:
    text = {(d.repository, d.path): d.text for d in read_documents(built.folder / "train_documents.parquet")}
    for task in built.split("held_out"):
        left = text.get((task.metadata["repository"], task.metadata["path"]), "")
        name = task.metadata["qualname"].split(".")[-1]
        assert f"def {name}(" not in left
    assert any("def " in document for document in text.values())


def test_copies_elsewhere_are_removed(built: Built, tmp_path: Path) -> None:
    """With every function held out, the copies of `squeeze` in another module and in the guide must go too."""
    out = tmp_path / "out"
    facts = build_tasks(
        built.corpus,
        out,
        TasksConfig(held_out=40, train=0, held_out_files=0, kinds=("body",), test_seconds=3, suite_seconds=30),
    )
    qualnames = {task.metadata["qualname"] for task in load_tasks(out)[0]}
    assert "squeeze" in qualnames
    leaked = {name.rpartition(":")[2] for name in facts["text"]["copies removed"]}
    assert any(name.endswith("old.py") for name in leaked)
    assert "guide.md" in leaked
    text = "".join(document.text for document in read_documents(out / "train_documents.parquet"))
    assert "That is all." in text
    assert "joined[: limit - 1]" not in text


def test_whole_files_are_held_out(built: Built) -> None:
    held = {(d.repository, d.path) for d in read_documents(built.folder / "held_out_documents.parquet")}
    trained = {(d.repository, d.path) for d in read_documents(built.folder / "train_documents.parquet")}
    assert held
    assert not held & trained
    assert not [t for t in built.split("train") if (t.metadata["repository"], t.metadata["path"]) in held]


def test_the_same_corpus_gives_the_same_tasks(built: Built, cache: Path, tmp_path: Path) -> None:
    shutil.rmtree(cache / "discoveries")
    build_tasks(built.corpus, tmp_path / "again", CONFIG)
    for name in ("tasks.jsonl", "rejected.jsonl", "train_documents.parquet", "held_out_documents.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (built.folder / name).read_bytes(), name


def test_what_cannot_be_built_says_why(corpus: Path, tmp_path: Path, sandbox: Sandbox) -> None:
    with pytest.raises(InputError, match=r"no task came out of 3 sources: .*longer than 1 characters"):
        build_tasks(corpus, tmp_path / "out", TasksConfig(max_answer_chars=1, test_seconds=3, suite_seconds=30))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="held_out and train are both 0"):
        build_tasks(corpus, tmp_path / "out", TasksConfig(held_out=0, train=0))
    with pytest.raises((InputError, ConfigError)):
        build_tasks(tmp_path, tmp_path / "out", CONFIG)


def test_a_source_that_changed_is_skipped(corpus: Path, tmp_path: Path, sandbox: Sandbox) -> None:
    files = repository_files("flat")
    source = write_files(tmp_path / "source", files)
    build_corpus([f"path:{source}"], tmp_path / "corpus")
    (source / "shapes/words.py").write_text(files["shapes/words.py"] + "\nx = 1\n")
    with pytest.raises(InputError, match="the corpus holds"):
        build_tasks(tmp_path / "corpus", tmp_path / "out", CONFIG)


def candidate(repository: str, path: str, kind: str, draw: float) -> Candidate:
    text = "def f(x):\n    y = g(x)\n    return y\n"
    (function,) = find_functions(SourceFile(text, path))
    assert function.body is not None
    piece = dataclasses.replace(function.body, kind=kind)
    return Candidate(repository, path, function, piece, ("t",), "train", f"{repository}{path}{draw}", draw, "")


def test_every_beginning_of_the_order_is_spread() -> None:
    many = [
        candidate("a", f"{i % 3}.py", kind, i / 30 + (kind == "span") / 900)
        for i in range(30)
        for kind in ("body", "span")
    ]
    few = [candidate("b", "x.py", "body", 0.5), candidate("b", "x.py", "span", 0.1)]
    order = ordered([*many, *few])
    assert [c.repository for c in order[:4]] == ["a", "b", "a", "b"]
    assert len({c.path for c in order[:8] if c.repository == "a"}) == 3
    assert {c.kind for c in order[:2] + order[2:4]} == {"body", "span"}
    assert ordered([*few, *reversed(many)]) == order


def test_held_out_files_keep_to_their_share(corpus: Path) -> None:
    documents = list(read_documents(corpus))
    chosen = choose_held_out_files(documents, 0.3, seed=1)
    sizes = {(d.repository, d.path): len(d.text) for d in documents if "shapes" in d.path or "forms" in d.path}
    assert 0 < sum(sizes[place] for place in chosen) <= 0.3 * sum(sizes.values())
    assert choose_held_out_files(documents, 0.0, seed=1) == set()
    assert chosen == choose_held_out_files(list(reversed(documents)), 0.3, seed=1)


def test_time_limits_are_steps() -> None:
    assert [time_limit(s) for s in (0.0, 0.01, 0.3, 0.31, 0.61, 2.0)] == [3, 3, 3, 6, 12, 24]


def test_an_answer_that_stands_in_its_file_twice_is_not_asked_for() -> None:
    body = "    y = g(x)\n    z = h(y)\n    return z\n"
    text = f"def f(x):\n{body}\n\ndef other(x):\n    if x:\n" + body.replace("    ", "        ") + "    return x\n"
    document = Document(
        text=text, path="m.py", repository="r", revision="1", language="python", license=None, hash=content_hash(b"")
    )
    found = Discovery(tests={"pytest:t": 0.1}, entered={"m.py:1": ("pytest:t",)})
    limits = Limits(kinds=("body",), min_lines=1, max_lines=9, max_characters=400, held_out_share=0.5, seed=0)
    candidates, rejected = find_candidates(document, found, limits, held_out_file=False)
    assert not candidates
    assert ("f", "its answer stands in the file once more") in {(r.qualname, r.reason) for r in rejected}
    once = dataclasses.replace(document, text=text.replace("h(y)", "k(y)", 1))
    assert [c.function.qualname for c in find_candidates(once, found, limits, held_out_file=False)[0]] == ["f"]
