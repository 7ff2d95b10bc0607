"""A corpus from end to end: every file accounted for, the same bytes each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from corpus_support import GPL_NOTICE, MIT, PROGRAM, fill

from codemill.core.artifact import read_manifest
from codemill.core.contracts import content_hash
from codemill.core.errors import ConfigError, InputError
from codemill.corpus.build import build_corpus
from codemill.corpus.filters import Policy
from codemill.corpus.store import read_decisions, read_documents

FILES: dict[str, str | bytes] = {
    "LICENSE": MIT,
    "a.py": PROGRAM,
    "copy/a.py": PROGRAM,
    "tests/test_a.py": "from a import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n",
    "gpl.py": GPL_NOTICE + PROGRAM,
    "bad.py": "caf\u00e9 = 'caf\u00e9'\n".encode("latin-1"),
    "vendor/other.py": PROGRAM + "# other\n",
    ".git/config": "[core]\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return fill(tmp_path / "project", FILES)


def test_every_file_has_one_decision_and_kept_ones_are_documents(project: Path, tmp_path: Path) -> None:
    facts = build_corpus([f"path:{project}"], tmp_path / "corpus")
    decisions = {
        row["path"]: (row["decision"], row["reason"], row["detail"]) for row in read_decisions(tmp_path / "corpus")
    }
    assert decisions == {
        ".git": ("drop", "not-collected", "folder .git is not source"),
        "LICENSE": ("keep", "", ""),
        "a.py": ("keep", "", ""),
        "bad.py": ("drop", "encoding", "not UTF-8"),
        "copy/a.py": ("drop", "duplicate", f"path:{project} a.py"),
        "gpl.py": ("quarantine", "license", "GPL-3.0-or-later (notice in the file; LICENSE)"),
        "tests/test_a.py": ("keep", "", ""),
        "vendor/other.py": ("drop", "vendored", "folder vendor"),
    }
    documents = {document.path: document for document in read_documents(tmp_path / "corpus")}
    assert list(documents) == ["LICENSE", "a.py", "tests/test_a.py"]
    found = documents["a.py"]
    assert (found.text, found.language, found.license) == (PROGRAM, "python", "MIT")
    assert found.hash == content_hash(PROGRAM.encode())
    assert found.repository == f"path:{project}"
    assert facts["documents"] == 3
    assert facts["files"] == len(decisions) == sum([3, *facts["dropped"].values(), *facts["quarantined"].values()])
    assert facts["languages"]["python"] == sum(len(d.text) for d in documents.values() if d.language == "python")


def test_what_was_measured_lies_beside_each_decision(project: Path, tmp_path: Path) -> None:
    build_corpus([f"path:{project}"], tmp_path / "corpus")
    rows = {row["path"]: row for row in read_decisions(tmp_path / "corpus")}
    row = rows["tests/test_a.py"]
    assert (row["language"], row["class"], row["tier"], row["labels"]) == (
        "python",
        "programming",
        "permissive",
        ["test"],
    )
    assert (row["lines"], row["longest_line"], row["bytes"]) == (5, 25, 62)
    assert rows["bad.py"]["longest_line"] is None  # never decoded
    assert (rows["bad.py"]["bytes"], rows["bad.py"]["hash"]) == (14, content_hash(FILES["bad.py"]))  # type: ignore[arg-type]
    assert rows["gpl.py"]["tier"] == "copyleft"


def test_the_manifest_tells_what_went_in(project: Path, tmp_path: Path) -> None:
    facts = build_corpus([f"path:{project}"], tmp_path / "corpus", max_file_bytes=5000)
    manifest = read_manifest(tmp_path / "corpus")
    assert manifest["kind"] == "corpus"
    assert manifest["facts"] == facts
    assert manifest["config"]["policy"]["max_file_bytes"] == 5000
    assert set(manifest["files"]) == {"documents.parquet", "decisions.parquet"}
    (repository,) = facts["repositories"]
    assert manifest["inputs"] == {f"path:{project}": repository["revision"]}
    assert (repository["name"], repository["license"], repository["kept"]) == ("project", "MIT", 3)


def test_same_files_same_bytes(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order in which the folder lists them, and from a cache of its own."""
    build_corpus([f"path:{project}"], tmp_path / "one")
    moved = tmp_path / "moved"
    project.rename(moved)
    fill(project, {name: FILES[name] for name in sorted(FILES, reverse=True)})
    monkeypatch.setenv("CODEMILL_CACHE", str(tmp_path / "other-cache"))
    real = os.walk
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((f, d, n[::-1]) for f, d, n in list(real(*a, **k))[::-1]))
    build_corpus([f"path:{project}"], tmp_path / "two")
    for name in ("documents.parquet", "decisions.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    one, two = (read_manifest(tmp_path / name)["fingerprint"] for name in ("one", "two"))
    assert one == two


def test_duplicates_are_found_between_sources_and_the_first_source_keeps_its_file(
    project: Path, tmp_path: Path
) -> None:
    other = fill(tmp_path / "other", {"LICENSE": MIT + "\n", "b.py": PROGRAM, "c.py": "other = 1\n"})
    facts = build_corpus([f"path:{other}", f"path:{project}"], tmp_path / "corpus")
    rows = {(row["repository"], row["path"]): row for row in read_decisions(tmp_path / "corpus")}
    assert rows[f"path:{other}", "b.py"]["decision"] == "keep"
    assert rows[f"path:{project}", "a.py"]["detail"] == f"path:{other} b.py"
    assert [repository["kept"] for repository in facts["repositories"]] == [3, 2]


def test_a_quarantined_file_does_not_make_a_duplicate_of_a_kept_one(tmp_path: Path) -> None:
    project = fill(
        tmp_path / "p", {"LICENSE": MIT, "a/LICENSE": "mine, all mine\n", "a/x.py": PROGRAM, "b/x.py": PROGRAM}
    )
    build_corpus([f"path:{project}"], tmp_path / "corpus")
    rows = {row["path"]: row["decision"] for row in read_decisions(tmp_path / "corpus")}
    assert (rows["a/x.py"], rows["b/x.py"]) == ("quarantine", "keep")


def test_nothing_kept_is_an_error_with_counts_and_leaves_nothing(tmp_path: Path) -> None:
    project = fill(tmp_path / "p", {"a.py": PROGRAM, "b.py": "other = 1\n", "c.py": ""})
    with pytest.raises(InputError, match=r"none of 3 files is kept: license 2, empty 1 \(for instance a\.py"):
        build_corpus([f"path:{project}"], tmp_path / "corpus")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match="no files at all"):
        build_corpus([f"path:{tmp_path}/nothing"], tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir() if "corpus" in path.name] == []
    facts = build_corpus([f"path:{project}"], tmp_path / "corpus", policy=Policy(tiers=("permissive", "unknown")))
    assert facts["documents"] == 2


def test_what_is_wrong_is_said_before_any_work(project: Path, tmp_path: Path) -> None:
    source = f"path:{project}"
    for sources, message in [([], "at least one"), (["what"], "path:DIR"), ([source, source], "given twice")]:
        with pytest.raises(ConfigError, match=message):
            build_corpus(sources, tmp_path / "corpus")
    precious = fill(tmp_path / "precious", {"thesis.txt": "x"})
    with pytest.raises(ConfigError, match="not a corpus"):
        build_corpus([source], precious)
    with pytest.raises(ConfigError, match="is a file"):
        build_corpus([source], precious / "thesis.txt")
    assert (precious / "thesis.txt").read_text() == "x"
    with pytest.raises(InputError, match="is not a folder"):
        build_corpus([f"path:{tmp_path}/missing"], tmp_path / "corpus")


def test_a_corpus_is_replaced_by_the_next_only_when_that_is_whole(project: Path, tmp_path: Path) -> None:
    build_corpus([f"path:{project}"], tmp_path / "corpus")
    before = read_manifest(tmp_path / "corpus")["fingerprint"]
    empty = fill(tmp_path / "empty", {"a.py": ""})
    with pytest.raises(InputError):
        build_corpus([f"path:{empty}"], tmp_path / "corpus")
    assert read_manifest(tmp_path / "corpus")["fingerprint"] == before
    (project / "more.py").write_text("more = 1\n")
    assert build_corpus([f"path:{project}"], tmp_path / "corpus")["documents"] == 4
    assert read_manifest(tmp_path / "corpus")["fingerprint"] != before


def test_a_line_of_100_megabytes_takes_little_memory(tmp_path: Path) -> None:
    project = fill(tmp_path / "p", {"LICENSE": MIT, "a.py": PROGRAM})
    with (project / "line.py").open("wb") as out:
        for _ in range(100):
            out.write(b"a" * (1 << 20))
    program = (
        "import sys; from pathlib import Path; from codemill.corpus.build import build_corpus\n"
        "build_corpus([f'path:{sys.argv[1]}'], Path(sys.argv[2]), max_file_bytes=200 << 20)\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    command = [sys.executable, "-c", program, str(project), str(tmp_path / "corpus")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = {row["path"]: row for row in read_decisions(tmp_path / "corpus")}
    assert (rows["line.py"]["reason"], rows["line.py"]["bytes"]) == ("long-line", 100 << 20)
    assert int(result.stdout) < 170_000  # KiB at the highest; a corpus of nothing takes about 90,000
    # With the ordinary limits it is not even copied into the cache.
    build_corpus([f"path:{project}"], tmp_path / "corpus")
    rows = {row["path"]: row for row in read_decisions(tmp_path / "corpus")}
    assert (rows["line.py"]["reason"], rows["line.py"]["detail"]) == ("not-collected", "larger than 8388608 bytes")


@pytest.mark.network
def test_a_real_release(tmp_path: Path) -> None:
    facts = build_corpus(["pypi:toolz==1.0.0"], tmp_path / "corpus")
    (repository,) = facts["repositories"]
    assert (repository["license"], repository["files"], repository["kept"]) == ("BSD-3-Clause", 42, 35)
    documents = {document.path: document for document in read_documents(tmp_path / "corpus")}
    assert {"toolz/itertoolz.py", "toolz/tests/test_itertoolz.py"} <= set(documents)
    assert {document.license for document in documents.values()} == {"BSD-3-Clause"}
    generated = {row["path"] for row in read_decisions(tmp_path / "corpus") if row["reason"] == "generated"}
    assert "toolz/_version.py" in generated
