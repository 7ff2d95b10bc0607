"""The page as a whole: what it shows, that it is one harmless file, and that hostile text stays text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_artifacts import Outcomes, Spec, _close, outcomes, write_run

from codemill.core.errors import InputError, IntegrityError
from codemill.report.build import build_report

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>"
HOSTILE += "\x1b[31mred\x1b[0m\u202eevil\ud800 \x00"


class Page(HTMLParser):
    """The tags of a page, checked for balance, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> closes another"

    def handle_data(self, data: str) -> None:
        self.text += data


def page(tmp_path: Path, spec: Spec | None = None) -> tuple[Page, str, dict]:  # type: ignore[type-arg]
    facts = build_report(write_run(tmp_path, spec), tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return Page(text), text, facts


def harmless(found: Page, text: str) -> None:
    """No script, no handler, nothing that is loaded."""
    assert not {tag for tag, _ in found.tags} & {"script", "link", "img", "iframe", "object", "form", "base", "embed"}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "srcset", "xlink:href", "action", "data"):
            assert name not in attributes, tag
        assert str(attributes.get("href", "#")).startswith("#"), tag
        assert "url(" not in (attributes.get("style") or "")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_a_whole_page(tmp_path: Path) -> None:
    suites = {"humaneval": outcomes(5, 1, 1, 3, origin="humaneval"), "held-out": outcomes(20, 14, 2, 28)}
    found, text, facts = page(tmp_path, Spec(suites=suites, notes=("Probably seen before.",)))
    harmless(found, text)
    assert facts["outcome"] == "better"
    assert list(facts["suites"]) == ["held-out", "humaneval"]  # the user's own repositories come first
    assert facts["suites"]["held-out"]["comparison"]["better"] == 14
    assert facts == json.loads((tmp_path / "out" / "report.json").read_text())
    for words in (
        "Tiny-Coder-1M", "bf16, Apache-2.0", "Probably seen before.", "12 more than before",
        "+18.8", "14 / 2", "no test enters it", "generated", "COPYING.txt", "GPL-3.0-only", "quarantined",
        "AssertionError: 3 != 4", "return total_of(values)", "mount namespace, Landlock 6", "1.250", "0.900",
        "*test*", "flaky 2, skipped 5",
    ):  # fmt: skip
        assert words in found.text, words
    assert found.text.index("Solves 34 of 64") < found.text.index("Did it help?")
    assert (
        len([tag for tag, a in found.tags if tag == "polyline"]) == 6
    )  # loss, mean and rate, on a desk and on a phone


def test_lineage_names_hashes_and_what_came_from_what(tmp_path: Path) -> None:
    inputs = write_run(tmp_path)
    build_report(inputs, tmp_path / "out")
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    for folder in ("model", "corpus", "tasks", "train", "before", "after"):
        manifest = json.loads((tmp_path / folder / "manifest.json").read_text())
        assert manifest["fingerprint"] in text, folder
    assert (
        json.loads((tmp_path / "train" / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"] in text
    )
    assert re.search(r"model\s+train\b", text)  # the evaluation after was made from the stage `train`
    assert "train 7" in text  # the seed
    assert "name: sprockets" in text  # the recipe


def test_examples_of_every_kind_are_shown(tmp_path: Path) -> None:
    found, _, _ = page(tmp_path, Spec(suites={"held-out": outcomes(4, 5, 1, 2)}))
    shown = [a["id"] for tag, a in found.tags if tag == "details" and a.get("class") == "sample"]
    assert shown == [
        f"s0-{c}-{i}" for c, n in (("gained", 3), ("lost", 1), ("both", 3), ("neither", 2)) for i in range(1, n + 1)
    ]
    assert "Solved only after 5 tasks, 3 shown" in found.text
    marks = [tag for tag, _ in found.tags if tag == "mark"]
    assert len(marks) == 2 * len(shown)


def test_several_samples_show_how_many_passed(tmp_path: Path) -> None:
    suite = Outcomes(before=[(False, False)] * 4, after=[(False, True)] * 4)
    found, _, _ = page(tmp_path, Spec(suites={"held-out": suite}))
    assert "Solved more often after" in found.text
    assert "1 of 2 passed" in found.text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """Text that JSON and Parquet can hold; a Parquet string cannot hold a lone surrogate or a manifest a NUL path."""
    clean = HOSTILE.replace("\ud800", "")
    spec = Spec(
        title=HOSTILE,
        notes=(HOSTILE,),
        prefix=HOSTILE + "\ndef f():\n" + HOSTILE,
        completion=HOSTILE + "\n",
        path=clean,
        detail=clean,
        message=HOSTILE * 50,
        isolation={"files": HOSTILE, HOSTILE: "nothing"},
        rejected=[{"repository": HOSTILE, "path": HOSTILE, "qualname": "f", "kind": "body", "reason": HOSTILE}],
        suites={"held-out": outcomes(1, 2, 1, 1), "<b onclick=x>&amp": outcomes(1, 0, 0, 0, origin="humaneval")},
    )
    found, text, facts = page(tmp_path, spec)
    harmless(found, text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    for spelled in ("␛[31mred", "‹U+202E›evil", "‹U+D800›", "␀"):
        assert spelled in found.text, spelled
    assert "<script>" in found.text  # as text
    assert facts["title"] == HOSTILE  # the numbers are for programs and keep what was there


def test_endless_text_is_cut(tmp_path: Path) -> None:
    spec = Spec(
        completion="x = 1\n" * 20_000,
        prefix="# " + "y" * 3_000_000 + "\n",
        message="boom " * 200_000,
        path="p" * 900 + ".py",
        title="t" * 10_000,
        suites={"held-out": outcomes(1, 1, 1, 1)},
    )
    found, text, _ = page(tmp_path, spec)
    assert "19,961 more lines" in found.text  # 20,001 with the last, 40 shown
    assert len(text) < 150_000


def test_without_the_optional_parts(tmp_path: Path) -> None:
    found, text, facts = page(tmp_path, Spec(bits=None, rejected=(), isolation={}, losses=(None, None)))
    harmless(found, text)
    assert "Every function that was looked at became a task." in found.text
    assert "No loss was recorded." in found.text
    assert "do not say what isolation" in found.text
    assert "bits per byte" not in found.text.replace("held out for bits per byte", "")
    assert facts["bits_per_byte"] == {"before": None, "after": None, "finding": ""}


def test_harness_errors_show_both_bounds_and_invalid(tmp_path: Path) -> None:
    found, _, facts = page(tmp_path, Spec(suites={"held-out": outcomes(both=4, neither=4, errors=(0, 1))}))
    assert facts["outcome"] == "invalid"
    assert "Not a result" in found.text
    assert "invalid" in found.text
    assert "25.0 % / 33.3 %" in found.text  # 2 of 8, 2 of 6


def test_an_axis_without_isolation_is_marked(tmp_path: Path) -> None:
    _, text, _ = page(tmp_path, Spec(isolation={"files": "Landlock 6", "network": "nothing"}))
    assert re.search(r'network</th>.*?o-invalid"><span class="sign">!</span>nothing', text, re.DOTALL)


def test_same_artifacts_same_bytes(tmp_path: Path) -> None:
    inputs = write_run(tmp_path, Spec(suites={"held-out": outcomes(8, 5, 2, 9), "humaneval": outcomes(3, 1, 1, 2)}))
    for out in ("one", "two"):
        build_report(inputs, tmp_path / out)
    for name in ("report.html", "report.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_another_models_evaluation_is_called_out(tmp_path: Path) -> None:
    inputs = write_run(tmp_path)
    (tmp_path / "after" / "manifest.json").unlink()
    _close(tmp_path / "after", "evaluate", {"model": "0123456789abcdef"})
    facts = build_report(inputs, tmp_path / "out")
    assert facts["notes"] == ["The model measured after training is not the one that this run trained."]
    assert facts["notes"][0] in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("file", ["after/held-out/verdicts.jsonl", "train/metrics.jsonl", "corpus/decisions.parquet"])
def test_a_file_changed_afterwards_is_refused(tmp_path: Path, file: str) -> None:
    inputs = write_run(tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(IntegrityError, match=re.escape(str(path))):
        build_report(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_summary_that_is_not_what_its_verdicts_say_is_refused(tmp_path: Path) -> None:
    inputs = write_run(tmp_path)
    path = tmp_path / "after" / "held-out" / "summary.json"
    summary = json.loads(path.read_text())
    summary["statuses"]["passed"] += 1
    path.write_text(json.dumps(summary))
    (tmp_path / "after" / "manifest.json").unlink()
    _close(tmp_path / "after", "evaluate")
    with pytest.raises(IntegrityError, match=r"says 5 passed of 4 tasks, its verdicts 4 of 4"):
        build_report(inputs, tmp_path / "out")


def test_an_unfinished_artifact_is_refused(tmp_path: Path) -> None:
    inputs = write_run(tmp_path)
    (tmp_path / "train" / "manifest.json").unlink()
    with pytest.raises(InputError, match="not a finished"):
        build_report(inputs, tmp_path / "out")


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    inputs = write_run(tmp_path)
    with pytest.raises(InputError, match="'corpus'"):
        build_report(replace(inputs, tasks=inputs.corpus), tmp_path / "out")


def test_only_tasks_that_both_were_asked_are_compared(tmp_path: Path) -> None:
    """The same id with another text is another task."""
    inputs = write_run(tmp_path, Spec(suites={"held-out": outcomes(both=4, neither=4)}))
    path = tmp_path / "before" / "held-out" / "tasks.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].replace("def total", "def other"), *lines[1:]]) + "\n")
    manifest = json.loads((tmp_path / "before" / "manifest.json").read_text())
    (tmp_path / "before" / "manifest.json").unlink()
    _close(tmp_path / "before", "evaluate", manifest["inputs"])
    facts = build_report(inputs, tmp_path / "out")
    assert facts["suites"]["held-out"]["compared"] == 7
    assert "Left out: 1 task of 8" in facts["finding"]
