"""Permutations of hidden units: drawn, and applied to tensors."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from wsurgery.anatomy.architecture import Architecture
from wsurgery.anatomy.families import find_symmetry
from wsurgery.anatomy.symmetries import Group, Symmetry
from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.dtypes import BITS
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import WsurgeryError, printable
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.random_streams import CHUNK, RandomStream
from wsurgery.operations.scaled import require_unscaled
from wsurgery.operations.tensor_edit import Result, TensorEdit, copy

Permutations = Mapping[str, Array]  # space → (units,): which unit comes to each place
Orders = Sequence[Array | None]  # of the first axes: (length,) each, or None where one stays as it is


def permute(checkpoint: Checkpoint, random: RandomStream) -> Result:
    """Permute the hidden units of a network at random, each group of them by a stream of its own.

    Raises:
        WsurgeryError: its units are not known, or two of its tensors are one.
    """
    symmetry = symmetry_of(checkpoint, History.of(checkpoint).architecture)
    permutations: dict[str, Array] = {}
    for group in symmetry.groups:
        permutations |= _drawn(group, random.of(group.name).generator())
    edits = []
    for name, tensor in checkpoint.tensors.items():
        axes = symmetry.axes.get(name)
        compute = axes and partial(reordered, orders=[order(axis, permutations) for axis in axes])
        edits.append(TensorEdit(tensor, checkpoint, tensor, compute) if compute else copy(tensor, checkpoint))
    return Result(edits, says=symmetry.notes)


def symmetry_of(checkpoint: Checkpoint, architecture: Architecture | None) -> Symmetry:
    """Say which units of a checkpoint can change places.

    Raises:
        WsurgeryError: that is not known, two of its tensors are one, or one is scaled or has elements smaller than a byte.
    """
    for alias, name in History.of(checkpoint).aliases(checkpoint.tensors).items():
        raise WsurgeryError(
            f"{checkpoint.label}: {printable(alias)} is tied to {printable(name)}: which units may then be permuted is not known"
        )
    require_unscaled(checkpoint, checkpoint.tensors)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    symmetry = find_symmetry(shapes, architecture, checkpoint.label)
    for name in symmetry.axes:
        if BITS[dtype := checkpoint.tensors[name].dtype] % 8:
            raise WsurgeryError(
                f"{checkpoint.label}: {printable(name)} is {dtype}, whose elements are smaller than a byte: do this before they "
                "are packed"
            )
    return symmetry


def order(axis: tuple[tuple[str, int], ...], permutations: Permutations) -> Array | None:
    """Return the order of a whole axis, (length,); None if it stays as it is.

    Args:
        axis: the spaces along it, end to end, with their lengths.
        permutations: of those spaces that change.
    """
    if not any(space in permutations for space, _ in axis):
        return None
    parts, start = [], 0
    for space, length in axis:
        parts.append(start + (permutations[space] if space in permutations else np.arange(length)))
        start += length
    return np.concatenate(parts)


def reordered(x: Array, run: Map, *, orders: Orders) -> Array:
    """Put the first axes of an array in other orders.

    Args:
        x: any dtype, at least as many axes as `orders`.
        run: `map` over pieces.
        orders: of each axis.
    """
    result, parts = np.empty_like(x), pieces(x, 0)

    def fill(i: int) -> None:
        result[parts[i]] = picked(x, orders, 0, parts[i])

    for _ in run(fill, range(len(parts))):
        pass
    return result


def pieces(x: Array, axis: int, elements: int = CHUNK) -> list[slice]:
    """Cut an axis of an array so that the pieces have about so many elements."""
    length = max(1, elements * x.shape[axis] // max(1, x.size))
    return [slice(start, start + length) for start in range(0, x.shape[axis], length)]


def picked(x: Array, orders: Orders, axis: int, places: slice) -> Array:
    """Return what lies at some places of an axis when the first axes of an array are put in other orders."""
    index = orders[axis]
    x = x[(slice(None),) * axis + (places,)] if index is None else x.take(index[places], axis)
    for other, own in enumerate(orders):
        if own is not None and other != axis:
            x = x.take(own, other)
    return x


def _drawn(group: Group, generator: np.random.Generator) -> dict[str, Array]:
    blocks = generator.permutation(group.blocks)[:, None]
    drawn = {}
    for space, units in group.spaces.items():
        inside = np.tile(np.arange(units // group.blocks), (group.blocks, 1))
        if space not in group.rigid:
            inside = generator.permuted(inside, axis=1)
        drawn[space] = (blocks * inside.shape[1] + inside).reshape(-1)
    return drawn
