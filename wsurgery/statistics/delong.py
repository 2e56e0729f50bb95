"""Whether two networks differ in AUC on the same images: the paired test of DeLong, DeLong and Clarke-Pearson (1988)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from wsurgery.statistics.auc import structural_components

Floats = NDArray[np.floating[Any]]


class AucDifference(NamedTuple):
    """The AUC of A less that of B.

    Attributes:
        a: AUC of A, or the mean over the labels.
        b: AUC of B.
        difference: `a - b`.
        se: its standard error; None with fewer than two independent positives or negatives of a label.
        ci: its normal interval; None where `se` is.
        z: difference over standard error; 0 where both are 0, None where only the standard error is.
        p: two-sided, of the normal distribution; None where `z` is.
    """

    a: float
    b: float
    difference: float
    se: float | None
    ci: tuple[float, float] | None
    z: float | None
    p: float | None


def paired_delong(
    labels: Floats, a: Floats, b: Floats, *, patients: Sequence[str] | None = None, level: float = 0.95
) -> AucDifference:
    """Compare the mean AUC over k labels that two networks reach on the same images.

    Each image has an influence on a label's AUC: its structural component less the AUC, over the number of images of its
    class, and 0 where the label is unknown. Their sum over the labels, over k, is the image's influence on the mean AUC,
    however the labels correlate and whatever is known of each; the sum of squares over independent images is the
    variance. For k = 1 that is DeLong's test; the midranks are those of Sun and Xu (2014). With `patients` influences
    are added up within each patient before they are squared (Obuchowski 1997), which is the same if each has one image.

    Args:
        labels: (n, k), 0 or 1, NaN for unknown; at least one positive and one negative of each label.
        a: (n, k), scores of A.
        b: (n, k), scores of B.
        patients: (n,), whose image it is, where images of one patient are not independent.
        level: coverage of the interval.
    """
    units = np.arange(len(labels)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    (auc_a, influence_a), (auc_b, influence_b) = (_mean_auc(labels, scores, units.reshape(-1)) for scores in (a, b))
    difference = auc_a - auc_b
    se = float(np.sqrt(np.sum(np.bincount(units.reshape(-1), influence_a - influence_b) ** 2)))
    if np.isnan(se):
        return AucDifference(auc_a, auc_b, difference, None, None, None, None)
    half = float(norm.ppf(0.5 + level / 2)) * se
    ci = (difference - half, difference + half)
    if se == 0:
        same = difference == 0
        return AucDifference(auc_a, auc_b, difference, se, ci, 0.0 if same else None, 1.0 if same else None)
    z = difference / se
    return AucDifference(auc_a, auc_b, difference, se, ci, z, float(2 * norm.sf(abs(z))))


def _mean_auc(labels: Floats, scores: Floats, units: NDArray[np.intp]) -> tuple[float, NDArray[np.float64]]:
    """Return the mean AUC over the labels, and each image's influence on it, (n,); NaN if a class has one unit."""
    aucs, influence = [], np.zeros(labels.shape)
    for i in range(labels.shape[1]):
        positive, negative = labels[:, i] == 1, labels[:, i] == 0
        column = scores[:, i].astype(np.float64)
        above, below = structural_components(column[positive], column[negative])
        auc = above.mean()
        aucs.append(float(auc))
        for members, components in ((positive, above), (negative, below)):
            count = len(np.unique(units[members]))
            unbiased = np.sqrt(count / (count - 1)) if count > 1 else np.nan  # for the variance, as n / (n - 1)
            influence[members, i] = unbiased * (components - auc) / len(components)
    return float(np.mean(aucs)), influence.mean(axis=1)
