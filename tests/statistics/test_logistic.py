import math

import numpy as np
import pytest

from wsurgery.statistics.auc import auc_per_label
from wsurgery.statistics.logistic import Regressions, Scale, log_odds

PENALTIES = (0.01, 1.0, 1000.0)


def drawn(n=300, d=12, k=2, seed=0):
    """Features of which neighbours are alike, as pixels are, and labels that depend on some of them."""
    random = np.random.default_rng(seed)
    features = np.cumsum(random.standard_normal((n, d)), axis=1) * random.uniform(0.1, 30, d) + random.uniform(-9, 9, d)
    odds = (features[:, :k] - features[:, :k].mean(0)) / features[:, :k].std(0)
    return features.astype(np.float32), (random.random((n, k)) < 1 / (1 + np.exp(-odds))).astype(np.float32)


def standardised(features):
    found = features.copy()
    Scale.of(features).apply(found)
    return found


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_gradient_is_zero_at_the_optimum(penalty):
    features, labels = drawn()
    features = standardised(features)
    weights = Regressions(features, labels).solve(penalty)
    x = np.column_stack([features.astype(np.float64), np.ones(len(features))])
    gradient = x.T @ (1 / (1 + np.exp(-x @ weights)) - labels) + penalty * np.vstack([weights[:-1], 0 * weights[-1:]])
    at_zero = np.abs(x.T @ (0.5 - labels)).max()
    assert np.abs(gradient).max() < 1e-6 * at_zero


@pytest.mark.parametrize("penalty", PENALTIES)
def test_scikit_learn_finds_the_same_weights(penalty):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = drawn()
    features = standardised(features)
    weights = Regressions(features, labels).solve(penalty)
    for i in range(labels.shape[1]):
        theirs = linear_model.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
        theirs.fit(features.astype(np.float64), labels[:, i])
        np.testing.assert_allclose(weights[:-1, i], theirs.coef_[0], atol=1e-5)
        assert weights[-1, i] == pytest.approx(theirs.intercept_[0], abs=1e-5)
        np.testing.assert_allclose(
            log_odds(features, weights)[:, i], theirs.decision_function(features.astype(np.float64)), atol=1e-4
        )


def test_the_loss_has_the_gradient_that_it_says():
    features, labels = drawn(d=4)
    labels[::5, 0] = np.nan
    regressions = Regressions(features, labels)
    at = np.random.default_rng(1).normal(0, 0.01, (5, 2))
    _, gradient = regressions.loss(at, 3.0)
    for place in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-6
        numeric = (regressions.loss(at + step, 3.0)[0] - regressions.loss(at - step, 3.0)[0]) / 2e-6
        assert gradient[place] == pytest.approx(numeric, rel=1e-5, abs=1e-3)


def test_without_any_information_the_intercept_is_the_log_odds_of_the_share():
    labels = np.array([[1.0]] * 3 + [[0.0]] * 9)
    weights = Regressions(np.zeros((12, 2), np.float32), labels).solve(1.0)
    np.testing.assert_allclose(weights[:, 0], [0, 0, math.log(3 / 9)], atol=1e-6)


def test_two_points_have_the_weight_of_the_closed_case():
    """Of x = ±1 with their own classes, the loss is 2 log(1 + exp(-w)) + λ w² / 2, so that λ w (1 + exp(w)) = 2."""
    for penalty in PENALTIES:
        weights = Regressions(np.array([[1.0], [-1.0]], np.float32), np.array([[1.0], [0.0]])).solve(penalty)
        assert penalty * weights[0, 0] * (1 + math.exp(weights[0, 0])) == pytest.approx(2, rel=1e-5)
        assert weights[1, 0] == pytest.approx(0, abs=1e-6)


def test_classes_that_can_be_separated_are_and_the_penalty_keeps_the_weights_finite():
    features, _ = drawn(n=40, d=60)
    features = standardised(features)
    labels = (np.arange(40)[:, None] % 2).astype(np.float32)
    norms = []
    for penalty in (1e-2, 1e-3, 1e-4):
        weights = Regressions(features, labels).solve(penalty)
        np.testing.assert_array_equal(log_odds(features, weights) > 0, labels == 1)
        norms.append(np.linalg.norm(weights[:-1]))
    assert norms[0] < norms[1] < norms[2] < np.inf


@pytest.mark.parametrize("unknown", [np.nan, -1.0])
def test_unknown_labels_are_left_out_of_their_own_label_alone(unknown):
    features, labels = drawn()
    features = standardised(features)
    whole = Regressions(features, labels).solve(1.0)
    gone = np.arange(len(labels)) % 3 == 0
    labels[gone, 0] = unknown
    found = Regressions(features, labels).solve(1.0)
    rest = Regressions(features[~gone], labels[~gone]).solve(1.0)
    np.testing.assert_allclose(found[:, 0], rest[:, 0], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], whole[:, 1], atol=1e-6)
    assert np.abs(found[:, 0] - whole[:, 0]).max() > 1e-2


def test_the_start_does_not_matter():
    features, labels = drawn()
    regressions = Regressions(standardised(features), labels)
    elsewhere = np.random.default_rng(2).normal(0, 2, (13, 2))
    np.testing.assert_allclose(regressions.solve(1.0, elsewhere), regressions.solve(1.0), atol=1e-6)


def test_scale_and_place_of_features_do_not_matter():
    """Of powers of two, which float32 multiplies by exactly, nothing at all is left."""
    features, labels = drawn()
    other = features * np.float32(2) ** np.arange(-6, 6, dtype=np.float32)
    moved = (features.astype(np.float64) - 40).astype(np.float32)
    first, second, third = (
        log_odds(x, Regressions(x, labels).solve(1.0)) for x in map(standardised, (features, other, moved))
    )
    assert auc(labels, first) == auc(labels, second)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    np.testing.assert_allclose(auc(labels, first), auc(labels, third), atol=1e-3)
    unscaled = log_odds(features, Regressions(features, labels).solve(1.0))
    assert auc(labels, unscaled) != auc(labels, first)


def auc(labels, scores):
    return [*auc_per_label(labels, scores, ["a", "b"]).values()]


def test_standardised_features_have_mean_0_and_deviation_1_and_constant_ones_are_0():
    features, _ = drawn(n=9000)
    features[:, 3] = 0.1
    features[:, 5] = 0
    features[::2, 3] = np.nextafter(np.float32(0.1), np.float32(1))  # as a sum in another order may come out
    scale = Scale.of(features)
    live = ~np.isin(np.arange(12), [3, 5])
    np.testing.assert_allclose(scale.mean, features.astype(np.float64).mean(0))
    np.testing.assert_allclose(1 / scale.factor[live], features.astype(np.float64).std(0)[live])
    scale.apply(features)
    np.testing.assert_array_equal(features[:, ~live], 0)
    np.testing.assert_allclose(features[:, live].mean(0, dtype=np.float64), 0, atol=1e-5)
    unseen = np.full((1, 12), 1e3, np.float32)
    scale.apply(unseen)
    assert (unseen[0, ~live] == 0).all()
