"""What holds for a tensor that is not known to the byte."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from soak.checkpoints import TYPES, Tensor

FAR = 9.0  # standard deviations, that no draw of a soak goes beyond


@dataclass
class Law:
    """What is known of a tensor that is not known to the byte: its type and shape, and what holds for its bytes."""

    dtype: str
    shape: tuple[int, ...]
    holds: Callable[[Tensor], bool]


def in_float64(tensor: Tensor) -> np.ndarray:
    """Its elements, exactly."""
    with np.errstate(invalid="ignore"):
        return tensor.array.astype(np.float64)


def computed(x: np.ndarray, dtype: str) -> Law:
    """The bytes of an array, but that one NaN is as good as another."""

    def holds(got: Tensor) -> bool:
        nan = np.isnan(x.astype(np.float64))
        same = got.array.reshape(-1).view(f"u{x.dtype.itemsize}") == x.reshape(-1).view(f"u{x.dtype.itemsize}")
        return bool((same | (nan.reshape(-1) & np.isnan(got.array.astype(np.float64)).reshape(-1))).all())

    return Law(dtype, x.shape, holds)


def pruned_at_random(x: Tensor, sparsity: float, alone: bool) -> Callable[[Tensor], bool]:
    def holds(got: Tensor) -> bool:
        before, after = in_float64(x), in_float64(got)
        least = max(round(sparsity * x.elements), int((before == 0).sum()))
        untouched = got.array.reshape(-1).view(f"u{got.array.itemsize}") == x.array.reshape(-1).view(
            f"u{got.array.itemsize}"
        )
        return bool((untouched | (after == 0).reshape(-1)).all()) and (not alone or int((after == 0).sum()) == least)

    return holds


def _elements(x: Tensor) -> Counter[bytes]:
    return Counter(x.array.reshape(-1).view(f"V{x.array.itemsize}").tolist())


def positive(got: Tensor) -> bool:
    return bool((in_float64(got) > 0).all())


def gaussian(x: Tensor, options: dict[str, Any]) -> Callable[[Tensor], bool]:
    """Gaussian numbers: finite, and none too far from the mean."""

    def holds(got: Tensor) -> bool:
        before, after = in_float64(x), in_float64(got)
        if not np.isfinite(after).all():
            return False
        if (np.abs(before) > 1e150).any():
            return True
        # Mean and deviation of no part are beyond the extremes.
        spread = before.std() if options.get("per", "tensor") == "tensor" else before.max() - before.min()
        middle = before.mean() if spread == before.std() else before
        reach = np.abs(middle).max() + FAR * spread
        rounding = max(2 * float(ml_dtypes.finfo(TYPES[x.dtype]).eps), 1e-12)
        return bool((np.abs(after) <= reach * (1 + rounding) + _tiny(x)).all())

    return holds


def _tiny(x: Tensor) -> float:
    return 2 * float(ml_dtypes.finfo(TYPES[x.dtype]).smallest_subnormal)


def shuffled(x: Tensor, options: dict[str, Any]) -> Callable[[Tensor], bool]:
    def holds(got: Tensor) -> bool:
        parts = [(x, got)]
        if options.get("within") == "filter" and len(x.shape) > 1 and x.elements:
            size = len(x.data) // x.shape[0]
            cut = [slice(i * size, (i + 1) * size) for i in range(x.shape[0])]
            parts = [(Tensor(x.dtype, x.shape[1:], x.data[i]), Tensor(x.dtype, x.shape[1:], got.data[i])) for i in cut]
        return all(_elements(a) == _elements(b) for a, b in parts)

    return holds


def _sampled(x: Tensor, options: dict[str, Any]) -> Callable[[Tensor], bool]:
    return lambda got: _elements(got).keys() <= _elements(x).keys()


def _rotated(x: Tensor, options: dict[str, Any]) -> Callable[[Tensor], bool]:
    def holds(got: Tensor) -> bool:
        if len(x.shape) < 2:
            return got.data == x.data
        before, after = in_float64(x).reshape(x.shape[0], -1), in_float64(got).reshape(x.shape[0], -1)
        if not np.isfinite(after).all():
            return False
        if x.dtype not in ("F32", "F64") or np.abs(before).max() > 1e30 or np.abs(before).max() < 1e-30:
            return True
        a, b = np.linalg.svd(before, compute_uv=False), np.linalg.svd(after, compute_uv=False)
        return bool(np.allclose(a, b, rtol=1e-5, atol=1e-5 * a.max()))

    return holds


def of_rank(x: Tensor, rank: int) -> Callable[[Tensor], bool]:
    """The leading singular values stay, and there are no others."""

    def holds(got: Tensor) -> bool:
        before, after = in_float64(x).reshape(x.shape[0], -1), in_float64(got).reshape(x.shape[0], -1)
        if not np.isfinite(after).all() or np.abs(before).max() > 1e100:
            return not (np.isnan(after).any() and x.dtype not in ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ"))
        a, b = np.linalg.svd(before, compute_uv=False), np.linalg.svd(after, compute_uv=False)
        a[rank:] = 0
        rounding = float(ml_dtypes.finfo(TYPES[x.dtype]).eps) * np.linalg.norm(before) + _tiny(x) * math.sqrt(
            x.elements
        )
        return bool(np.allclose(a, b, rtol=1e-6, atol=rounding + 1e-7 * a[0]))

    return holds


def _finite(x: Tensor, options: dict[str, Any]) -> Callable[[Tensor], bool]:
    return lambda got: bool(np.isfinite(in_float64(got)).all())


def near(x: Tensor, std: float) -> Callable[[Tensor], bool]:
    def holds(got: Tensor) -> bool:
        before, after = in_float64(x), in_float64(got)
        info = ml_dtypes.finfo(TYPES[x.dtype])
        finite = np.isfinite(before)
        beyond = np.abs(before) + FAR * std >= float(info.max) * (1 - float(info.eps))
        with np.errstate(all="ignore"):
            reach = FAR * std + 2 * float(info.eps) * (np.abs(before) + FAR * std) + _tiny(x)
            near = np.isfinite(after) & (np.abs(after - before) <= reach)
        return bool(np.where(finite, near | beyond, ~np.isfinite(after)).all())

    return holds


LAWS = {"meanvar": gaussian, "shuffle": shuffled, "sample": _sampled, "spectrum": _rotated, "covariance": _finite}
