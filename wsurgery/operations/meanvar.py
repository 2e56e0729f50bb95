"""The paper's Mean Var initialisation: iid Gaussian with the mean and variance of the tensor (section 4.2, appendix F)."""

import math

import ml_dtypes
import numpy as np

from wsurgery.errors import WsurgeryError
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.random_streams import RandomStream, chunk_slice, for_each_chunk
from wsurgery.operations.statistics import moments


def meanvar(x: Array, *, random: RandomStream, run: Map = map, positive: bool = False) -> Array:
    """Resample a tensor from its own mean and variance.

    Args:
        x: floating point, any shape, at least one element.
        random: where the numbers come from.
        run: `map` over chunks.
        positive: draw from the log-normal distribution with the same mean and variance, for running variances, which
            must stay positive.

    Returns:
        Same shape and dtype; computed in float32 (float64 for float64) and rounded once. Draws beyond the range of the
        dtype, which float8 weights scaled to fill it would get, are its ends.

    Raises:
        WsurgeryError: the mean or variance is not finite, or `positive` and the mean is not positive.
    """
    stats = moments(x, run)
    mean, std = stats.mean, stats.std
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise WsurgeryError(
            "holds NaN or infinity, so it has no mean and variance to draw from: leave it out with --except"
        )
    if positive:
        if mean <= 0:
            raise WsurgeryError(
                f"is a running variance with mean {mean:g}, which cannot be resampled: use --bn identity or keep"
            )
        spread = math.log1p((std / mean) ** 2)
        mean, std = math.log(mean) - spread / 2, math.sqrt(spread)
    working = np.float64 if x.dtype == np.float64 else np.float32
    result = np.empty(x.size, x.dtype)
    range_ = ml_dtypes.finfo(x.dtype)  # type: ignore[no-untyped-call]
    lowest, largest = float(range_.smallest_subnormal if positive else range_.min), float(range_.max)

    def fill(chunk: int) -> None:
        part = result[chunk_slice(chunk)]
        values: Array = part if x.dtype == working else np.empty(part.size, working)
        random.standard_normal(chunk, out=values)
        with np.errstate(over="ignore", under="ignore"):
            values *= working(std)
            values += working(mean)
            if positive:
                np.exp(values, out=values)
        part[...] = np.clip(values, working(lowest), working(largest), out=values)

    for_each_chunk(run, fill, x.size)
    return result.reshape(x.shape)
