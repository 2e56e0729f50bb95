"""A weight by its filters, its input channels, or the positions of its kernel."""

import math
from collections.abc import Sequence


def sides(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the numbers of output filters, input channels (of a group) and positions of a weight (out, in, …).

    A linear layer has one position, and a tensor of one dimension, (out,), one channel, too.
    """
    return shape[0], math.prod(shape[1:2]), math.prod(shape[2:])


def layout(shape: Sequence[int], axis: str) -> tuple[int, int, int]:
    """Return the three dimensions in which a weight's filters, channels or positions stand along the middle one.

    Args:
        shape: (out, in, …), the kernel's sides last.
        axis: `out`, `in` or `space`.
    """
    out, channels, positions = sides(shape)
    return {
        "out": (1, out, channels * positions),
        "in": (out, channels, positions),
        "space": (out * channels, positions, 1),
    }[axis]
