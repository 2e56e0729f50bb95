"""Gaussian weights with the covariance of a tensor's kernels, filters or channels.

Covariance of a kernel's positions is what Trockman, Willmott and Kolter 2022 ("Understanding the covariance structure of
convolutional filters", arXiv 2210.03651) initialise depthwise convolutions with.
"""

import math
from collections.abc import Iterator
from functools import partial, reduce

import numpy as np

from wsurgery.errors import WsurgeryError
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.cast import round_within
from wsurgery.operations.kernels import sides
from wsurgery.operations.meanvar import meanvar
from wsurgery.operations.products import Halves, halves, normals, product
from wsurgery.operations.random_streams import CHUNK, RandomStream

_PANEL = 64  # columns of the factor that are found one by one
_AT_ONCE = 1 << 20  # elements of the factor that are cut in halves at once
_DEPENDENT = 2.0**-30  # of a number's variance: so little is left only by rounding where those before it determine it


def covariance(x: Array, *, of: str, random: RandomStream, run: Map = map) -> Array:
    """Draw a tensor's samples iid from the Gaussian distribution with their mean and covariance.

    Args:
        x: floating point, (out, in, …), at least one element.
        of: what a sample is: `space`, a kernel, (kh·kw,), of which there are out·in; `filter`, (in·kh·kw,), of which
            there are out; `channel`, a position of a filter, (in,), of which there are out·kh·kw.
        random: where the numbers come from.
        run: `map` over blocks of filters.

    Returns:
        Same shape and dtype; computed in float64 and rounded once. Draws beyond the range of the dtype are its ends.
        Where a sample is one number, as of vectors and of the kernels of linear and 1 x 1 layers, and where there is only
        one sample, `meanvar` does it.

    Raises:
        WsurgeryError: the mean or covariance is not finite.
    """
    samples = _samples(x, of)
    filters, each, size = samples.shape
    count = filters * each
    if count == 1 or size == 1:
        return meanvar(x, random=random, run=run)
    with np.errstate(over="ignore", invalid="ignore"):
        mean: Array = reduce(np.add, (block.sum(axis=0) for block in _blocks(samples))) / count
        whole = np.isfinite(mean).all()
        if whole and count > size:
            gram: Array = reduce(np.add, (_gram(block - mean) for block in _blocks(samples))) / count
            whole = np.isfinite(gram).all()
    if not whole:
        raise WsurgeryError("holds NaN or infinity, so it has no covariance to draw from: leave it out with --except")
    if count > size:
        factor = _factor(gram)
    rank = min(count, size)
    at_once, width = max(1, CHUNK // (each * rank)), max(1, _AT_ONCE // rank)
    result = np.empty(x.shape, x.dtype)
    drawn = _samples(result, of)

    def fill(block: int, columns: slice, root: Halves) -> None:
        part = drawn[block * at_once : (block + 1) * at_once, :, columns]
        z = normals(random, block, (part.shape[0] * each, rank))
        values = product(halves(z, axis=1), root) + mean[columns]
        part[...] = round_within(values, x.dtype).reshape(part.shape)

    for start in range(0, size, width):
        columns = slice(start, start + width)
        if count > size:
            root = factor[:, columns]
        else:  # the centred samples are a root of their covariance themselves
            root = (samples[:, :, columns].reshape(count, -1) - mean[columns]) / math.sqrt(count)
        list(run(partial(fill, columns=columns, root=halves(root, axis=0)), range(-(-filters // at_once))))
    return result


def _samples(x: Array, of: str) -> Array:
    """Return a view of a tensor's samples: (out, samples of each filter, numbers of each sample)."""
    out, channels, positions = sides(x.shape)
    if of == "channel":
        return x.reshape(out, channels, positions).swapaxes(1, 2)
    return x.reshape((out, channels, positions) if of == "space" else (out, 1, channels * positions))


def _blocks(samples: Array) -> Iterator[Array]:
    """Yield the samples in float64, of a few filters at a time: (n, numbers of each)."""
    filters, each, size = samples.shape
    at_once = max(1, CHUNK // (each * size))
    for start in range(0, filters, at_once):
        yield samples[start : start + at_once].reshape(-1, size).astype(np.float64)


def _gram(x: Array) -> Array:
    return product(halves(x.T, axis=1), halves(x, axis=0))


def _factor(covariance: Array) -> Array:
    """Return the upper triangular matrix whose Gram matrix a covariance is, by Cholesky's method.

    LAPACK's depends on the number of threads, and refuses a covariance of less than full rank; here a number that those
    before it determine adds nothing. It is overwritten.
    """
    lower, variances = covariance, covariance.diagonal().copy()
    for start in range(0, len(lower), _PANEL):
        panel = lower[start:, start : start + _PANEL]
        if start:
            before = lower[start:, :start]
            panel -= product(halves(before, axis=1), halves(before[:_PANEL].T, axis=0))
        for j in range(panel.shape[1]):
            column = panel[j:, j]
            pivot = column[0] if column[0] > _DEPENDENT * variances[start + j] else np.inf
            column /= math.sqrt(pivot)
            panel[j + 1 :, j + 1 :] -= column[1:, None] * column[1 : panel.shape[1] - j]
    upper: Array = np.tril(lower).T
    return upper
