"""One tensor in a few numbers, enough for a picture: a histogram and singular values, at a cost that is bounded."""

from typing import NamedTuple

import numpy as np

from wsurgery.operations.arrays import Array
from wsurgery.operations.linear_algebra import one_blas_thread
from wsurgery.operations.random_streams import chunk_slice, chunks
from wsurgery.operations.statistics import Summary, summary

BINS = 24
POINTS = 24  # singular values that are kept
WIDEST = 1024  # the shorter side of a matrix all of whose singular values are computed
_MOST = 1 << 33  # products for its Gram matrix: about a second
_SPARE = 8  # directions of the sketch beyond `POINTS`
_COLUMNS = 1 << 16


class Profile(NamedTuple):
    """A tensor in a few numbers.

    Attributes:
        summary: as `show --stats` has it.
        counts: (BINS,), finite elements in bins of equal width from the smallest to the largest; empty without any.
        singular: singular values, the largest first: evenly spaced ones of all `rank`, or of a matrix too large for that the
            largest. Empty for a vector, and where an element is not finite.
        rank: how many singular values there are, the shorter side of the matrix (out, everything else).
        all_of_them: whether `singular` is spread over all of them.
    """

    summary: Summary
    counts: tuple[int, ...]
    singular: tuple[float, ...]
    rank: int
    all_of_them: bool


def profile(x: Array) -> Profile:
    """Profile `x`, floating point of any shape."""
    found = summary(x)
    matrix = x.reshape(len(x), -1) if x.ndim > 1 and x.size else np.empty((0, 0))
    rank = min(matrix.shape)
    if rank < 2 or found.nan or found.inf or found.min is None or found.max is None:
        return Profile(found, _counts(x, found), (), 0, True)
    all_of_them = rank <= WIDEST and rank * matrix.size <= _MOST
    with one_blas_thread():
        values = (_from_gram if all_of_them else _from_sketch)(matrix, max(-found.min, found.max) or 1.0)
    chosen = np.unique(np.linspace(0, len(values) - 1, POINTS).round().astype(int))
    return Profile(found, _counts(x, found), tuple(values[chosen].tolist()), rank, all_of_them)


def _counts(x: Array, found: Summary) -> tuple[int, ...]:
    if found.min is None or found.max is None:
        return ()
    flat, counts = x.reshape(-1), np.zeros(BINS, np.int64)
    half = found.max / 2 - found.min / 2  # of the range itself float64 may have no number
    for chunk in chunks(flat.size):
        values = flat[chunk_slice(chunk)].astype(np.float64)
        if found.nan or found.inf:
            values = values[np.isfinite(values)]
        places = (values / 2 - found.min / 2) * (BINS / half) if half else np.full(values.size, BINS / 2)
        counts += np.bincount(places.astype(int).clip(0, BINS - 1), minlength=BINS)
    return tuple(counts.tolist())


def _from_gram(matrix: Array, largest: float) -> Array:
    """Return all singular values, from the eigenvalues of the smaller Gram matrix in float64."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    gram = np.zeros((len(wide), len(wide)))
    for start in range(0, wide.shape[1], _COLUMNS):
        part = wide[:, start : start + _COLUMNS].astype(np.float64) / largest
        gram += part @ part.T
    singular: Array = np.sqrt(np.linalg.eigvalsh(gram)[::-1].clip(0)) * largest
    return singular


def _from_sketch(matrix: Array, largest: float) -> Array:
    """Return the largest singular values, by a random sketch in float32 with two power iterations (Halko et al. 2011)."""
    scaled = np.empty(matrix.shape, np.float32)
    rows = max(1, _COLUMNS * 16 // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        scaled[start : start + rows] = matrix[start : start + rows].astype(np.float64) / largest
    seen = np.random.default_rng(0).standard_normal((matrix.shape[1], POINTS + _SPARE), np.float32)
    for _ in range(3):
        outputs = np.linalg.qr(scaled @ seen)[0]
        seen = np.linalg.qr(scaled.T @ outputs)[0]
    return np.linalg.svd(scaled @ seen, compute_uv=False)[:POINTS].astype(np.float64) * largest
