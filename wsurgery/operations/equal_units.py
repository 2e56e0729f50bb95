"""Which units of two networks are the same, where one is a permutation of the other, bit for bit.

Colour refinement (Weisfeiler and Leman 1968): a unit's colour is a hash of its weights, each with the colours of the units
that it connects; where units differ, so do their colours after a few rounds, however small the weights by which they do.
"""

from typing import Any

import numpy as np

from wsurgery.anatomy.symmetries import Group, Symmetry
from wsurgery.checkpoint import Checkpoint
from wsurgery.operations.arrays import Array
from wsurgery.operations.reordering import Permutations, pieces

_Colours = dict[str, Array]  # space → (units,) uint64


def equal_units(a: Checkpoint, b: Checkpoint, symmetry: Symmetry) -> Permutations | None:
    """Return the permutations that make `b` of `a`, found by their bits; None if there are none.

    Units that cannot be told apart are taken in their order, and where that matters the result is a near miss.

    Args:
        a: the network that is permuted; read at any place.
        b: the same network in another order, under the same names.
        symmetry: the units that can change places.
    """
    mine, theirs = ({s: np.zeros(n, np.uint64) for g in symmetry.groups for s, n in g.spaces.items()} for _ in "ab")
    known = 0
    while True:
        mine, theirs = _refined(a, symmetry, mine), _refined(b, symmetry, theirs)
        if any((np.sort(mine[space]) != np.sort(theirs[space])).any() for space in mine):
            return None
        told_apart = sum(len(np.unique(colours)) for colours in mine.values())
        if told_apart == known:
            break
        known = told_apart
    found: dict[str, Array] = {}
    for group in symmetry.groups:
        blocks = _same(_of_blocks(group, mine), _of_blocks(group, theirs))
        for space in group.spaces:
            own, other = (colours[space].reshape(group.blocks, -1) for colours in (mine, theirs))
            inside = _same(own[blocks], other)
            found[space] = (blocks[:, None] * inside.shape[1] + inside).reshape(-1)
    return found


def _same(a: Array, b: Array) -> Array:
    """Say for each colour of `b` where it stands in `a`, along the last axis: the first is the first, if there are several."""
    found = np.empty(a.shape, np.int64)
    np.put_along_axis(found, np.argsort(b, -1, kind="stable"), np.argsort(a, -1, kind="stable"), -1)
    return found


def _refined(checkpoint: Checkpoint, symmetry: Symmetry, colours: _Colours) -> _Colours:
    """Tell units apart by their weights, and by the colours of the units that these connect."""
    refined = {space: _mixed(own) for space, own in colours.items()}
    for number, (name, axes) in enumerate(symmetry.axes.items()):
        x = checkpoint.read_array(name)
        bits = x.view(f"u{x.dtype.itemsize}")
        codes = [_along(axis, colours) for axis in axes]
        codes += [_mixed(np.arange(length)) for length in x.shape[len(axes) :]]
        codes = [_mixed(code + np.uint64(axis)) for axis, code in enumerate(codes)]
        sums = [np.zeros(length, np.uint64) for length in x.shape[: len(axes)]]
        for rows in pieces(x, 0):
            hashes = bits[rows].astype(np.uint64)
            for axis, code in enumerate(codes):
                hashes += (code if axis else code[rows]).reshape(-1, *(1,) * (x.ndim - 1 - axis))
            hashes = _mixed(hashes)
            for axis, total in enumerate(sums):
                part = hashes.sum(tuple(i for i in range(x.ndim) if i != axis), dtype=np.uint64)
                total[rows if axis == 0 else slice(None)] += part
        for axis, along in enumerate(axes):
            start = 0
            for space, length in along:
                if space in refined:
                    place = _mixed((number * 8 + axis) << 32 | start)
                    refined[space] += _mixed(sums[axis][start : start + length] + place)
                start += length
    for group in symmetry.groups:
        if group.blocks > 1:
            of_blocks = _of_blocks(group, refined)
            for space, units in group.spaces.items():
                size = units // group.blocks
                refined[space] = _mixed(refined[space] + np.repeat(of_blocks, size))
                if space in group.rigid:
                    refined[space] = _mixed(refined[space] + np.tile(np.arange(size, dtype=np.uint64), group.blocks))
    return refined


def _along(axis: tuple[tuple[str, int], ...], colours: _Colours) -> Array:
    parts, start = [], 0
    for space, length in axis:
        own = colours.get(space, np.arange(length, dtype=np.uint64))
        parts.append(_mixed(own + _mixed(start)))
        start += length
    return np.concatenate(parts)


def _of_blocks(group: Group, colours: _Colours) -> Array:
    """Return a colour of each block from those of its units, (blocks,)."""
    total = np.zeros(group.blocks, np.uint64)
    for number, space in enumerate(group.spaces):
        own = _mixed(colours[space].reshape(group.blocks, -1) + np.uint64(number))
        total += own.sum(1, dtype=np.uint64)
    return total


def _mixed(x: Any) -> Array:
    """Mix the bits of each number (Steele, Lea and Flood 2014, the finaliser of SplitMix64)."""
    x = np.atleast_1d(np.asarray(x, np.uint64))  # a scalar would warn of its overflow
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: Array = x ^ (x >> np.uint64(31))
    return result
