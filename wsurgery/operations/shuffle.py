"""The paper's Shuffled Init: a random permutation of the tensor's values (appendix F.2)."""

import numpy as np

from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.random_streams import CHUNK, RandomStream, chunk_slice, chunks


def shuffle(x: Array, *, random: RandomStream, run: Map = map) -> Array:
    """Permute the elements of a tensor, every permutation being equally likely.

    A tensor of more than one chunk is permuted as Rao (1961) and Sandelius (1962) do: every element goes to a bucket drawn
    at random, then each bucket is permuted by itself. That is exactly uniform, runs on all cores and stays in the cache.

    Args:
        x: any dtype of whole bytes, any shape.
        random: where the permutation comes from.
        run: `map` over chunks.

    Returns:
        The same elements, bit for bit, in the same shape and dtype.
    """
    flat = (
        x.reshape(-1).view(f"V{x.dtype.itemsize}")
        if x.dtype.itemsize not in (1, 2, 4, 8)
        else x.reshape(-1).view(f"u{x.dtype.itemsize}")
    )
    if flat.size <= CHUNK:
        result = flat.copy()
        random.generator(0).shuffle(result)
        return result.view(x.dtype).reshape(x.shape)

    buckets = 2 * len(chunks(flat.size))
    bucket_dtype = np.uint8 if buckets <= 256 else np.uint16  # numpy sorts these by radix

    def scatter(chunk: int) -> tuple[Array, Array]:
        part = flat[chunk_slice(chunk)]
        where = random.generator(chunk, "bucket").integers(buckets, size=part.size, dtype=np.uint32)
        where = where.astype(bucket_dtype) if buckets <= 65536 else where
        return part[np.argsort(where, kind="stable")], np.bincount(where, minlength=buckets)

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
