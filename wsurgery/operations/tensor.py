"""What an edit that changes one tensor after another may ask about it."""

from functools import cached_property
from typing import TYPE_CHECKING

from wsurgery.checkpoint import TensorInfo

if TYPE_CHECKING:
    from wsurgery.operations.arrays import Array, Map
    from wsurgery.operations.statistics import Moments


class Tensor:
    """What an edit may ask about the tensor that it changes.

    Attributes:
        name: its name.
        role: what it does, as `anatomy.role_map` says.
        shape: its shape, also where the edit gets chunks.
        dtype: its element type, as safetensors calls it.
    """

    def __init__(self, info: TensorInfo, role: str, x: "Array", run: "Map") -> None:
        self.name, self.role, self.shape, self.dtype = info.name, role, info.shape, info.dtype
        self._x, self._run = x, run

    @cached_property
    def moments(self) -> "Moments":
        """Count, mean and standard deviation (`.std`, divided by n) of all its elements."""
        from wsurgery.operations.statistics import moments

        return moments(self._x, self._run)

    def settle(self) -> None:
        """From now on it is asked by the threads that its `map` would wait for."""
        self._run = map
