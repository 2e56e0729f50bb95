"""Differences of steps where some runs never got there, and of AUC over seeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsurgery.experiments.comparison import Bounds, compare_aucs, compare_steps, pairs_of
from wsurgery.experiments.runs import Run
from wsurgery.figures.comparison_tables import auc_table, steps_table
from wsurgery.statistics.bootstrap import bootstrap_aucs
from wsurgery.statistics.delong import paired_delong
from wsurgery.statistics.pairs import paired_test
from wsurgery.training.predictions import Predictions

INF = float("inf")


def run(seed: object, steps: int | None, last: int = 200) -> Run:
    """A run that passes 0.8 at `steps`."""
    auc = {step: 0.9 if steps is not None and step >= steps else 0.6 for step in range(0, last + 1, 20)}
    return Run(Path(f"x/{seed}"), "x", str(seed), auc, {})


@pytest.mark.parametrize(
    ("a", "b", "difference", "sooner"),
    [
        (run(1, 60), run(1, 100), (-40, -40), (1, 0, 0)),
        (run(1, 60), run(1, 60), (0, 0), (0, 0, 1)),
        (run(1, 60), run(1, None), (-INF, -101), (1, 0, 0)),
        (run(1, None), run(1, 60), (101, INF), (0, 1, 0)),
        (run(1, None), run(1, None), (-INF, INF), (0, 0, 1)),
        (run(1, None, 40), run(1, 60), (-19, INF), (0, 0, 1)),  # b was at 60; a, past 40, may have been sooner
        (run(1, None, 60), run(1, 60), (1, INF), (0, 1, 0)),
        (run(1, 0), run(1, 20), (-20, -20), (1, 0, 0)),
    ],
)
def test_censoring_bounds_a_difference(a: Run, b: Run, difference: tuple[float, float], sooner: object) -> None:
    steps = compare_steps([a], [b], 0.8)
    assert steps.differences == [difference]
    assert steps.sooner == sooner
    assert (steps.test, steps.p) == ("sign-flip", 1)
    assert steps.pairs is not None
    signs = {(1, 0, 0): (0.5, 1), (0, 1, 0): (1, 0.5), (0, 0, 1): (1, 1)}
    assert (steps.pairs.p_less, steps.pairs.p_greater) == signs[steps.sooner]


@pytest.mark.parametrize("other", [600, 100, None])
def test_a_run_that_stopped_as_it_got_there_is_no_bound(other: int | None) -> None:
    """A stopped run of 200 steps against one of 1,000: the same as the run that went on."""
    stopped = [replace(run(seed, 200), stopped=0.8) for seed in range(5)]
    went_on = [run(seed, 200, 1000) for seed in range(5)]
    others = [run(seed, other, 1000) for seed in range(5)]
    assert stopped[0].auc == {step: auc for step, auc in went_on[0].auc.items() if step <= 200}
    a, b = compare_steps(stopped, others, 0.8), compare_steps(went_on, others, 0.8)
    assert (a.differences, a.p, a.cut, a.pairs) == (b.differences, b.p, b.cut, b.pairs)
    assert compare_steps(stopped, others[:4], 0.8).p == compare_steps(went_on, others[:4], 0.8).p
    assert compare_steps(
        [replace(x, stopped=0.7) for x in stopped], others, 0.8
    ).cut  # it was to stop below the threshold
    both = compare_steps(stopped, [replace(x, stopped=0.8) for x in stopped], 0.8)
    assert (both.cut, both.differences[0]) == (False, (0, 0))


def test_runs_of_the_same_seeds_are_paired_whatever_their_order() -> None:
    a, b = [run(seed, 60) for seed in (1, 2, 10)], [run(seed, steps) for seed, steps in ((10, 80), (2, None), (1, 60))]
    assert pairs_of(a, b) == ([(0, 2), (1, 1), (2, 0)], True)
    steps = compare_steps(a, b, 0.8)
    assert steps.differences == [(0, 0), (-INF, -101), (-20, -20)]
    assert steps.difference == (-20, -20)
    assert steps.medians == ((60, 60), (80, 80))
    assert steps.p == 0.5
    assert steps.pairs == pytest.approx(paired_test([0, np.log(60 / 161), np.log(60 / 80)]))


def test_five_seeds_of_an_arm_that_is_always_sooner_are_one_in_32() -> None:
    a, b = [run(seed, 40 + 20 * seed) for seed in range(5)], [run(seed, 80 + 20 * seed) for seed in range(5)]
    steps = compare_steps(a, b, 0.8)
    assert steps.pairs is not None
    assert (steps.pairs.p_less, steps.pairs.p_greater, steps.p) == (1 / 32, 1, 1 / 16)
    ratios = np.log([40 / 80, 60 / 100, 80 / 120, 100 / 140, 120 / 160])
    assert steps.pairs.mean == pytest.approx(ratios.mean())
    assert steps.pairs.ci == pytest.approx((ratios.min(), ratios.max()))
    caption = str(steps_table(steps).caption)
    assert "A takes 0.64 times the steps of B (90%: 0.50 to 0.75)\n" in caption
    assert "one-sided: p = 0.031 that A is sooner, 1 that B is; 5 pairs can give 0.031 at least" in caption
    b[0] = run(0, None)
    assert "(90%: 0.25 to 0.75), a run that never got there" in str(steps_table(compare_steps(a, b, 0.8)).caption)


def test_runs_of_other_seeds_are_two_groups_and_none_is_dropped() -> None:
    a, b = [run(seed, 60) for seed in (1, 2, 3)], [run(seed, None) for seed in (2, 3, 4)]
    assert pairs_of(a, b) == ([(i, j) for i in range(3) for j in range(3)], False)
    steps = compare_steps(a, b, 0.8)
    assert (steps.differences, steps.difference) == ([], (-INF, -101))
    assert steps.medians == ((60, 60), (161, INF))
    assert (steps.test, steps.exact, steps.pairs) == ("log-rank", True, None)
    assert steps.p == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ((60, 60), "60"),
        ((201, INF), "≥ 201"),
        ((-INF, -101), "≤ -101"),
        ((-20, 40), "-20 to 40"),
        ((-INF, INF), "unknown"),
    ],
)
def test_bounds_in_words(bounds: tuple[float, float], words: str) -> None:
    assert Bounds(*bounds).in_words() == words


def predictions(seed: int, *, patients: bool = True) -> Predictions:
    """Scores that depend on the seed, of labels that do not."""
    rng = np.random.default_rng(0)
    labels = (rng.random((90, 3)) < 0.4).astype(float)
    labels[rng.random((90, 3)) < 0.2] = np.nan
    labels[:, 1] = 0  # never positive
    paths = tuple(f"{i}.png" for i in range(90))
    owners = tuple(f"{i // 2}" for i in range(90)) if patients else paths
    scores = np.random.default_rng(seed).normal(np.nan_to_num(labels), 1.5)
    return Predictions(f"run {seed}", paths, owners, ("x", "y", "referable"), labels, scores, 2)


def test_differences_are_means_over_the_pairs_of_runs() -> None:
    a, b, pairs = [predictions(1), predictions(2)], [predictions(3), predictions(4)], [(0, 1), (1, 0)]
    found = compare_aucs(a, b, pairs, resamples=100, seed=5)
    assert (found.images, found.unit, found.units) == (90, "patients", 45)
    assert found.labels["y"] is None
    assert found.macro == found.labels["x"]  # the only label that has an AUC; referable is none of them
    for name, column in (("x", 0), ("referable", 2)):
        row = found.labels["x"] if name == "x" else found.referable
        known = ~np.isnan(a[0].labels[:, column])
        auc = [roc_auc_score(p.labels[known, column], p.scores[known, column]) for p in (*a, *b)]
        assert row is not None
        assert (row.a, row.b) == pytest.approx((np.mean(auc[:2]), np.mean(auc[2:])), rel=1e-12)
        differences = [auc[0] - auc[3], auc[1] - auc[2]]
        assert row.difference == pytest.approx(np.mean(differences), rel=1e-10)
        assert row.over_seeds == paired_test([test.difference for test in row.tests])
        assert row.seeds[:3] == pytest.approx((np.mean(differences), min(differences), max(differences)))
        labels = a[0].labels[:, [column]]
        expected = [
            paired_delong(labels, a[i].scores[:, [column]], b[j].scores[:, [column]], patients=a[0].patients)
            for i, j in pairs
        ]
        assert row.tests == expected
        drawn = [
            bootstrap_aucs(labels, p.scores[:, [column]], p.patients, resamples=100, seed=5)[:, 0] for p in (*a, *b)
        ]
        assert row.ci == pytest.approx(np.quantile((sum(drawn[:2]) - sum(drawn[2:])) / 2, [0.025, 0.975]), rel=1e-9)


def test_the_p_over_seeds_is_of_sign_flips_of_the_auc_and_only_where_runs_share_seeds() -> None:
    a, b = [predictions(seed) for seed in range(1, 6)], [predictions(seed) for seed in range(11, 16)]
    labels = a[0].labels[:, 0] - 0.5
    a = [replace(p, scores=p.scores + 4 * np.nan_to_num(labels)[:, None]) for p in a]
    found = compare_aucs(a, b, [(i, i) for i in range(5)], resamples=0, seed=0)
    row = found.labels["x"]
    assert row is not None
    assert row.over_seeds is not None
    assert all(test.difference > 0 for test in row.tests)
    assert row.over_seeds[4:] == (1 / 32, 1, 1 / 32)
    assert row.over_seeds.ci == (min(x.difference for x in row.tests), max(x.difference for x in row.tests))
    table = auc_table(found)
    assert [str(column.header) for column in table.columns][-1] == "p, over seeds"
    assert "5 pairs can give 0.031 at least" in str(table.caption)
    assert next(iter(table.columns[-1].cells)) == "0.031"
    for pairs in ([(0, 0)], [(i, j) for i in range(2) for j in range(2)]):
        n = max(i for i, _ in pairs) + 1
        row = compare_aucs(a[:n], b[:n], pairs, resamples=0, seed=0).macro
        assert row is not None
        assert row.over_seeds is None


def test_images_are_independent_where_no_patient_is_known() -> None:
    a, b = predictions(1, patients=False), predictions(2, patients=False)
    found = compare_aucs([a], [b], [(0, 0)], resamples=0, seed=0)
    assert (found.unit, found.units) == ("images", 90)
    assert found.macro is not None
    assert found.macro.ci is None
    assert found.macro.tests == [paired_delong(a.labels[:, [0]], a.scores[:, [0]], b.scores[:, [0]])]
