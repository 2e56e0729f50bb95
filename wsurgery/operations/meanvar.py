"""The paper's Mean Var initialisation: iid Gaussian with the mean and variance of the tensor (section 4.2, appendix F)."""

import math

import ml_dtypes
import numpy as np

from wsurgery.errors import WsurgeryError
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.kernels import layout
from wsurgery.operations.random_streams import CHUNK, RandomStream, chunk_slice, for_each_chunk
from wsurgery.operations.statistics import moments

_AXES = {"filter": "out", "channel": "in"}


def meanvar(x: Array, *, random: RandomStream, run: Map = map, per: str | None = None, positive: bool = False) -> Array:
    """Resample a tensor from its own mean and variance, or from those of each filter or input channel.

    Args:
        x: floating point, any shape, at least one element; filters are `x[i]`, channels `x[:, i]`.
        random: where the numbers come from.
        run: `map` over chunks.
        per: `filter` or `channel`, which a tensor of one dimension has none of; otherwise of the whole tensor.
        positive: draw from the log-normal distribution with the same mean and variance, for running variances, which
            must stay positive.

    Returns:
        Same shape and dtype; computed in float32 (float64 for float64) and rounded once. Draws beyond the range of the
        dtype, which float8 weights scaled to fill it would get, are its ends.

    Raises:
        WsurgeryError: the mean or variance is not finite, or `positive` and the mean is not positive.
    """
    _, groups, inner = layout(x.shape, _AXES[per]) if per in _AXES and x.ndim > 1 else (1, 1, x.size)
    if groups > 1:
        means, stds = _moments_by_group(x.reshape(-1, groups, inner), run)
    else:
        stats = moments(x, run)
        means, stds = np.array([stats.mean]), np.array([stats.std])
    if not (np.isfinite(means).all() and np.isfinite(stds).all()):
        raise WsurgeryError(
            "holds NaN or infinity, so it has no mean and variance to draw from: leave it out with --except"
        )
    if positive:
        mean, std = stats.mean, stats.std
        if mean <= 0:
            raise WsurgeryError(
                f"is a running variance with mean {mean:g}, which cannot be resampled: use --bn identity or keep"
            )
        spread = math.log1p((std / mean) ** 2)
        means, stds = np.array([math.log(mean) - spread / 2]), np.array([math.sqrt(spread)])
    working = np.float64 if x.dtype == np.float64 else np.float32
    means, stds = means.astype(working), stds.astype(working)
    result = np.empty(x.size, x.dtype)
    range_ = ml_dtypes.finfo(x.dtype)  # type: ignore[no-untyped-call]
    lowest, largest = float(range_.smallest_subnormal if positive else range_.min), float(range_.max)

    def fill(chunk: int) -> None:
        part = result[chunk_slice(chunk)]
        values: Array = part if x.dtype == working else np.empty(part.size, working)
        random.standard_normal(chunk, out=values)
        group = np.arange(chunk * CHUNK, chunk * CHUNK + part.size) // inner % groups if groups > 1 else 0
        with np.errstate(over="ignore", under="ignore"):
            values *= stds[group]
            values += means[group]
            if positive:
                np.exp(values, out=values)
        part[...] = np.clip(values, working(lowest), working(largest), out=values)

    for_each_chunk(run, fill, x.size)
    return result.reshape(x.shape)


def _moments_by_group(x: Array, run: Map) -> tuple[Array, Array]:
    """Return mean and standard deviation, in float64, of each `x[:, i]`."""
    at_once = max(1, CHUNK // (x.shape[0] * x.shape[2]))

    def part(i: int) -> tuple[Array, Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            values = x[:, i * at_once : (i + 1) * at_once].astype(np.float64)
            mean = values.mean(axis=(0, 2))
            values -= mean[:, None]
            return mean, np.sqrt(np.square(values, out=values).mean(axis=(0, 2)))

    means, stds = zip(*run(part, range(-(-x.shape[1] // at_once))), strict=True)
    return np.concatenate(means), np.concatenate(stds)
