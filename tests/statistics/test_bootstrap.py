"""The bootstrap against a plain loop over scikit-learn, and against what it must not depend on."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from wsurgery.statistics import bootstrap
from wsurgery.statistics.bootstrap import bootstrap_aucs, percentile_interval


def clustered(rng, patients, levels=10**6, k=2, images=3, unknown=0.2):
    """Labels, scores and patients: up to `images` images of a patient, which are alike."""
    owner = np.repeat(np.arange(patients), rng.integers(1, images + 1, patients))
    severity = rng.normal(0, 1, (patients, k))[owner]
    labels = (severity + rng.normal(0, 0.7, severity.shape) > 0.5).astype(np.float32)
    labels[rng.random(labels.shape) < unknown] = np.nan
    scores = np.round((severity + rng.normal(0, 1, severity.shape)) * levels / 10)
    return labels, scores.astype(np.float32), [f"patient {i}" for i in owner]


@pytest.mark.parametrize("levels", [10, 10**6])
def test_every_sample_has_the_auc_that_scikit_learn_finds(levels):
    labels, scores, patients = clustered(np.random.default_rng(0), 60, levels)
    ours = bootstrap_aucs(labels, scores, patients, resamples=40, seed=7)
    names, owner = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(7)
    for sample in ours:
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[owner]
        for i, auc in enumerate(sample):
            rows = np.repeat(np.arange(len(owner)), times)
            rows = rows[~np.isnan(labels[rows, i])]
            assert auc == pytest.approx(roc_auc_score(labels[rows, i], scores[rows, i]), rel=1e-12)


def test_neither_blocks_nor_the_order_of_images_change_a_sample(monkeypatch):
    labels, scores, patients = clustered(np.random.default_rng(1), 50, 20)
    whole = bootstrap_aucs(labels, scores, patients, resamples=30, seed=0)
    order = np.random.default_rng(2).permutation(len(patients))
    shuffled = bootstrap_aucs(labels[order], scores[order], [patients[i] for i in order], resamples=30, seed=0)
    np.testing.assert_array_equal(shuffled, whole)
    monkeypatch.setattr(bootstrap, "_CELLS", 7 * len(patients))
    np.testing.assert_array_equal(bootstrap_aucs(labels, scores, patients, resamples=30, seed=0), whole)
    assert (bootstrap_aucs(labels, scores, patients, resamples=30, seed=1) != whole).all()


def test_more_copies_of_the_same_image_of_a_patient_add_nothing():
    labels, scores, patients = clustered(np.random.default_rng(3), 40, images=1)
    once = bootstrap_aucs(labels, scores, patients, resamples=50, seed=0)
    thrice = bootstrap_aucs(*(np.repeat(x, 3, axis=0) for x in (labels, scores, patients)), resamples=50, seed=0)
    np.testing.assert_allclose(thrice, once, rtol=1e-12)


def test_a_sample_without_both_classes_is_left_out():
    labels = np.array([[1], [0], [0], [np.nan]], np.float32)
    scores = np.arange(4, dtype=np.float32)[:, None]
    drawn = bootstrap_aucs(labels, scores, list("abcd"), resamples=2000, seed=0)[:, 0]
    lacking = (3 / 4) ** 4 + (2 / 4) ** 4 - (1 / 4) ** 4  # a is not drawn, or neither b nor c, or none of the three
    assert np.isnan(drawn).mean() == pytest.approx(lacking, abs=0.04)
    assert percentile_interval(drawn) == (0.0, 0.0)
    assert percentile_interval(np.full(5, np.nan)) is None
    assert percentile_interval(np.empty(0)) is None


def test_one_patient_alone_cannot_be_resampled():
    labels, scores = np.array([[0], [1]], np.float32), np.array([[0], [1]], np.float32)
    assert np.isnan(bootstrap_aucs(labels, scores, ["a", "a"], resamples=5, seed=0)).all()


def test_nineteen_intervals_in_twenty_hold_the_true_auc_of_clustered_images():
    """Two images of a patient, the same but for a little noise: resampling images would hold it in 17 of 20."""
    rng, truth = np.random.default_rng(4), norm.cdf(1 / np.sqrt(2))
    patients = np.repeat(np.arange(80).astype(str), 2)
    labels = np.repeat([0.0, 1.0], 80)[:, None]
    held = {"patients": 0, "images": 0}
    for seed in range(300):
        scores = (np.repeat(rng.normal(labels[::2], 1), 2, axis=0) + rng.normal(0, 0.01, labels.shape)).astype(float)
        for unit, groups in (("patients", patients), ("images", np.arange(160).astype(str))):
            drawn = bootstrap_aucs(labels, scores, groups, resamples=200, seed=seed)[:, 0]
            low, high = percentile_interval(drawn)
            held[unit] += low <= truth <= high
    assert 0.9 < held["patients"] / 300 < 0.98
    assert held["images"] / 300 < 0.89
