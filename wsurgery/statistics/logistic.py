"""Logistic regressions with an L2 penalty, several labels on the same features: what a referee tries first."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_ROWS = 4096  # turned into float64 at a time
_ROUNDING = 1e-5  # of the largest value: what float32 makes of equal numbers that were summed in another order


class Scale(NamedTuple):
    """How features are standardised.

    Attributes:
        mean: (d,) float64.
        factor: (d,) float64, one over the standard deviation; 0 for a feature that is constant, to float32's rounding.
    """

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]

    @classmethod
    def of(cls, features: Floats) -> "Scale":
        """Return the scale by which features, (n, d), have mean 0 and standard deviation 1."""
        mean: NDArray[np.float64] = features.mean(axis=0, dtype=np.float64)
        variance = np.zeros_like(mean)
        for rows in _chunks(len(features)):
            variance += ((features[rows] - mean) ** 2).sum(axis=0) / len(features)
        constant = np.ptp(features, axis=0) <= _ROUNDING * np.abs(features).max(axis=0)
        return cls(mean, np.where(constant, 0, 1 / np.sqrt(np.where(constant, 1, variance))))

    def apply(self, features: Floats) -> None:
        """Standardise features, (n, d), in their place."""
        for rows in _chunks(len(features)):
            features[rows] = (features[rows] - self.mean) * self.factor


class Regressions:
    """k regressions on n rows of d features, to be solved for any penalty.

    The variables are rotated and scaled so that the loss curves about alike in every direction: neighbouring pixels are so much
    alike that L-BFGS would else need thousands of steps. The minimum stays where it is.

    Args:
        features: (n, d), best standardised; float32 is enough, and is not copied.
        labels: (n, k): 1, 0, and anything else for unknown, which is left out of that label's loss. Each label needs both.
    """

    def __init__(self, features: Floats, labels: Floats) -> None:
        self._features, self._labels = features, labels
        gram = np.zeros((features.shape[1],) * 2)
        for rows in _chunks(len(features)):
            some = features[rows].astype(np.float64)
            gram += some.T @ some
        values, self._axes = np.linalg.eigh(gram)
        self._squares = np.maximum(values, 0)

    def solve(self, penalty: float, start: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the weights and, in the last row, the intercepts, (d + 1, k), that minimise `loss` with this penalty.

        Args:
            penalty: λ of the sum of the losses + λ / 2 · ‖weights‖²; above 0. The intercept is free. It is 1 / C of
                scikit-learn, whose default is 1.
            start: (d + 1, k), weights to begin with, such as those of a neighbouring penalty. Default: 0.
        """
        from scipy.optimize import minimize  # takes half a second, which training, which knows this module, need not
        from scipy.special import expit

        n, (d, k) = len(self._features), (self._features.shape[1], self._labels.shape[1])
        begin = np.zeros((d + 1, k)) if start is None else start
        odds = log_odds(self._features, begin)
        curvature = (expit(odds) * expit(-odds)).mean(axis=0)  # (k,): a quarter where nothing is known yet
        width = 1 / np.sqrt(self._squares[:, None] * curvature + penalty)
        of_intercept = 1 / np.sqrt(n * curvature)

        def inner(given: NDArray[np.float64]) -> NDArray[np.float64]:
            rows = given.reshape(d + 1, k)
            return np.vstack([self._axes @ (width * rows[:-1]), of_intercept * rows[-1:]])

        def outer(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            value, gradient = self.loss(inner(flat), penalty)
            turned = np.vstack([width * (self._axes.T @ gradient[:-1]), of_intercept * gradient[-1:]])
            return value, turned.ravel()

        first = np.vstack([(self._axes.T @ begin[:-1]) / width, begin[-1:] / of_intercept])
        options = {"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "ftol": 0, "gtol": 1e-7}
        found = minimize(outer, first.ravel(), jac=True, method="L-BFGS-B", options=options)
        return inner(found.x)

    def loss(self, weights: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        """Return the sum of the penalised log losses of all labels at `weights`, (d + 1, k), and its gradient, likewise."""
        from scipy.special import expit

        value = penalty / 2 * float((weights[:-1] ** 2).sum())
        gradient = np.vstack([penalty * weights[:-1], np.zeros((1, weights.shape[1]))])
        for rows in _chunks(len(self._features)):
            features, labels = self._features[rows].astype(np.float64), self._labels[rows]
            known = (labels == 0) | (labels == 1)
            truth = np.where(known, labels, 0).astype(np.float64)
            odds = features @ weights[:-1] + weights[-1]
            value += float(((np.logaddexp(0, odds) - truth * odds) * known).sum())
            residual = (expit(odds) - truth) * known
            gradient[:-1] += features.T @ residual
            gradient[-1] += residual.sum(axis=0)
        return value, gradient


def log_odds(features: Floats, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what regressions with `weights`, (d + 1, k), say of n rows of features, (n, d): log odds, (n, k) float64."""
    return np.concatenate([features[rows] @ weights[:-1] + weights[-1] for rows in _chunks(len(features))])


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, n, _ROWS))
