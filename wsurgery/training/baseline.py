"""What a classifier without a network makes of the same images: logistic regression on thumbnails or on colours.

Where it does as well as a network, the images can be told apart without the shapes that networks are studied for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from wsurgery.data.dataset import Dataset
from wsurgery.errors import UsageError, printable
from wsurgery.statistics.auc import auc_per_label, macro
from wsurgery.statistics.bootstrap import Interval
from wsurgery.statistics.delong import delong, paired_delong
from wsurgery.statistics.logistic import Regressions, Scale, log_odds
from wsurgery.training.baseline_names import Name
from wsurgery.training.predictions import Predictions

SIDE = 16  # pixels of a thumbnail
BINS = 16  # of a channel's histogram
PENALTIES = tuple(10.0**power for power in range(5, -3, -1))  # the strongest first: it is solved soonest
DEFAULT_PENALTY = 1.0
_BYTES = 1 << 22  # of pixels turned into numbers of four or eight bytes at a time


@dataclass(frozen=True, eq=False)
class Baseline:
    """One logistic regression a label, fitted, and what it says of n images.

    Attributes:
        name: of what features.
        labels: the k names.
        scores: (n, k), log odds.
        penalty: λ, as `Regressions.solve` takes it.
        chosen: whether the penalty was chosen on a validation split, or is the default.
        images: how many it learned from.
        digest: of their rows, as `Dataset.digest`.
    """

    name: Name
    labels: tuple[str, ...]
    scores: NDArray[np.float64]
    penalty: float
    chosen: bool
    images: int
    digest: str


def features_of(images: NDArray[np.uint8], name: Name) -> NDArray[np.float32]:
    """Return the features of images, which may be mapped from a file: a few are numbers at a time.

    Args:
        images: uint8 (n, size, size, 3).
        name: `thumbnail`: the means, 0 to 255, of 16 x 16 equal squares, which cut pixels where 16 does not divide the size,
            or the pixels themselves where there are fewer. `histogram`: for each channel the shares, 0 to 1, of pixels in
            16 equal bins.

    Returns:
        float32 (n, 3 · min(16, size)²) or (n, 48).
    """
    one = _thumbnails if name == "thumbnail" else _histograms
    return np.concatenate([one(np.asarray(images[rows])) for rows in _few(images)])


def _few(images: NDArray[np.uint8]) -> Iterator[slice]:
    step = max(1, _BYTES // images[0].nbytes)
    return (slice(start, start + step) for start in range(0, len(images), step))


def _thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    n, size = images.shape[:2]
    side = min(SIDE, size)
    edges, pixels = np.arange(side + 1) * (size / side), np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares = (np.maximum(overlap, 0) * (side / size)).astype(np.float32)  # (side, size): rows add up to 1
    rows = shares @ images.reshape(n, size, size * 3).astype(np.float32)
    found: NDArray[np.float32] = shares @ rows.reshape(n, side, size, 3)
    return found.reshape(n, -1)


def _histograms(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    n, size = images.shape[:2]
    first = BINS * np.arange(3 * n).reshape(n, 1, 3)  # bin 0 of each channel of each image
    bins = first + images.reshape(n, -1, 3) // (256 // BINS)
    counts = np.bincount(bins.ravel(), minlength=3 * BINS * n).reshape(n, 3 * BINS)
    shares: NDArray[np.float32] = np.divide(counts, size**2, dtype=np.float32)
    return shares


def fit_baseline(
    name: Name, labels: Sequence[str], training: Dataset, validation: Dataset | None, evaluated: Dataset
) -> Baseline:
    """Fit a logistic regression a label, in one thread, and return what it says of the evaluated images.

    Args:
        name: of what features.
        labels: for which labels, by their names in the data.
        training: to learn from; features are standardised by their mean and standard deviation there.
        validation: by whose macro AUC the penalty is chosen, the larger one of equals. None, or one in which no label has
            both classes: the penalty is 1.
        evaluated: n images of the same size.

    Raises:
        UsageError: a label has one class alone in `training`.
    """
    truth = _columns(training, labels)
    for label, column in zip(labels, truth.T, strict=True):
        if not ((column == 0).any() and (column == 1).any()):
            raise UsageError(
                f"--baseline {name}: the {len(truth):,} training images do not have both classes of {printable(label)}, so "
                "that nothing can be learned: leave the baseline out, or train on more images"
            )
    with threadpool_limits(1):  # the same to the last bit on any number of cores, and no thread waits for another
        features = features_of(training.images, name)
        scale = Scale.of(features)

        def standardised(dataset: Dataset) -> NDArray[np.float32]:
            found = features_of(dataset.images, name)
            scale.apply(found)
            return found

        scale.apply(features)
        regressions = Regressions(features, truth)
        chosen = None
        if validation is not None:
            chosen = _chosen(regressions, standardised(validation), _columns(validation, labels))
        penalty, weights = chosen or (DEFAULT_PENALTY, regressions.solve(DEFAULT_PENALTY))
        scores = log_odds(standardised(evaluated), weights)
    return Baseline(name, tuple(labels), scores, penalty, chosen is not None, len(truth), training.digest)


def _columns(dataset: Dataset, labels: Sequence[str]) -> NDArray[np.float32]:
    return dataset.labels[:, [dataset.label_names.index(label) for label in labels]]


def _chosen(
    regressions: Regressions, features: NDArray[np.float32], truth: NDArray[np.float32]
) -> tuple[float, NDArray[np.float64]] | None:
    """Return the penalty with the highest macro AUC, and its weights; None where no label has both classes."""
    names = [f"{i}" for i in range(truth.shape[1])]
    best, highest, weights = None, -1.0, None
    for penalty in PENALTIES:
        weights = regressions.solve(penalty, weights)
        auc = macro(auc_per_label(truth, log_odds(features, weights), names))
        if auc is None:
            return None
        if auc > highest:
            best, highest = (penalty, weights), auc
    return best


def against(found: Predictions, baseline: Baseline) -> dict[str, Any]:
    """Return what `eval --json` holds of a baseline beside a network: AUCs, and the network's less them.

    The test is DeLong's paired one, of the mean over the labels, with patients as clusters, as in `compare`.

    Args:
        found: a network's predictions of n images.
        baseline: of the same images, in the same order, for those labels that have both classes.
    """
    columns = [found.names.index(name) for name in baseline.labels]
    labels = found.labels[:, columns]

    def one(i: int) -> dict[str, float | Interval | None]:
        each = delong(labels[:, [i]], baseline.scores[:, [i]], patients=found.patients)
        return {"auc": each.auc, "ci": each.ci}

    by_label = {name: one(i) for i, name in enumerate(baseline.labels)}
    test = paired_delong(labels, found.scores[:, columns], baseline.scores, patients=found.patients)
    return {
        "name": baseline.name,
        "macro_auc": test.b,
        "macro_delong_ci": delong(labels, baseline.scores, patients=found.patients).ci,
        "labels": {name: by_label.get(name, {"auc": None, "ci": None}) for name in found.names[: found.count]},
        "penalty": baseline.penalty,
        "penalty_chosen_on": "valid" if baseline.chosen else None,
        "trained_on": baseline.images,
        "difference": test.difference,
        "ci": test.ci,
        "p": test.p,
    }
