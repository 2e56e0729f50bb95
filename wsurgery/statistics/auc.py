"""How good predictions are: the area under the ROC curve."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    return {name: _auc(labels[:, i], scores[:, i]) for i, name in enumerate(names)}


def macro(aucs: Mapping[Any, float | None]) -> float | None:
    """Return the mean over the labels that have an AUC, None if none has."""
    known = [auc for auc in aucs.values() if auc is not None]
    return sum(known) / len(known) if known else None


def area(positive: Floats, negative: Floats) -> float:
    """Return the AUC: the share of (positive, negative) pairs in the right order; ties count half.

    It is Mann and Whitney's U over m·n. Pairs are counted, in integers, so that the result is the fraction rounded once, whatever
    the order of the images: all that wsurgery prints as an AUC is this number.

    Args:
        positive: (m,), scores of the positives, at least one.
        negative: (n,), scores of the negatives, at least one.
    """
    return int(_twice_below(positive, negative).sum()) / (2 * len(positive) * len(negative))


def structural_components(positive: Floats, negative: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each image contributes to the AUC: the structural components of DeLong et al. (1988).

    Args:
        positive: (m,), scores of the positives, at least one.
        negative: (n,), scores of the negatives, at least one.

    Returns:
        For each positive, (m,), the share of negatives below it, and for each negative, (n,), the share of positives
        above it; ties count half. The mean of either is the AUC.
    """
    m, n = len(positive), len(negative)
    return _twice_below(positive, negative) / (2 * n), 1 - _twice_below(negative, positive) / (2 * m)


def _twice_below(scores: Floats, others: Floats) -> NDArray[np.int64]:
    """Return, of each score, twice the number of others below it; the other that equals it counts half."""
    ascending = np.sort(others)
    return np.searchsorted(ascending, scores, "left") + np.searchsorted(ascending, scores, "right")


def _auc(labels: Floats, scores: Floats) -> float | None:
    scores = scores.astype(np.float64)
    positive, negative = scores[labels == 1], scores[labels == 0]
    return area(positive, negative) if min(len(positive), len(negative)) else None
