"""Weight matching: the permutation of hidden units that brings one network closest to another (Ainsworth, Hayase and
Srinivasa 2023, Git Re-Basin: Merging Models modulo Permutation Symmetries, ICLR, section 3.2).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from wsurgery.anatomy.symmetries import Group, Symmetry
from wsurgery.buffers import BATCH_NORM_STATISTICS
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import BITS, is_float
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.spool import spooled
from wsurgery.errors import WsurgeryError, printable
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.counterparts import seen_as, under_names_of
from wsurgery.operations.equal_units import equal_units
from wsurgery.operations.planning import Made
from wsurgery.operations.reordering import Orders, Permutations, order, picked, pieces, reordered, symmetry_of
from wsurgery.operations.scaled import require_unscaled
from wsurgery.operations.tensor_edit import Result, TensorEdit, copy

Assign = Callable[..., tuple[Array, Array]]  # scipy.optimize.linear_sum_assignment

_MOST_ROUNDS = 100
_PIECE = 1 << 21  # elements that are multiplied at a time
_LEAST = 1e-9  # of the squared distance: what less is gained may be rounding


def align(a: Checkpoint, b: Checkpoint, *, assign: Assign) -> Result:
    """Permute the hidden units of `a` so that it comes as close to `b` as coordinate descent gets; nothing is read before it
    is written.

    Args:
        a: the network that is permuted; a stream is copied to a file first.
        b: a network of the same architecture, read at any place.
        assign: `scipy.optimize.linear_sum_assignment`.

    Raises:
        WsurgeryError: the units of `a` are not known, or `b` has not the tensors of `a`.
    """
    b = seen_as(b, under_names_of(a.tensors, a.tensors, b))
    symmetry = symmetry_of(a, History.of(a).architecture or History.of(b).architecture)
    require_unscaled(b, symmetry.axes)
    for name in symmetry.axes:
        mine, theirs = a.tensors[name], b.tensors.get(name)
        if (
            theirs is None
            or mine.shape != theirs.shape
            or is_float(mine.dtype) != is_float(theirs.dtype)
            or BITS[theirs.dtype] < 8
        ):
            there = f"{theirs.dtype} {theirs.shape}" if theirs else "not"
            raise WsurgeryError(
                f"{printable(name)} is {mine.dtype} {mine.shape} in {a.label} and {there} in {b.label}: the two must be of one "
                "architecture; wsurgery new-head and rename make heads and names agree"
            )
    a = spooled(a)
    matching = Matching(a, b, symmetry, assign)

    def read(tensor: TensorInfo) -> Any:
        _ = (
            matching.permutations
        )  # found by whoever reads, who is alone: a file has one position, and edits are many threads
        return a.read(a.tensors[tensor.name])

    source = Made(a.label, a.tensors.values(), read)
    edits = [
        TensorEdit(tensor, source, source.tensors[name], partial(matching.edited, tensor=tensor))
        if name in symmetry.axes
        else copy(tensor, a)
        for name, tensor in a.tensors.items()
    ]
    return Result(edits, says=symmetry.notes)


@dataclass(frozen=True)
class Matching:
    """Two networks, of which the first is permuted.

    Attributes:
        a: the network that is permuted; read at any place.
        b: the one that it comes close to, under the same names.
        symmetry: the units of `a` that can change places.
        assign: solves the linear assignment problem.
    """

    a: Checkpoint
    b: Checkpoint
    symmetry: Symmetry
    assign: Assign

    @cached_property
    def permutations(self) -> Permutations:
        """Return the best permutations found, by coordinate descent over the groups of units.

        Both networks are read some ten times; in memory are a tensor of each, and three times (units, units) float64 of a group.
        Distances are of parameters: the running statistics of batch norm go along, and do not count. Where the one network is a
        permutation of the other, bit for bit, it is found as such.

        Raises:
            WsurgeryError: a parameter is not finite.
        """
        if not self._distance(self._parameters, {}):
            return {}
        same = equal_units(self.a, self.b, self.symmetry)
        return same if same and not self._distance(self._parameters, same) else self._descent()

    def edited(self, x: Array, run: Map, *, tensor: TensorInfo) -> Array:
        """Permute one tensor of `a`."""
        axes = self.symmetry.axes[tensor.name]
        return reordered(x, run, orders=[order(axis, self.permutations) for axis in axes])

    def _distance(self, names: Iterable[str], permutations: Permutations) -> float:
        """Return the squared distance of the permuted `a` from `b` over some tensors."""
        total = 0.0
        for name in names:
            x, y = self.a.read_array(name), self.b.read_array(name)
            orders = [order(axis, permutations) for axis in self.symmetry.axes[name]]
            for rows in pieces(x, 0):
                part = picked(x, orders, 0, rows).astype(np.float64) - y[rows].astype(np.float64)
                total += float(np.square(part, out=part).sum())
            if not math.isfinite(total):
                raise WsurgeryError(
                    f"{printable(name)} of {self.a.label} or {self.b.label} holds NaN or infinity, so the two have no distance: "
                    "wsurgery show --stats says where"
                )
        return total

    @cached_property
    def _parameters(self) -> list[str]:
        return [
            name
            for name in self.symmetry.axes
            if is_float(self.a.tensors[name].dtype) and name.rpartition(".")[2] not in BATCH_NORM_STATISTICS
        ]

    def _descent(self) -> Permutations:
        groups = self.symmetry.groups
        members = [
            [
                (name, axis)
                for name in self._parameters
                for axis, along in enumerate(self.symmetry.axes[name])
                if any(space in group.spaces for space, _ in along)
            ]
            for group in groups
        ]
        tensors = [dict.fromkeys(name for name, _ in own) for own in members]
        current = {space: np.arange(units) for group in groups for space, units in group.spaces.items()}
        waiting = set(range(len(groups)))
        for _ in range(_MOST_ROUNDS):
            for i, group in enumerate(groups):
                if i not in waiting:
                    continue
                waiting.remove(i)
                best = current | self._assigned(group, self._gains(group, members[i], current))
                if all((best[space] == current[space]).all() for space in group.spaces):
                    continue
                before, after = (self._distance(tensors[i], each) for each in (current, best))
                if after < before * (1 - _LEAST):
                    current = best
                    twice = len(members[i]) > len(tensors[i])  # a tensor has two axes of the group: one moves the other
                    waiting |= {j for j, own in enumerate(tensors) if own.keys() & tensors[i] and (j != i or twice)}
            if not waiting:
                break
        return current

    def _gains(self, group: Group, members: Sequence[tuple[str, int]], current: Permutations) -> dict[str, Array]:
        """Return for each space of a group the products of all units of `b` with all of `a`, (units, units) float64."""
        gains = {space: np.zeros((units, units)) for space, units in group.spaces.items()}
        for name, axis in members:
            x, y = self.a.read_array(name), self.b.read_array(name)
            along = self.symmetry.axes[name]
            orders = [None if i == axis else order(each, current) for i, each in enumerate(along)]
            orders += [None] * (x.ndim - len(orders))
            unchanged: Orders = [None] * x.ndim
            # In pieces of another axis; a vector is a piece.
            across = max(range(x.ndim), key=lambda i: (i != axis, x.shape[i]))
            for places in [slice(None)] if across == axis else pieces(x, across, _PIECE):
                mine, theirs = (
                    _as_rows(picked(each, own, across, places), axis) for each, own in ((x, orders), (y, unchanged))
                )
                start = 0
                for space, length in along[axis]:
                    if space in gains:
                        gains[space] += exact_products(theirs[start : start + length], mine[start : start + length])
                    start += length
        return gains

    def _assigned(self, group: Group, gains: Mapping[str, Array]) -> dict[str, Array]:
        """Return the order of a group's units in each space for which the products sum to the most."""
        n = group.blocks
        totals = np.zeros((n, n))
        inside: dict[str, Array] = {}
        for space, own in gains.items():
            size = len(own) // n
            squares = own.reshape(n, size, n, size).swapaxes(1, 2)  # (blocks, blocks, units, units)
            inside[space] = columns = np.tile(np.arange(size), (n, n, 1))
            if space not in group.rigid:
                for i, j in np.ndindex(n, n):
                    columns[i, j] = self.assign(squares[i, j], maximize=True)[1]
            totals += np.take_along_axis(squares, columns[..., None], 3).sum((2, 3))
        rows, blocks = self.assign(totals, maximize=True)
        return {
            space: (blocks[:, None] * columns.shape[2] + columns[rows, blocks]).reshape(-1)
            for space, columns in inside.items()
        }


def exact_products(x: Array, y: Array) -> Array:
    """Multiply each row of one array with each of another, so that no order of summation changes a bit of the result.

    Each row is rounded to whole multiples of a power of two, few enough for sums of their products to be exact in float64.

    Args:
        x: (n, k) float64, finite.
        y: (m, k) float64, finite.

    Returns:
        (n, m) float64.
    """
    bits = (53 - max(x.shape[1] - 1, 0).bit_length()) // 2
    (x, scale), (y, other) = (_as_whole_numbers(each, bits) for each in (x, y))
    products: Array = x @ y.T
    products *= scale[:, None]
    products *= other
    return products


def _as_whole_numbers(x: Array, bits: int) -> tuple[Array, Array]:
    """Round each row to whole numbers of at most 2^bits; return them, and by what each row is to be multiplied."""
    exponents = np.frexp(abs(x).max(1, initial=0))[1]
    scale = np.ldexp(1.0, exponents.clip(-900) - bits)  # no scale is to underflow
    return np.rint(x / scale[:, None]), scale


def _as_rows(x: Array, axis: int) -> Array:
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64)
