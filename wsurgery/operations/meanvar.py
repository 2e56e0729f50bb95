"""The paper's Mean Var initialisation: iid Gaussian with the mean and variance of the tensor (section 4.2, appendix F)."""

import math

import numpy as np

from wsurgery.errors import WsurgeryError
from wsurgery.operations.random_streams import RandomStream, chunk_slice, chunks
from wsurgery.operations.rewrite import Array, Map
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
        Same shape and dtype; computed in float32 (float64 for float64) and rounded once.

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

    def fill(chunk: int) -> None:
        part = result[chunk_slice(chunk)]
        values = random.generator(chunk).standard_normal(part.size, dtype=working)
        values *= working(std)
        values += working(mean)
        part[...] = np.exp(values) if positive else values

    list(run(fill, chunks(x.size)))
    return result.reshape(x.shape)
