"""Estimates against published vectors and against exact enumeration."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from codemill.core.contracts import Status, Task, Verdict
from codemill.evaluation.statistics import bootstrap, exact_sign_test, pass_at_k, pass_hat_k
from codemill.evaluation.summary import compare, summarise


@pytest.mark.parametrize(
    ("n", "c", "k", "at", "hat"),
    [(10, 3, 1, 0.3, 0.3), (10, 3, 5, 11 / 12, 0), (10, 0, 5, 0, 0), (10, 10, 10, 1, 1), (5, 1, 5, 1, 0),
     (200, 1, 100, 0.5, 0), (4, 2, 2, 5 / 6, 1 / 6)],
)  # fmt: skip
def test_pass_at_k_vectors(n: int, c: int, k: int, at: float, hat: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(at)
    assert pass_hat_k(n, c, k) == pytest.approx(hat)


def test_pass_at_k_is_the_average_over_all_subsets() -> None:
    outcomes = [True] * 3 + [False] * 4
    for k in range(1, 8):
        subsets = list(combinations(outcomes, k))
        assert pass_at_k(7, 3, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))
        assert pass_hat_k(7, 3, k) == pytest.approx(sum(all(s) for s in subsets) / len(subsets))
    assert math.isnan(pass_at_k(3, 3, 5))
    assert math.isnan(pass_hat_k(3, 3, 5))


def test_bootstrap_has_the_width_of_the_normal_interval() -> None:
    values = [1.0] * 60 + [0.0] * 40
    estimate = bootstrap(values, [str(i) for i in range(100)])
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert estimate.value == pytest.approx(0.6)
    assert estimate.low == pytest.approx(0.6 - half, abs=0.015)
    assert estimate.high == pytest.approx(0.6 + half, abs=0.015)


def test_clusters_widen_the_interval() -> None:
    values = [1.0, 1.0, 0.0, 0.0] * 20
    alone = bootstrap(values, [str(i) for i in range(80)])
    paired = bootstrap(values, [str(i // 2) for i in range(80)])
    assert paired.clusters == 40
    assert paired.high - paired.low > 1.3 * (alone.high - alone.low)
    assert math.isnan(bootstrap([], []).value)


def test_sign_test() -> None:
    assert exact_sign_test(0, 0) == 1.0
    assert exact_sign_test(5, 0) == pytest.approx(2 / 32)
    assert exact_sign_test(3, 3) == 1.0


def task(i: int) -> Task:
    return Task(id=f"t{i}", verifier={"kind": "program"}, metadata={"cluster": f"c{i}", "kind": "body"})


def verdict(i: int, status: Status, sample: int = 0) -> Verdict:
    return Verdict(task_id=f"t{i}", status=status, score=float(status is Status.PASSED), sample=sample)


def test_summary_keeps_its_denominator() -> None:
    tasks = [task(i) for i in range(4)]
    ends = [Status.PASSED, Status.FAILED, Status.TIMEOUT, Status.HARNESS_ERROR]
    summary = summarise(tasks, [verdict(i, end) for i, end in enumerate(ends)])
    assert summary["scores"]["pass@1"]["value"] == 0.25
    assert summary["bounds"] == {"all_unscorable_wrong": 0.25, "all_unscorable_left_out": pytest.approx(1 / 3)}
    assert not summary["valid"]
    clean = summarise(tasks[:3], [verdict(i, end) for i, end in enumerate(ends[:3])])
    assert clean["valid"]
    assert clean["by_kind"]["body"] == {"tasks": 3, "pass@1": pytest.approx(1 / 3)}


def test_missing_answers_are_a_hole_not_a_smaller_suite() -> None:
    summary = summarise([task(0), task(1)], [verdict(0, Status.PASSED)])
    assert summary["missing"] == 1
    assert summary["scores"] == {}
    assert not summary["valid"]


def test_k_above_the_samples_is_not_computed() -> None:
    verdicts = [verdict(0, Status.PASSED, s) for s in range(3)]
    assert set(summarise([task(0)], verdicts, (1, 3, 10))["scores"]) == {"pass@1", "pass@3"}


def test_paired_difference() -> None:
    tasks = [task(i) for i in range(30)]
    before = [verdict(i, Status.PASSED if i < 10 else Status.FAILED) for i in range(30)]
    after = [verdict(i, Status.PASSED if 2 <= i < 22 else Status.FAILED) for i in range(30)]
    result = compare(tasks, before, after)
    assert (result["better"], result["worse"], result["same"]) == (12, 2, 16)
    assert result["difference"]["value"] == pytest.approx(1 / 3)
    assert 0 < result["difference"]["low"] < 1 / 3 < result["difference"]["high"]
    nothing = compare(tasks, before, before)
    assert nothing["difference"]["value"] == nothing["difference"]["low"] == nothing["difference"]["high"] == 0
