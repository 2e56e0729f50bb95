"""Areas under ROC curves against scikit-learn and against counting pairs."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from wsurgery.statistics.auc import area, auc_per_label, macro


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


def test_the_area_is_the_fraction_rounded_once_whatever_the_order():
    rng = np.random.default_rng(4)
    labels, scores = graded(rng, 997, 1, 50)
    labels[np.isnan(labels)] = 0
    x, y = scores[labels == 1], scores[labels == 0]
    twice = sum(2 * int((y < one).sum()) + int((y == one).sum()) for one in x)
    assert area(x, y) == twice / (2 * len(x) * len(y))  # whole numbers, divided once
    assert area(rng.permutation(x), rng.permutation(y)) == area(x, y)
