"""The element types of the safetensors format. numpy is imported only where an array is asked for."""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# Name → bits of one element, as the safetensors library 0.8 accepts them.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

_NUMPY = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
_ML_DTYPES = {
    "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


@cache
def is_float(dtype: str) -> bool:
    """Whether `dtype` holds real floating-point numbers. A bare exponent, the scale of a block (F8_E8M0), is none."""
    return dtype.startswith(("F", "BF")) and dtype != "F8_E8M0"


@cache
def numpy_dtype(dtype: str) -> "np.dtype[Any]":
    """Return the numpy type of `dtype`, from ml_dtypes for bfloat16 and float8.

    Raises:
        TypeError: the elements are smaller than a byte, which numpy arrays cannot hold.
    """
    import numpy as np

    if dtype in _NUMPY:
        return np.dtype(_NUMPY[dtype])
    if dtype in _ML_DTYPES:
        import ml_dtypes

        scalar: type[np.generic] = getattr(ml_dtypes, _ML_DTYPES[dtype])
        return np.dtype(scalar)
    raise TypeError(f"{dtype} elements are smaller than a byte: they can be copied, not computed with")


def dtype_name(dtype: "np.dtype[Any]") -> str:
    """Return the safetensors name of a numpy type."""
    for name in (*_NUMPY, *_ML_DTYPES):
        if numpy_dtype(name) == dtype:
            return name
    raise TypeError(f"safetensors has no element type like numpy's {dtype}")
