"""Magnitudes of a given rank among any number of elements, exactly, in two passes and the memory of a histogram."""

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from wsurgery.operations.arrays import Array

Visit = Callable[[Callable[[NDArray[np.float32]], None]], None]

_HALF = 16  # bits of a float32 that one pass tells apart


def magnitude(x: Array) -> NDArray[np.float32]:
    """Return |x| of a float64 array, rounded to float32: by this, elements are ranked."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.abs(x).astype(np.float32)


def of_ranks(ranks: Sequence[int], visit: Visit) -> list[np.float32]:
    """Return the magnitudes that stand at these places, from 0, when all are in rising order; NaN is the largest.

    Args:
        ranks: below the number of elements.
        visit: calls a function with the magnitudes, (m,), of every part of the elements, from any number of threads. It is
            called twice.
    """
    coarse = _Counts()
    visit(lambda x: coarse.add(x.view(np.uint32) >> _HALF))
    places = [coarse.place(rank) for rank in ranks]
    fine = {high: _Counts() for high, _ in places}

    def refine(x: NDArray[np.float32]) -> None:
        bits = x.view(np.uint32)
        for high, counts in fine.items():
            counts.add(bits[bits >> _HALF == high] & ((1 << _HALF) - 1))

    visit(refine)
    lows = [fine[high].place(rank)[0] for high, rank in places]
    found = [(high << _HALF) + low for (high, _), low in zip(places, lows, strict=True)]
    return list(np.array(found, np.uint32).view(np.float32))


class _Counts:
    """How often each number below 2^16 was met; whole numbers, so that the order does not matter."""

    def __init__(self) -> None:
        self._counts, self._lock = np.zeros(1 << _HALF, np.int64), Lock()

    def add(self, numbers: Array) -> None:
        counts = np.bincount(numbers, minlength=1 << _HALF)
        with self._lock:
            self._counts += counts

    def place(self, rank: int) -> tuple[int, int]:
        """Return the number of a rank, and how many of the same number stand before it."""
        ends = self._counts.cumsum()
        number = int(np.searchsorted(ends, rank, side="right"))
        return number, rank - int(ends[number] - self._counts[number])
