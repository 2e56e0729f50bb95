"""A weight by its filters, its input channels, or the positions of its kernel."""

import math
from collections.abc import Sequence


def layout(shape: Sequence[int], axis: str) -> tuple[int, int, int]:
    """Return the three dimensions in which a weight's filters, channels or positions stand along the middle one.

    Args:
        shape: (out, in, …), the kernel's sides last; of a linear layer (out, in). A tensor of one dimension, (out,), has
            one channel and one position, and a tensor with groups of channels those of one group, as its shape says.
        axis: `out`, `in` or `space`.
    """
    out, channels, positions = shape[0], math.prod(shape[1:2]), math.prod(shape[2:])
    return {
        "out": (1, out, channels * positions),
        "in": (out, channels, positions),
        "space": (out * channels, positions, 1),
    }[axis]
