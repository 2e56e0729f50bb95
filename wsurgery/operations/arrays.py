"""The types that operations share."""

from collections.abc import Callable, Iterable
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Map = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]  # the built-in `map`, or a thread pool's
Compute = Callable[[Array, Map], Array]
