"""What happens to a tensor, and to batch norm, when a network is drawn anew from itself."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from wsurgery.checkpoint import TensorInfo
from wsurgery.checkpoint.dtypes import is_float
from wsurgery.operations.arrays import Array, Compute, Map
from wsurgery.operations.batch_norm import batch_norm_identity
from wsurgery.operations.meanvar import meanvar
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.sample import sample
from wsurgery.operations.shuffle import shuffle


class Resampling(Protocol):
    """An operation that draws a tensor anew from itself."""

    def __call__(self, x: Array, *, random: RandomStream, run: Map) -> Array: ...  # noqa: D102


RESAMPLINGS: Mapping[str, Resampling] = {"meanvar": meanvar, "shuffle": shuffle, "sample": sample}


def resampling(
    tensor: TensorInfo, role: str, operation: Callable[..., Array], batch_norm: str, random: RandomStream
) -> Compute | None:
    """Return what resampling does to one tensor, None where it is copied.

    Batch norm goes to the identity, or is resampled by mean and variance, or kept. Integers and tensors of one element
    have no spread and are copied.

    Args:
        tensor: the tensor.
        role: as `anatomy.role_map` gives it.
        operation: what draws it anew; called with the array and `run`.
        batch_norm: `identity`, `meanvar` or `keep`.
        random: the draws for batch norm.
    """
    part = tensor.name.rpartition(".")[2]
    if role == "batch_norm" and batch_norm == "identity":
        return constant(partial(batch_norm_identity, part=part))
    if not is_float(tensor.dtype) or tensor.elements < 2 or (role == "batch_norm" and batch_norm == "keep"):
        return None
    if role == "batch_norm":
        return lambda x, run: meanvar(x, random=random, run=run, positive=part == "running_var")
    return lambda x, run: operation(x, run=run)


def constant(operation: Callable[[Array], Array]) -> Compute:
    """Give an operation that needs no chunks the signature of those that do."""
    return lambda x, run: operation(x)
