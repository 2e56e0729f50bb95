"""Conversion between floating-point types, rounded once to the nearest, ties to even."""

from functools import cache
from typing import Any

import numpy as np
from ml_dtypes import finfo
from numpy.typing import NDArray

from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.random_streams import chunk_slice, chunks, for_each_chunk

_HALF_BLOCK = 1 << 16  # elements at a time: what is in work stays in the second-level cache
_HALF_OVERFLOW = np.float32(65520)  # the least that becomes infinite


def cast(x: Array, *, dtype: "np.dtype[Any]", run: Map = map) -> Array:
    """Convert a tensor to another floating-point type.

    Args:
        x: floating point, any shape.
        dtype: numpy's or ml_dtypes' type.
        run: `map` over chunks.

    Returns:
        Same shape. A finite value beyond the range of `dtype` becomes infinite, or NaN where the type has no infinity.
    """
    flat = x.reshape(-1)
    result = np.empty(flat.size, dtype)
    to_half = x.dtype == np.float32 and dtype == np.float16

    def fill(chunk: int) -> None:
        part = chunk_slice(chunk)
        if to_half:
            _to_half(flat[part], result[part])
        else:
            result[part] = round_once(flat[part], dtype)

    for_each_chunk(run, fill, flat.size)
    return result.reshape(x.shape)


def overflow_count(before: Array, after: Array, *, run: Map = map) -> int:
    """Count the elements that are finite in `before` and not in `after`, two floating-point tensors of one shape."""
    old, new = before.reshape(-1), after.reshape(-1)
    limit, largest = _largest(new.dtype), _largest(old.dtype)
    if largest <= limit:
        return 0

    def count(chunk: int) -> int:
        part = chunk_slice(chunk)
        with np.errstate(invalid="ignore"):  # ml_dtypes warns of a signalling NaN
            low, high = float(old[part].min()), float(old[part].max())  # floats: the limit may be beyond `old`'s type
            if -limit <= low and high <= limit:  # false where there is a NaN
                return 0
            return int((np.isfinite(old[part]) & ~np.isfinite(new[part])).sum())

    return sum(run(count, chunks(old.size)))


@cache
def _largest(dtype: "np.dtype[Any]") -> float:
    return float(finfo(dtype).max)  # type: ignore[no-untyped-call]


def round_once(values: Array, dtype: "np.dtype[Any]") -> Array:
    """Convert an array whole, without a warning where a value is out of range; return one that has the type already."""
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype == np.float64 and dtype not in (np.float64, np.float32, np.float16):
            values = _odd_float32(values)
        return values.astype(dtype)


def round_within(values: Array, dtype: "np.dtype[Any]") -> Array:
    """Convert an array whole, which is overwritten, as `round_once`; values beyond the range of the type become its ends."""
    return round_once(np.clip(values, -_largest(dtype), _largest(dtype), out=values), dtype)


def _to_half(x: NDArray[np.float32], out: NDArray[np.float16]) -> None:
    """Round to float16, bit for bit as numpy's `astype` does, with vector instructions: in half its time.

    The greatest power of two in |x|, 2^e, is raised to at least 2^-14, below which float16 is subnormal. |x| + 2^(e + 13)
    then has the last place of float16, so the addition rounds, and its low bits are k, the multiple of 2^(e - 10) that |x|
    becomes. The result is k + (e + 14) 2^10. It stands in the low half of the last sum: shifted down, the power gives
    (e + 140) 2^10 + 1, and the 0x800 - 1 more that are needed modulo 2^16 are in the power's own low bits.
    """
    scratch = np.empty((2, min(_HALF_BLOCK, x.size)), np.uint32)
    for start in range(0, x.size, _HALF_BLOCK):
        part = x[start : start + _HALF_BLOCK]
        bits, (power, total) = part.view(np.uint32), scratch[:, : part.size]
        magnitude = np.abs(part, out=total.view(np.float32))
        if not magnitude.max() < _HALF_OVERFLOW:  # NaN, infinity or overflow
            out[start : start + _HALF_BLOCK] = round_once(part, out.dtype)
            continue
        np.bitwise_and(bits, np.uint32(0xFF << 23), out=power)
        np.maximum(power, np.uint32(113 << 23), out=power)  # 2^-14
        power += np.uint32((13 << 23) + 0x800)  # 2^13 times as much
        magnitude += power.view(np.float32)
        power >>= np.uint32(13)
        total += power
        np.right_shift(bits, np.uint32(16), out=power)
        power &= np.uint32(0x8000)
        total |= power
        np.copyto(out[start : start + _HALF_BLOCK].view(np.uint16), total, casting="unsafe")  # the low half


def _odd_float32(values: Array) -> Array:
    """Round float64 to float32 "to odd" (Boldo and Melquiond 2008), after which another rounding is as good as direct.

    ml_dtypes goes from float64 to its own types by way of float32, which rounds twice: 1 + 2^-8 + 2^-40 would become 1 in
    bfloat16, not 1 + 2^-7.
    """
    near = values.astype(np.float32)
    fix = (near != values) & ~np.isnan(values) & (near.view(np.uint32) & 1 == 0)
    towards = np.where(values > near, np.float32(np.inf), np.float32(-np.inf))
    return np.where(fix, np.nextafter(near, towards), near)
