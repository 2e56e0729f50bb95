"""Areas under ROC curves against scikit-learn, their intervals against DeLong's definition."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from wsurgery.statistics.auc import auc_per_label, delong_interval, macro


def graded(rng, n, k, levels):
    """Scores with ties, and labels that depend on them; a fifth of the labels are unknown."""
    scores = rng.integers(0, levels, (n, k)).astype(np.float32) / 7
    labels = (scores + rng.normal(0, 1, (n, k)) > scores.mean()).astype(np.float32)
    labels[rng.random((n, k)) < 0.2] = np.nan
    return labels, scores


@pytest.mark.parametrize(("n", "levels"), [(30, 4), (500, 10), (500, 10**6)])
def test_auc_is_scikit_learns_with_ties_and_unknown_labels(n, levels):
    labels, scores = graded(np.random.default_rng(0), n, 4, levels)
    ours = auc_per_label(labels, scores, "abcd")
    for i, name in enumerate("abcd"):
        known = ~np.isnan(labels[:, i])
        assert ours[name] == pytest.approx(roc_auc_score(labels[known, i], scores[known, i]), rel=1e-12)
    assert macro(ours) == pytest.approx(np.mean(list(ours.values())), rel=1e-12)


def test_auc_is_exact_on_many_images():
    rng = np.random.default_rng(1)
    labels = (rng.random((200_000, 1)) < 0.995).astype(np.float32)
    scores = (labels + rng.normal(0, 2, labels.shape)).astype(np.float32)
    ours = auc_per_label(labels, scores, ["a"])["a"]
    assert ours == pytest.approx(roc_auc_score(labels[:, 0], scores[:, 0]), rel=1e-12)


def test_a_label_without_both_classes_has_no_auc_and_the_mean_leaves_it_out():
    labels = np.array([[0, 1, np.nan, 1], [0, 1, np.nan, 0], [0, np.nan, np.nan, 0]], np.float32)
    scores = np.arange(12, dtype=np.float32).reshape(3, 4)
    aucs = auc_per_label(labels, scores, "abcd")
    assert aucs == {"a": None, "b": None, "c": None, "d": 0.0}
    assert macro(aucs) == 0.0
    assert macro({"a": None}) is None


def delong_by_definition(labels, scores):
    """AUC and its variance from the structural components, over all m·n pairs (DeLong et al. 1988, equations 3 to 5)."""
    x, y = scores[labels == 1].astype(float), scores[labels == 0].astype(float)
    kernel = (y[None, :] < x[:, None]) + 0.5 * (y[None, :] == x[:, None])
    v10, v01 = kernel.mean(1), kernel.mean(0)
    auc = kernel.mean()
    s10, s01 = ((v10 - auc) ** 2).sum() / (len(x) - 1), ((v01 - auc) ** 2).sum() / (len(y) - 1)
    return auc, s10 / len(x) + s01 / len(y)


@pytest.mark.parametrize("levels", [4, 30, 10**6])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_the_interval_is_delongs(levels, level):
    labels, scores = graded(np.random.default_rng(2), 150, 1, levels)
    auc, variance = delong_by_definition(labels[:, 0], scores[:, 0])
    low, high = delong_interval(labels[:, 0], scores[:, 0], level=level)
    half = norm.ppf((1 + level) / 2) * np.sqrt(variance)
    assert (low, high) == pytest.approx((auc - half, auc + half), rel=1e-10)


def test_the_interval_stays_in_0_to_1_and_needs_two_of_each():
    scores = np.array([1, 2, 3, 4, 5], np.float32)
    assert delong_interval(np.array([0, 0, 0, 1, 1], np.float32), scores) == (1, 1)
    low, high = delong_interval(np.array([0, 0, 1, 0, 1], np.float32), scores)
    assert 0 < low < high == 1
    assert delong_interval(np.array([0, 0, 0, 0, 1], np.float32), scores) is None
    assert delong_interval(np.array([0, np.nan, 1, 1, 1], np.float32), scores) is None


def test_nineteen_intervals_in_twenty_hold_the_true_auc():
    rng, truth = np.random.default_rng(3), norm.cdf(1 / np.sqrt(2))
    labels = np.repeat([0.0, 1.0], 60)
    intervals = [delong_interval(labels, rng.normal(labels, 1)) for _ in range(500)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.92 < covered < 0.98  # three standard errors
