"""Grey values of more than 8 bits in 8: which become black, and which white."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wsurgery.data.rendering import Rendering

Floats = NDArray[np.float64]
Own = Callable[[Floats], Floats]

_BLOCK = 1 << 20  # pixels that are counted at once
_PERCENTILES = 0.01, 0.99


def levels_of(dtype: np.dtype[np.generic]) -> NDArray[np.integer]:
    """Every value of an integer type of 8 or 16 bits, in the order of its bits."""
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return np.arange(1 << 8 * dtype.itemsize).astype(unsigned).view(dtype)


def to_8_bits(
    pixels: NDArray[np.integer],
    values: Floats,
    window: str,
    *,
    possible: tuple[float, float],
    own: Own | None = None,
    padding: tuple[int, int] | None = None,
    inverted: bool = False,
) -> NDArray[np.uint8]:
    """Map grey values to 0 to 255, linearly between two of them or as the file says.

    Args:
        pixels: (h, w), of 8 or 16 bits, as they are stored.
        values: what each of `levels_of` the type stands for; finite.
        window: as of `Rendering`.
        possible: the least and the greatest value that there can be.
        own: the file's own mapping of values to 0 to 255, if it has one.
        padding: the first and the last stored value of what lies outside of the picture, in either order. It becomes black.
        inverted: the least value is white.

    Returns:
        uint8 (h, w). In an image of one value it is the least.
    """
    stored = pixels.view(f"u{pixels.itemsize}")
    outside = np.zeros(len(values), bool)
    if padding is not None:
        levels = levels_of(pixels.dtype)
        low, high = sorted(levels[value % len(levels)] for value in padding)
        outside = (levels >= low) & (levels <= high)
    if window == "auto" and own is not None:
        greys = own(values)
    else:
        limits = Rendering(window=window).limits
        if limits is not None:
            low, high = limits
        elif window == "full" or (window == "auto" and pixels.itemsize == 1):
            low, high = possible
        else:
            low, high = _occurring(stored, values, outside, _PERCENTILES if window == "percentiles" else (0, 1))
        greys = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    table = np.rint(np.clip(greys, 0, 255)).astype(np.uint8)
    if inverted:
        table = 255 - table
    table[outside] = 0
    mapped: NDArray[np.uint8] = table[stored]
    return mapped


def _occurring(
    stored: NDArray[np.integer], values: Floats, outside: NDArray[np.bool_], quantiles: tuple[float, float]
) -> tuple[float, float]:
    """The values of an image below which two parts of its pixels are."""
    counts = np.zeros(len(values), np.int64)
    flat = stored.ravel()
    for start in range(0, flat.size, _BLOCK):
        counts += np.bincount(flat[start : start + _BLOCK], minlength=len(values))
    counts[outside] = 0
    order = np.argsort(values, kind="stable")
    below = np.cumsum(counts[order])
    if not below[-1]:
        return 0.0, 0.0
    least, greatest = (np.searchsorted(below, max(1, q * below[-1])) for q in quantiles)
    return float(values[order[least]]), float(values[order[greatest]])
