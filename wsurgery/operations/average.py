"""Weighted sums of tensors: averages (Wortsman et al. 2022, model soups) and linear interpolation."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from wsurgery.operations.cast import cast
from wsurgery.operations.random_streams import chunk_slice, for_each_chunk
from wsurgery.operations.rewrite import Array, Map


def weighted_sum(
    parts: Iterable[tuple[Array, float]], *, shape: tuple[int, ...], dtype: "np.dtype[Any]", run: Map = map
) -> Array:
    """Sum tensors times weights, accumulated in float64 and rounded once.

    Args:
        parts: tensors, floating point, all of `shape`, each with its weight; taken one at a time.
        shape: their shape.
        dtype: type of the result.
        run: `map` over chunks.
    """
    total = np.full(shape, -0.0)  # the zero that keeps the sign of what is added to it
    for x, weight in parts:
        _accumulate(total.reshape(-1), x.reshape(-1), weight, run)
    return cast(total, dtype=dtype, run=run)


def _accumulate(total: Array, x: Array, weight: float, run: Map) -> None:
    def add(chunk: int) -> None:
        part = chunk_slice(chunk)
        with np.errstate(over="ignore", invalid="ignore"):
            values = x[part].astype(np.float64)
            values *= weight
            total[part] += values

    for_each_chunk(run, add, x.size)
