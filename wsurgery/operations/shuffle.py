"""The paper's Shuffled Init: a random permutation of the tensor's values (appendix F.2)."""

import numpy as np

from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.kernels import layout
from wsurgery.operations.random_streams import CHUNK, RandomStream, chunk_slice, chunks

_AXES = {"filter": "out", "position": "space"}


def shuffle(x: Array, *, random: RandomStream, run: Map = map, within: str | None = None) -> Array:
    """Permute the elements of a tensor, or of each of its filters or positions, every permutation being equally likely.

    A tensor of more than one chunk is permuted as Rao (1961) and Sandelius (1962) do: every element goes to a bucket drawn
    at random, then each bucket is permuted by itself. That is exactly uniform, runs on all cores and stays in the cache.

    Args:
        x: any dtype of whole bytes, any shape; filters are `x[i]`, positions `x[:, :, i, j]`.
        random: where the permutation comes from.
        run: `map` over chunks.
        within: `filter` or `position`, which a tensor of one dimension has none of; otherwise within the whole tensor.

    Returns:
        The same elements, bit for bit, in the same shape and dtype.
    """
    flat = (
        x.reshape(-1).view(f"V{x.dtype.itemsize}")
        if x.dtype.itemsize not in (1, 2, 4, 8)
        else x.reshape(-1).view(f"u{x.dtype.itemsize}")
    )
    before, groups, inner = layout(x.shape, _AXES[within]) if within in _AXES and x.ndim > 1 else (1, 1, x.size)
    if groups > 1:
        return _by_group(flat.reshape(before, groups, inner), random, run).view(x.dtype).reshape(x.shape)
    if flat.size <= CHUNK:
        result = flat.copy()
        random.generator(0).shuffle(result)
        return result.view(x.dtype).reshape(x.shape)

    buckets = 2 * len(chunks(flat.size))
    key = "u4" if buckets * CHUNK <= 1 << 32 else "u8"
    places: Array = np.arange(CHUNK, dtype=key)
    firsts: Array = np.arange(buckets, dtype=key) * CHUNK

    def scatter(chunk: int) -> tuple[Array, Array]:
        part = flat[chunk_slice(chunk)]
        where = random.generator(chunk, "bucket").integers(buckets, size=part.size, dtype=np.uint32)
        # Sorted with their places, as numpy does by vector instructions: sorting places by bucket takes five times as long.
        order: Array = where.astype(key) * CHUNK | places[: part.size]
        order.sort()
        counts = np.diff(order.searchsorted(firsts), append=part.size)
        return part.take((order & (CHUNK - 1)).astype(np.intp), mode="clip"), counts

    parts = list(run(scatter, chunks(flat.size)))
    counts = np.array([count for _, count in parts])  # (chunks, buckets)
    starts = np.concatenate([np.zeros((len(parts), 1), np.int64), counts.cumsum(1)], 1)
    ends = np.concatenate([[0], counts.sum(0).cumsum()])
    result = np.empty_like(flat)

    def gather(bucket: int) -> None:
        mine = result[ends[bucket] : ends[bucket + 1]]
        pieces = [part[starts[i, bucket] : starts[i, bucket + 1]] for i, (part, _) in enumerate(parts)]
        np.concatenate(pieces, out=mine)
        random.generator(bucket, "within").shuffle(mine)

    list(run(gather, range(buckets)))
    return result.view(x.dtype).reshape(x.shape)


def _by_group(x: Array, random: RandomStream, run: Map) -> Array:
    """Permute the elements of each `x[:, i]` among themselves."""
    before, groups, inner = x.shape
    at_once = max(1, CHUNK // (before * inner))
    result = np.empty_like(x)

    def fill(number: int) -> None:
        part = slice(number * at_once, (number + 1) * at_once)
        rows = x[:, part].swapaxes(0, 1)
        mixed = random.generator(number, "group").permuted(rows.reshape(len(rows), -1), axis=1)
        result[:, part] = mixed.reshape(rows.shape).swapaxes(0, 1)

    list(run(fill, range(-(-groups // at_once))))
    return result


def shuffle_axis(x: Array, *, axis: str, random: RandomStream) -> Array:
    """Permute a tensor's filters, input channels or positions as they are, every permutation being equally likely.

    Args:
        x: any dtype, (out, in, …) or (out,).
        axis: `out` permutes the `x[i]`, `in` the `x[:, i]` and `space` the `x[:, :, i, j]`.
        random: where the permutation comes from.

    Returns:
        The same elements, bit for bit, in the same shape and dtype.
    """
    before, groups, inner = layout(x.shape, axis)
    order = random.generator(0, "axis").permutation(groups)
    result: Array = x.reshape(before, groups, inner)[:, order].reshape(x.shape)
    return result
