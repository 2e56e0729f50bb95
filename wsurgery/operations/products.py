"""Matrix products with the same bits whatever the library that computes them, its threads and the processor.

What BLAS and LAPACK give depends on all three, in the last digits. So matrices are cut in halves of so few bits that sums of
their products are exact, in whatever order they are added (Ozaki, Ogita, Oishi and Rump 2012, "Error-free transformations of
matrix multiplication by using fast routines of matrix multiplication and its applications").
"""

import math
from typing import NamedTuple

import numpy as np

from wsurgery.operations.arrays import Array
from wsurgery.operations.random_streams import RandomStream

_GRID = 1 << 16  # draws are multiples of 1/_GRID: few bits, so that most have no lower half


class Halves(NamedTuple):
    """A matrix as the sum of two: what the leading bits hold, and what the next ones do; None where they are zero."""

    high: Array
    low: Array | None


def halves(x: Array, *, axis: int) -> Halves:
    """Cut a matrix for a product.

    Args:
        x: two dimensions, float64, finite.
        axis: that over which the product sums: 1 of the left matrix, 0 of the right one.

    Returns:
        What is left out is below the largest of its row (axis 1) or column (axis 0) by 2^-40 where the product has 4,000
        terms, by 2^-34 where it has 300,000.
    """
    bits = (53 - x.shape[axis].bit_length()) // 2
    exponents = np.frexp(np.abs(x).max(axis=axis, keepdims=True))[1]
    step = np.ldexp(1.0, np.maximum(exponents, -900) - bits)  # a power of two, and so is what it is divided by
    high = np.rint(x / step) * step
    step = np.ldexp(step, -bits)
    low = np.rint((x - high) / step) * step
    return Halves(high, low if low.any() else None)


def product(left: Halves, right: Halves) -> Array:
    """Multiply two matrices, cut along the dimension that they share: float64."""
    result: Array = left.high @ right.high
    if right.low is not None:
        result += left.high @ right.low
    if left.low is not None:
        result += left.low @ right.high
    return result


def normals(random: RandomStream, chunk: int, shape: tuple[int, int]) -> Array:
    """Draw a matrix of iid standard normal numbers, rounded to multiples of 2^-16: float64."""
    drawn = np.empty(math.prod(shape), np.float32)
    random.standard_normal(chunk, out=drawn)
    return on_grid(drawn.astype(np.float64)).reshape(shape)


def on_grid(x: Array) -> Array:
    """Round to multiples of 2^-16."""
    rounded: Array = np.rint(x * _GRID) / _GRID
    return rounded
