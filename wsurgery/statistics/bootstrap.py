"""How far an AUC would vary with other patients: the bootstrap, all images of a patient together."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Interval = tuple[float, float]

_CELLS = 2**20  # weights held at a time, images × resamples; larger blocks leave the cache and are no faster


class Sample(NamedTuple):
    """What an AUC is of.

    Attributes:
        n: how many images.
        independent: what its intervals and tests take as independent.
        units: how many of those.
    """

    n: int
    independent: Literal["patients", "images"]
    units: int

    def in_words(self) -> str:
        """Write it: `6,154 images of 150 patients`, or `6,154 images`."""
        return f"{self.n:,} images" + (f" of {self.units:,} patients" if self.independent == "patients" else "")


def samples_in_words(samples: Collection[Sample]) -> str:
    """Write of what several AUCs are: `2,777 to 3,574 images of 25 patients, others in each fold` where they are many."""
    distinct = list(dict.fromkeys(samples))
    if len(distinct) < 3:
        return " or ".join(sample.in_words() for sample in distinct)

    def between(values: Sequence[int]) -> str:
        return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)}))

    patients = [sample.units for sample in distinct if sample.independent == "patients"]
    images = f"{between([sample.n for sample in distinct])} images"
    return f"{images}{f' of {between(patients)} patients' if patients else ''}, others in each fold"


class _Ranking(NamedTuple):
    """One label's images as units, and where each positive stands among the negatives.

    `positive` (m,) and `negative` (n,), by ascending score, are indices of units; `lowest` and `highest` (m,) count the
    negatives below each positive without and with those that tie with it.
    """

    positive: NDArray[np.intp]
    negative: NDArray[np.intp]
    lowest: NDArray[np.intp]
    highest: NDArray[np.intp]


def bootstrap_aucs(
    labels: Floats, scores: Floats, patients: Sequence[str], *, resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return the AUC of every label in samples of patients, drawn with replacement, as many as there are.

    The samples depend on the patients and the seed alone, so that the AUCs of two networks on the same images are paired.

    Args:
        labels: (n, k), 0 or 1, NaN for unknown, which is left out.
        scores: (n, k), any increasing function of the probability.
        patients: (n,), whose image it is; all of a patient's images are drawn together.
        resamples: r, how many samples.
        seed: of the draws.

    Returns:
        (r, k). NaN where a sample lacks positives or negatives of a label; all NaN if there is only one patient.
    """
    units: NDArray[np.intp] = np.unique(np.asarray(patients), return_inverse=True)[1].reshape(-1)
    count = int(units.max()) + 1
    aucs = np.full((resamples, labels.shape[1]), np.nan)
    if count < 2:
        return aucs
    rankings = [_rank(labels[:, i], scores[:, i], units) for i in range(labels.shape[1])]
    rng = np.random.default_rng(seed)
    block = max(1, _CELLS // len(units))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        weights = np.empty((count, size), np.int32)  # how often each patient was drawn
        for column in range(size):
            weights[:, column] = np.bincount(rng.integers(count, size=count), minlength=count)
        for i, ranking in enumerate(rankings):
            aucs[start : start + size, i] = _weighted_auc(ranking, weights)
    return aucs


def percentile_interval(values: NDArray[np.float64], *, level: float = 0.95) -> Interval | None:
    """Return the percentile interval of bootstrapped values, (r,); NaN is left out. None if nothing else is there."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _rank(labels: Floats, scores: Floats, units: NDArray[np.intp]) -> _Ranking:
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    negative = negative[np.argsort(scores[negative], kind="stable")]
    lowest, highest = (np.searchsorted(scores[negative], scores[positive], side) for side in ("left", "right"))
    return _Ranking(units[positive], units[negative], lowest, highest)


def _weighted_auc(ranking: _Ranking, weights: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the AUC, (r,), with each image counted as often as its unit in `weights`, (units, r), says."""
    # In 32 bits, which takes 2.4 times less time than 64: the weights of a sample add up to about the number of images.
    below = np.zeros((len(ranking.negative) + 1, weights.shape[1]), np.int32)
    np.cumsum(weights[ranking.negative], axis=0, out=below[1:])
    drawn = weights[ranking.positive]
    beaten = below[ranking.lowest]
    beaten += below[ranking.highest]  # twice the negatives that rank below, so that a tie counts half
    twice = np.einsum("ij,ij->j", drawn, beaten, dtype=np.int64)
    pairs = 2.0 * drawn.sum(axis=0) * below[-1]
    result: NDArray[np.float64] = np.divide(twice, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return result
