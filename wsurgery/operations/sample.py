"""The paper's Sampling Init: every element an iid draw from the tensor's values (appendix F.2)."""

import numpy as np

from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.random_streams import RandomStream, chunk_slice, for_each_chunk


def sample(x: Array, *, random: RandomStream, run: Map = map) -> Array:
    """Draw every element from the tensor's own values, with replacement.

    Args:
        x: any dtype of whole bytes, any shape, at least one element.
        random: where the draws come from.
        run: `map` over chunks.

    Returns:
        Same shape and dtype; every element is one of `x`, bit for bit.
    """
    flat = x.reshape(-1)
    result = np.empty_like(flat)

    def fill(chunk: int) -> None:
        part = result[chunk_slice(chunk)]
        # A mode writes where it shall, and takes half of the time of an index, which looks at each number twice.
        flat.take(random.generator(chunk).integers(flat.size, size=part.size), out=part, mode="wrap")

    for_each_chunk(run, fill, flat.size)
    return result.reshape(x.shape)
