"""The paper's Shuffled Init: a random permutation of the tensor's values (appendix F.2)."""

import numpy as np

from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.kernels import layout
from wsurgery.operations.random_streams import CHUNK, RandomStream, chunk_slice, chunks

_AXES = {"filter": "out", "position": "space"}
_SORTED = 1 << 16  # elements that are sorted at once, of tensors that are not huge: their order stays in the cache


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
        mixed = _widened(flat)
        random.generator(0).shuffle(mixed)
        return mixed.astype(flat.dtype).view(x.dtype).reshape(x.shape)

    buckets = 2 * len(chunks(flat.size))
    key = np.uint8 if buckets <= 1 << 8 else np.uint16 if buckets <= 1 << 16 else np.uint32  # the first two by radix
    firsts = np.arange(buckets, dtype=key)
    at_once = _SORTED if key is np.uint8 else CHUNK  # the pieces grow with the square of the size
    scattered, result = np.empty_like(flat), np.empty_like(flat)

    def scatter(chunk: int) -> list[Array]:
        start, bounds = chunk * CHUNK, []
        where = random.generator(chunk, "bucket").integers(buckets, size=flat[chunk_slice(chunk)].size, dtype=np.uint32)
        for mine in np.split(where.astype(key), range(at_once, where.size, at_once)):
            order, some = mine.argsort(kind="stable"), slice(start, start + mine.size)
            flat[some].take(order, out=scattered[some], mode="clip")
            bounds.append(start + np.append(mine.take(order).searchsorted(firsts), mine.size))
            start += mine.size
        return bounds

    bounds = np.array([each for some in run(scatter, chunks(flat.size)) for each in some])  # (parts, buckets + 1)
    ends = (bounds - bounds[:, :1]).sum(0)

    def gather(bucket: int) -> None:
        mixed = _widened(np.concatenate([scattered[a:b] for a, b in bounds[:, bucket : bucket + 2].tolist()]))
        random.generator(bucket, "within").shuffle(mixed)
        result[ends[bucket] : ends[bucket + 1]] = mixed

    list(run(gather, range(buckets)))
    return result.view(x.dtype).reshape(x.shape)


def _widened(x: Array) -> Array:
    """Return a copy, of unsigned integers as those of 8 bytes: numpy moves only these without a call for each."""
    return x.astype(np.uint64) if x.dtype.kind == "u" else x.copy()


def _by_group(x: Array, random: RandomStream, run: Map) -> Array:
    """Permute the elements of each `x[:, i]` among themselves."""
    before, groups, inner = x.shape
    at_once = max(1, CHUNK // (before * inner))
    result = np.empty_like(x)

    def fill(number: int) -> None:
        part = slice(number * at_once, (number + 1) * at_once)
        rows = x[:, part].swapaxes(0, 1)
        mixed = random.generator(number, "group").permuted(_widened(rows.reshape(len(rows), -1)), axis=1)
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
