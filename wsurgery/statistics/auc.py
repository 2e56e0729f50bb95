"""How good predictions are: the area under the ROC curve, with its confidence interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

Floats = NDArray[np.floating[Any]]


def auc_per_label(labels: Floats, scores: Floats, names: Sequence[str]) -> dict[str, float | None]:
    """Return the AUC of every label.

    Args:
        labels: (n, k), 0 or 1, NaN for unknown, which is left out.
        scores: (n, k), any increasing function of the probability.
        names: the k labels.

    Returns:
        Label → AUC, None for a label that lacks positives or negatives.
    """
    return {name: _auc(*_known(labels[:, i], scores[:, i])) for i, name in enumerate(names)}


def macro(aucs: dict[str, float | None]) -> float | None:
    """Return the mean over the labels that have an AUC, None if none has."""
    known = [auc for auc in aucs.values() if auc is not None]
    return sum(known) / len(known) if known else None


def delong_interval(labels: Floats, scores: Floats, *, level: float = 0.95) -> tuple[float, float] | None:
    """Return the confidence interval of one label's AUC (DeLong, DeLong and Clarke-Pearson 1988).

    The variance is computed from midranks (Sun and Xu 2014), the interval is the normal one, cut to [0, 1].

    Args:
        labels: (n,), 0 or 1, NaN for unknown, which is left out.
        scores: (n,).
        level: coverage.

    Returns:
        Lower and upper bound; None with fewer than two positives or negatives.
    """
    labels, scores = _known(labels, scores)
    positive, negative = scores[labels == 1], scores[labels == 0]
    m, n = len(positive), len(negative)
    if min(m, n) < 2:
        return None
    above, below = structural_components(positive, negative)
    half = norm.ppf(0.5 + level / 2) * np.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    return max(0.0, float(above.mean() - half)), min(1.0, float(above.mean() + half))


def structural_components(positive: Floats, negative: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each image contributes to the AUC: the structural components of DeLong et al. (1988), by midranks.

    Args:
        positive: (m,), scores of the positives, at least one.
        negative: (n,), scores of the negatives, at least one.

    Returns:
        For each positive, (m,), the share of negatives below it, and for each negative, (n,), the share of positives
        above it; ties count half. The mean of either is the AUC.
    """
    m, n = len(positive), len(negative)
    everything = rankdata(np.concatenate([positive, negative]))
    return (everything[:m] - rankdata(positive)) / n, 1 - (everything[m:] - rankdata(negative)) / m


def _known(labels: Floats, scores: Floats) -> tuple[Floats, Floats]:
    known = ~np.isnan(labels)
    return labels[known], scores[known].astype(np.float64)


def _auc(labels: Floats, scores: Floats) -> float | None:
    positive, negative = scores[labels == 1], scores[labels == 0]
    m, n = len(positive), len(negative)
    if min(m, n) == 0:
        return None
    # The share of (positive, negative) pairs in the right order: Mann and Whitney's U, from ranks. Theirs in scipy has
    # a p-value too, which does not exist where all scores are equal.
    ranks = rankdata(np.concatenate([positive, negative]))
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))
