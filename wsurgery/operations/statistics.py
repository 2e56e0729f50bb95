"""Statistics of one tensor in one pass, in float64, the same for any number of threads."""

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np

from wsurgery.operations.random_streams import chunk_slice, chunks
from wsurgery.operations.rewrite import Array, Map


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations, of all elements; not finite where one of them is not or float64 overflows."""

    count: int
    mean: float
    squares: float

    @property
    def std(self) -> float:
        """Standard deviation of the elements themselves: divided by n, not n - 1."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def __add__(self, other: "Moments") -> "Moments":
        """Merge two parts (Chan, Golub and LeVeque 1983)."""
        if not self.count:
            return other
        count, delta = self.count + other.count, other.mean - self.mean
        mean = self.mean + delta * other.count / count
        return Moments(count, mean, self.squares + other.squares + delta * delta * self.count * other.count / count)


def moments(x: Array, run: Map) -> Moments:
    """Return the moments of `x`, any real dtype and shape."""
    flat = x.reshape(-1)

    def part(chunk: int) -> Moments:
        values = flat[chunk_slice(chunk)].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever asks checks that the result is finite
            mean = float(values.mean())
            np.subtract(values, mean, out=values)
            np.multiply(values, values, out=values)
            return Moments(values.size, mean, float(values.sum()))

    return reduce(Moments.__add__, run(part, chunks(flat.size)), Moments(0, 0.0, 0.0))


@dataclass(frozen=True)
class Summary:
    """What `show --stats` says of a tensor.

    `mean`, `std`, `min` and `max` are of its finite elements: None without any, or where float64 overflows.
    """

    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    zeros: int
    nan: int
    inf: int


def summary(x: Array) -> Summary:
    """Summarise `x`, any real dtype and shape."""
    parts, zeros, nan, inf, low, high = Moments(0, 0.0, 0.0), 0, 0, 0, math.inf, -math.inf
    flat = x.reshape(-1)
    for chunk in chunks(flat.size):
        values = flat[chunk_slice(chunk)].astype(np.float64)
        nan += int(np.isnan(values).sum())
        inf += int(np.isinf(values).sum())
        zeros += int((values == 0).sum())
        values = values[np.isfinite(values)]
        if values.size:
            parts += moments(values, map)
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if not parts.count:
        return Summary(None, None, None, None, zeros, nan, inf)
    mean, std = (value if math.isfinite(value) else None for value in (parts.mean, parts.std))
    return Summary(mean, std, low, high, zeros, nan, inf)
