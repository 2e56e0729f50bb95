"""Values that an element type does not reach."""

from typing import TYPE_CHECKING, Any

from wsurgery.checkpoint.dtypes import dtype_name
from wsurgery.errors import printable

if TYPE_CHECKING:
    import numpy as np

    from wsurgery.operations.arrays import Array, Map

_NO_INFINITY = ("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ")


class Overflows:
    """Counts, by tensor, of finite values that became infinite, or NaN where the type has no infinity."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def note(self, tensor: str, count: int, dtype: "np.dtype[Any]") -> None:
        """Note how many there are in a tensor of a type; computed again, it has as many."""
        if count:
            self._counts[tensor] = count, dtype_name(dtype)

    def cast(self, tensor: str, x: "Array", *, dtype: "np.dtype[Any]", run: "Map" = map) -> "Array":
        """Convert a tensor to another floating-point type, and note what it does not reach."""
        from wsurgery.operations.cast import cast, overflow_count

        result = cast(x, dtype=dtype, run=run)
        self.note(tensor, overflow_count(x, result, run=run), dtype)
        return result

    def warnings(self) -> list[str]:
        """Say it, in at most one line."""
        if not self._counts:
            return []
        first = min(self._counts)
        dtype = self._counts[first][1]
        return [
            f"{sum(count for count, _ in self._counts.values()):,} finite values in {len(self._counts)} tensors became "
            f"{'NaN' if dtype in _NO_INFINITY else 'infinite'}, first in {printable(first)}: {dtype} does not reach so far"
        ]
