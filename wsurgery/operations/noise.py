"""A tensor plus Gaussian noise."""

import math

import numpy as np

from wsurgery.errors import WsurgeryError
from wsurgery.operations.random_streams import RandomStream, chunk_slice, for_each_chunk
from wsurgery.operations.rewrite import Array, Map
from wsurgery.operations.statistics import moments


def add_noise(x: Array, *, std: float, relative: bool, random: RandomStream, run: Map = map) -> Array:
    """Add iid Gaussian noise of mean 0 to a tensor.

    Args:
        x: floating point, any shape.
        std: the noise's standard deviation.
        relative: count `std` in standard deviations of `x`.
        random: where the numbers come from.
        run: `map` over chunks.

    Returns:
        Same shape and dtype; computed in float32 (float64 for float64) and rounded once.

    Raises:
        WsurgeryError: `relative`, and the standard deviation of `x` is not finite.
    """
    if relative:
        own = moments(x, run).std
        if not math.isfinite(own):
            raise WsurgeryError(
                "holds NaN or infinity, so noise has no scale relative to it: leave it out with --except"
            )
        std *= own
    flat = x.reshape(-1)
    working = np.float64 if x.dtype == np.float64 else np.float32
    result = np.empty(flat.size, x.dtype)

    def fill(chunk: int) -> None:
        part = flat[chunk_slice(chunk)]
        with np.errstate(over="ignore", invalid="ignore"):
            noise: Array = np.empty(part.size, working)
            random.standard_normal(chunk, out=noise)
            noise *= working(std)
            noise += part.astype(working)
            result[chunk_slice(chunk)] = noise

    for_each_chunk(run, fill, flat.size)
    return result.reshape(x.shape)
