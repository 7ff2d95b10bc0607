"""The sentence at the top says what the numbers say, and no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_artifacts import Outcomes, Spec, outcomes, write_run

from codemill.report.data import read_run
from codemill.report.finding import Finding, bits_sentence, find


def finding(tmp_path: Path, suite: Outcomes) -> Finding:
    run = read_run(write_run(tmp_path, Spec(suites={"held-out": suite})))
    return find(run.suites[0])


def test_better_names_the_counts_and_the_interval(tmp_path: Path) -> None:
    found = finding(tmp_path, outcomes(both=20, gained=14, lost=2, neither=28))
    assert found.outcome == "better"
    assert found.sentence.startswith(
        "Solves 34 of 64 held-out tasks, 12 more than before: +18.8 points, 95 % interval +"
    )


def test_worse_is_said_as_plainly(tmp_path: Path) -> None:
    found = finding(tmp_path, outcomes(both=20, gained=2, lost=14, neither=28))
    assert found.outcome == "worse"
    assert found.sentence.startswith(
        "Solves 22 of 64 held-out tasks, 12 fewer than before: −18.8 points, 95 % interval −"
    )


def test_an_interval_that_covers_zero_is_no_change(tmp_path: Path) -> None:
    found = finding(tmp_path, outcomes(both=20, gained=5, lost=3, neither=36))
    assert found.outcome == "unclear"
    assert "No change that 64 held-out tasks can show: 25 solved, 2 more than before" in found.sentence
    assert "covers 0" in found.sentence


def test_few_changed_tasks_are_not_enough_even_where_the_interval_leaves_out_zero(tmp_path: Path) -> None:
    found = finding(tmp_path, outcomes(both=20, gained=5, lost=0, neither=39))
    run = read_run(write_run(tmp_path / "again", Spec(suites={"held-out": outcomes(20, 5, 0, 39)})))
    assert run.suites[0].comparison is not None
    assert run.suites[0].comparison["difference"]["low"] > 0  # else this would not test the sign test
    assert found.outcome == "unclear"
    assert "5 gained and 0 lost may be chance, p = 0.06" in found.sentence


def test_one_task_is_never_a_finding(tmp_path: Path) -> None:
    assert finding(tmp_path, outcomes(gained=1)).outcome == "unclear"


def test_nothing_changed(tmp_path: Path) -> None:
    found = finding(tmp_path, outcomes(both=3, neither=5))
    assert (found.outcome, found.sentence) == (
        "same",
        "No change: each of 8 held-out tasks ended as before (3 solved).",
    )


def test_as_many_gained_as_lost_is_not_no_change_at_all(tmp_path: Path) -> None:
    found = finding(tmp_path, outcomes(both=3, gained=2, lost=2, neither=3))
    assert found.outcome == "unclear"
    assert "5 solved, as many as before" in found.sentence


def test_several_samples_are_averages(tmp_path: Path) -> None:
    suite = Outcomes(before=[(False, False)] * 10, after=[(True, False)] * 9 + [(False, False)])
    found = finding(tmp_path, suite)
    assert found.outcome == "better"
    assert found.sentence.startswith("Solves on average 4.5 of 10 held-out tasks, 4.5 more than before: +45.0 points")


def test_unscorable_answers_make_it_no_result(tmp_path: Path) -> None:
    found = finding(tmp_path, outcomes(both=20, gained=14, neither=30, errors=(0, 1)))
    assert found.outcome == "invalid"
    assert "2 of 64 answers after training could not be scored, more than the 1 %" in found.sentence


def test_a_few_unscorable_answers_are_mentioned(tmp_path: Path) -> None:
    found = finding(tmp_path, outcomes(both=60, gained=40, neither=100, errors=(0,)))
    assert found.outcome == "better"
    assert found.sentence.endswith("Counted as wrong: 1 answer that could not be scored.")


def test_other_settings_on_the_other_side_are_told(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, Spec(suites={"held-out": outcomes(20, 14, 2, 28)})))
    suite = run.suites[0]
    assert suite.before is not None
    other = {**suite.before.summary, "styles": ["prefix"]}
    found = find(replace(suite, before=replace(suite.before, summary=other)))
    assert "Asked differently before and after: styles ['prefix'] and ['infill']." in found.sentence


def test_a_suite_of_one_side_is_no_result(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    found = find(replace(run.suites[0], before=None, comparison=None, tasks=()))
    assert found.outcome == "invalid"
    assert "the model before training was not measured" in found.sentence


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (1.0, 0.9, "Predicts held-out files better: 0.900 bits per byte, before 1.000 (−10.0 %)"),
        (0.9, 1.0, "Predicts held-out files worse: 1.000 bits per byte"),
        (0.9, 0.90001, "as well as before"),
    ],
)
def test_bits_per_byte(before: float, after: float, says: str) -> None:
    one, other = ({"bits_per_byte": value, "bytes": 10} for value in (before, after))
    assert says in bits_sentence(one, other)
    assert "not comparable" in bits_sentence(one, {**other, "bytes": 11})
    assert bits_sentence(None, other) == ""
