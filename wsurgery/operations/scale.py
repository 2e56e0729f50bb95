"""A tensor times a number."""

import numpy as np

from wsurgery.operations.random_streams import chunk_slice, for_each_chunk
from wsurgery.operations.rewrite import Array, Map


def scale(x: Array, *, by: float, run: Map = map) -> Array:
    """Multiply a tensor by a number.

    Args:
        x: floating point, any shape.
        by: the factor.
        run: `map` over chunks.

    Returns:
        Same shape and dtype; computed in float32 (float64 for float64) and rounded once.
    """
    flat = x.reshape(-1)
    working = np.float64 if x.dtype == np.float64 else np.float32
    result = np.empty(flat.size, x.dtype)

    def fill(chunk: int) -> None:
        part = chunk_slice(chunk)
        with np.errstate(over="ignore", invalid="ignore"):
            result[part] = np.multiply(flat[part].astype(working), working(by))

    for_each_chunk(run, fill, flat.size)
    return result.reshape(x.shape)
