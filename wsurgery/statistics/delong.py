"""How sure an AUC is, and whether two networks differ in it: DeLong, DeLong and Clarke-Pearson (1988), by patients."""

from collections.abc import Sequence
from math import fsum, nan, sqrt
from statistics import NormalDist  # scipy's takes a third of a second to import, and training knows this module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsurgery.statistics.auc import area, macro, structural_components
from wsurgery.statistics.bootstrap import Interval

WITHOUT_INTERVAL = (
    "An AUC of 1 or 0 of few images, or one patient, gives no interval, nor does a mean with it: what was drawn does not say "
    "how far it varies (Obuchowski and Lieber 2002)"
)
Floats = NDArray[np.floating[Any]]


class AucEstimate(NamedTuple):
    """One AUC, or the mean over the labels.

    Attributes:
        auc: it.
        se: its standard error; None with fewer than two independent positives or negatives of a label.
        ci: its normal interval, cut to [0, 1]; None where `se` is, or where a label's AUC does not vary with the images drawn.
    """

    auc: float
    se: float | None
    ci: Interval | None


class AucDifference(NamedTuple):
    """The AUC of A less that of B.

    Attributes:
        a: AUC of A, or the mean over the labels.
        b: AUC of B.
        difference: `a - b`.
        se: its standard error; None with fewer than two independent positives or negatives of a label.
        ci: its normal interval; None where `se` is, or where a label's AUCs of neither vary with the images that were drawn.
        z: difference over standard error; 0 where both are 0, None where only the standard error is, or there is no interval.
        p: two-sided, of the normal distribution; None where `z` is.
    """

    a: float
    b: float
    difference: float
    se: float | None
    ci: Interval | None
    z: float | None
    p: float | None


def delong(
    labels: Floats, scores: Floats, *, patients: Sequence[str] | None = None, level: float = 0.95
) -> AucEstimate:
    """Return the mean AUC over k labels, with its standard error and confidence interval.

    Each image has an influence on a label's AUC: its structural component (DeLong et al. 1988) less the AUC, over the
    number of images of its class. They are added up within each patient, and the patients' sums of squares and products
    make the variance (Obuchowski 1997, equation 5); with one image a patient that is DeLong's. The midranks are those of
    Sun and Xu (2014). Over several labels a patient's influence is the mean of its influences on each, however the labels
    correlate and whatever is known of each.

    Where every positive ranks above every negative the estimated variance is 0, which says nothing of other patients: no
    interval of the normal kind can be had (Obuchowski and Lieber, *Confidence bounds when the estimated ROC area is 1.0*,
    2002), and none is given; nor is one for a mean over labels with such a label, which would count it as known exactly.

    Args:
        labels: (n, k), 0 or 1, NaN for unknown; at least one positive and one negative of each label.
        scores: (n, k), any increasing function of the probability.
        patients: (n,), whose image it is, where images of one patient are not independent. Default: all images are.
        level: coverage of the interval.
    """
    auc, influence, fixed = _mean_auc(labels, scores, _units(labels, patients))
    se = _error(influence)
    if se is None or fixed.any():
        return AucEstimate(auc, se, None)
    low, high = _normal(auc, se, level)
    return AucEstimate(auc, se, (max(0.0, low), min(1.0, high)))


def paired_delong(
    labels: Floats, a: Floats, b: Floats, *, patients: Sequence[str] | None = None, level: float = 0.95
) -> AucDifference:
    """Compare the mean AUC over k labels that two networks reach on the same images, by a paired test.

    A patient's influence on the difference is that on the one AUC less that on the other; the variance is made of these
    as in `delong`.

    Args:
        labels: (n, k), 0 or 1, NaN for unknown; at least one positive and one negative of each label.
        a: (n, k), scores of A.
        b: (n, k), scores of B.
        patients: (n,), whose image it is, where images of one patient are not independent. Default: all images are.
        level: coverage of the interval.
    """
    units = _units(labels, patients)
    (auc_a, influence_a, fixed_a), (auc_b, influence_b, fixed_b) = (_mean_auc(labels, x, units) for x in (a, b))
    difference, se = auc_a - auc_b, _error(influence_a - influence_b)
    if se is None:
        return AucDifference(auc_a, auc_b, difference, None, None, None, None)
    if (fixed_a & fixed_b).any() and not np.array_equal(a, b):
        return AucDifference(auc_a, auc_b, difference, se, None, None, None)
    ci = _normal(difference, se, level)
    if se == 0:
        same = difference == 0
        return AucDifference(auc_a, auc_b, difference, se, ci, 0.0 if same else None, 1.0 if same else None)
    z = difference / se
    return AucDifference(auc_a, auc_b, difference, se, ci, z, 2 * NormalDist().cdf(-abs(z)))


def _units(labels: Floats, patients: Sequence[str] | None) -> NDArray[np.intp]:
    """Number what is independent: (n,), for each image its patient, or itself."""
    if patients is None:
        return np.arange(len(labels))
    units: NDArray[np.intp] = np.unique(np.asarray(patients), return_inverse=True)[1].reshape(-1)
    return units


def _mean_auc(
    labels: Floats, scores: Floats, units: NDArray[np.intp]
) -> tuple[float, NDArray[np.float64], NDArray[np.bool_]]:
    """Return the mean AUC over the labels, and the influences on it whose squares add up to its variance.

    With I10 patients who have positives, I01 who have negatives and I who have either, Obuchowski's three sums are
    weighted by I10 / (I10 - 1), I01 / (I01 - 1) and, the products, I / (I - 1). These are the squares of three numbers a
    patient: both influences together by the last weight, and each by what its own weight is more.

    Returns:
        The AUC, the influences, (3, patients); NaN if only one patient has a positive, or a negative, of some label; and of
        which labels no image has any, (k,).
    """
    aucs, influence, fixed = [], np.zeros((3, int(units.max()) + 1)), []
    for i in range(labels.shape[1]):
        positive, negative = labels[:, i] == 1, labels[:, i] == 0
        column = scores[:, i].astype(np.float64)
        components = structural_components(column[positive], column[negative])
        auc = area(column[positive], column[negative])
        above, below = (
            np.bincount(units[members], (shares - auc) / len(shares), minlength=influence.shape[1])
            for members, shares in zip((positive, negative), components, strict=True)
        )
        of_above, of_below, of_both = (_unbiased(units[x]) for x in (positive, negative, positive | negative))
        influence += [
            sqrt(of_both) * (above + below), sqrt(of_above - of_both) * above, sqrt(of_below - of_both) * below
        ]  # fmt: skip
        aucs.append(auc)
        fixed.append(not (above.any() or below.any()))
    mean = macro(dict(enumerate(aucs)))
    assert mean is not None
    return mean, influence / len(aucs), np.array(fixed)


def _unbiased(units: NDArray[np.intp]) -> float:
    """Return the factor that makes a sum over patients of squares about their mean unbiased; NaN for one patient."""
    count = np.count_nonzero(np.bincount(units))
    return count / (count - 1) if count > 1 else nan


def _error(influence: NDArray[np.float64]) -> float | None:
    """Return the standard error; the same for any order of the patients."""
    variance = fsum((influence**2).ravel())
    return None if np.isnan(variance) else sqrt(variance)


def _normal(value: float, se: float, level: float) -> Interval:
    half = NormalDist().inv_cdf(0.5 + level / 2) * se
    return value - half, value + half
