"""What stands at given ranks among any number of elements, exactly, in the memory of a histogram: a radix select.

Elements are ranked by keys, unsigned integers. The bits of a magnitude are one: they are in the order of the numbers, NaN last.
"""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np

from wsurgery.operations.arrays import Array

Visit = Callable[[Callable[[Array], None]], None]

_DIGIT = 16  # bits that one pass tells apart


class Ranked(NamedTuple):
    """A key, how many of the same stand before its place, and how many of them there are in all."""

    key: int
    before: int
    alike: int


def magnitude_keys(x: Array, *, wide: bool = False) -> Array:
    """Return the bits of |x| as float32, uint32; where `wide`, as float64, uint64."""
    with np.errstate(over="ignore", invalid="ignore"):
        magnitudes: Array = np.abs(x).astype(np.float64 if wide else np.float32, copy=False)
    return magnitudes.view(np.uint64 if wide else np.uint32)


def of_ranks(ranks: Sequence[int], visit: Visit, *, bits: int = 32) -> list[Ranked]:
    """Return what stands at these places, from 0, when all keys are in rising order.

    Args:
        ranks: below the number of elements.
        visit: calls a function with the keys, (m,), of every part of the elements, in any order and from any number of
            threads. It is called once for every 16 bits of a key.
        bits: of a key, 32 or 64.
    """
    found = [(0, rank, 0) for rank in ranks]
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = {prefix: _Counts() for prefix, _, _ in found}

        def look(keys: Array, shift: int = shift, counts: dict[int, "_Counts"] = counts) -> None:
            digits = keys >> shift
            for prefix, each in counts.items():
                each.add(digits if shift == bits - _DIGIT else digits[digits >> _DIGIT == prefix])

        visit(look)
        places = [(prefix, counts[prefix].place(left)) for prefix, left, _ in found]
        found = [(prefix << _DIGIT | digit, left, alike) for prefix, (digit, left, alike) in places]
    return [Ranked(*each) for each in found]


class _Counts:
    """How often each last digit was met; whole numbers, so that the order does not matter."""

    def __init__(self) -> None:
        self._counts, self._lock = np.zeros(1 << _DIGIT, np.int64), Lock()

    def add(self, keys: Array) -> None:
        counts = np.bincount(keys.astype(np.uint16), minlength=1 << _DIGIT)
        with self._lock:
            self._counts += counts

    def place(self, rank: int) -> tuple[int, int, int]:
        """Return the digit of a rank, how many of the same stand before it, and how many there are."""
        ends = self._counts.cumsum()
        digit = int(np.searchsorted(ends, rank, side="right"))
        return digit, rank - int(ends[digit] - self._counts[digit]), int(self._counts[digit])
