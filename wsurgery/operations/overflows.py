"""Values that an element type does not reach."""

from wsurgery.errors import printable


class Overflows:
    """Counts, by tensor, of finite values that became infinite, or NaN where the type has no infinity."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def note(self, tensor: str, count: int) -> None:
        """Note how many there are in a tensor; computed again, it has as many."""
        if count:
            self._counts[tensor] = count

    def warnings(self) -> list[str]:
        """Say it, in at most one line."""
        if not self._counts:
            return []
        return [
            f"{sum(self._counts.values()):,} finite values in {len(self._counts)} tensors became infinite or NaN, first in "
            f"{printable(min(self._counts))}: the element type does not reach so far"
        ]
