"""Pruning: the least weights become zero (Han et al. 2015, Frankle and Carbin 2019), random ones, or those that are in another.

Weights are ordered by a key: the bits of their magnitude, or random bits. Those below a bound go, and of those equal to it as
many as are missing, by tensor name and position.
"""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.spool import spooled
from wsurgery.cores import cores
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.average import require_same
from wsurgery.operations.counterparts import seen_as, under_names_of
from wsurgery.operations.layers import layer_weights
from wsurgery.operations.random_streams import RandomStream, chunk_slice, chunks, for_each_chunk
from wsurgery.operations.ranks import magnitude_keys, of_ranks
from wsurgery.operations.scaled import require_unscaled
from wsurgery.operations.tensor_edit import Result, TensorEdit

_ALL = sys.maxsize
Key = Callable[[Array, int], Array]  # the elements of a chunk, and its number → their keys


def prune_edits(
    checkpoint: Checkpoint,
    sparsity: float,
    *,
    together: bool,
    by_magnitude: bool,
    selection: Selection,
    random: RandomStream,
) -> Result:
    """Set a share of the selected weights of convolutions and linear layers, but the head's, to zero.

    Args:
        checkpoint: open. A stream is copied to a file first if tensors are pruned together.
        sparsity: the share of zeros in the result, 0 to 1, rounded to a whole number of weights; those that are zero already
            count.
        together: whether it is that of all these weights, or of each tensor.
        by_magnitude: whether the least go, or random ones.
        selection: of the checkpoint's tensors.
        random: the draws of this edit.

    Raises:
        UsageError: the part has no such weight.
    """
    chosen = sorted(layer_weights(checkpoint, selection, head=False))
    require_unscaled(checkpoint, chosen)
    tensors = checkpoint.tensors
    wide = {name: tensors[name].dtype == "F64" or not by_magnitude for name in chosen}
    if together:
        checkpoint, wide = spooled(checkpoint), dict.fromkeys(chosen, any(wide.values()))
    keys: dict[str, Key] = {
        name: partial(_magnitude_key, wide=wide[name]) if by_magnitude else partial(_random_key, random=random.of(name))
        for name in chosen
    }

    def each(x: Array, run: Map, *, name: str) -> Array:
        count = round(sparsity * x.size)
        return pruned(x, keys[name], *_bound(count, partial(_visit, x, keys[name], run), bits=32 << wide[name]))

    if together:
        count = round(sparsity * sum(tensors[name].elements for name in chosen))
        bound, ties = _of_all(checkpoint, keys, count, bits=32 << any(wide.values()))

    def all_alike(x: Array, run: Map, *, name: str) -> Array:
        return pruned(x, keys[name], bound, ties[name])

    operation = all_alike if together else each
    edits = [
        TensorEdit(tensor, checkpoint, tensor, partial(operation, name=name) if name in keys else None)
        for name, tensor in tensors.items()
    ]
    return Result(edits, recorded={"seed": None} if by_magnitude else {})


def zeros_of(checkpoint: Checkpoint, other: Checkpoint, *, selection: Selection) -> Result:
    """Set the same weights to zero that are zero in another checkpoint, whose names may have a wrapper's prefix.

    Args:
        checkpoint: open.
        other: open, seekable.
        selection: of the checkpoint's tensors.

    Raises:
        UsageError: the part has no weight of a convolution or linear layer, or below the head none.
        WsurgeryError: the other has not all of them, in the same shapes and as numbers.
    """
    chosen = layer_weights(checkpoint, selection, head=False)
    tensors = checkpoint.tensors
    other = seen_as(other, under_names_of(tensors, chosen, other))
    chosen = require_same(checkpoint, other, chosen)

    def with_zeros(x: Array, run: Map, *, name: str) -> Array:
        like = other.read_array(name)
        result = x.copy()
        with np.errstate(invalid="ignore"):  # a signalling NaN
            result[like == 0] = 0
        return result

    edits = [
        TensorEdit(tensor, checkpoint, tensor, partial(with_zeros, name=name) if name in chosen else None)
        for name, tensor in tensors.items()
    ]
    return Result(edits, recorded={"seed": None, "scope": None, "by": None})


def pruned(x: Array, key: Key, bound: int, ties: int) -> Array:
    """Return a tensor with zeros for the elements whose keys are below a bound, and for the first `ties` of those equal to it."""
    result = x.copy()
    flat = result.reshape(-1)
    for chunk in chunks(flat.size):
        part = flat[chunk_slice(chunk)]
        keys = key(part, chunk)
        part[keys < bound] = 0
        equal = np.flatnonzero(keys == bound)[:ties]
        part[equal] = 0
        ties -= len(equal)
    return result


def _magnitude_key(x: Array, chunk: int, *, wide: bool) -> Array:
    return magnitude_keys(x, wide=wide)


def _random_key(x: Array, chunk: int, *, random: RandomStream) -> Array:
    """Return iid uniform numbers, uint64, and 0 where x is 0."""
    drawn: Array = random.generator(chunk).integers(1, 1 << 64, x.size, np.uint64)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        drawn[x == 0] = 0
    return drawn


def _visit(x: Array, key: Key, run: Map, look: Callable[[Array], None]) -> None:
    flat = x.reshape(-1)
    for_each_chunk(run, lambda chunk: look(key(flat[chunk_slice(chunk)], chunk)), flat.size)


def _bound(count: int, visit: Callable[[Callable[[Array], None]], None], *, bits: int) -> tuple[int, int]:
    """Return the bound below which keys are among the `count` least, and how many of those equal to it are."""
    if not count:
        return 0, 0
    ((bound, before, alike),) = of_ranks([count - 1], visit, bits=bits)
    return bound, _ALL if before + 1 == alike else before + 1


def _count(visit: Callable[[Callable[[Array], None]], None], key: int) -> int:
    found: list[int] = []
    visit(lambda keys: found.append(int(np.count_nonzero(keys == key))))
    return sum(found)


def _of_all(checkpoint: Checkpoint, keys: dict[str, Key], count: int, *, bits: int) -> tuple[int, dict[str, int]]:
    """Return the bound of all tensors together, and of each how many of the keys equal to it go, by the order of names."""
    with ThreadPoolExecutor(cores()) as pool:

        def visit(look: Callable[[Array], None], names: Iterable[str] = keys) -> None:
            for name in names:
                _visit(checkpoint.read_array(name), keys[name], pool.map, look)

        bound, left = _bound(count, visit, bits=bits)
        ties = dict.fromkeys(keys, left)
        if left == _ALL:
            return bound, ties
        for name in keys:
            ties[name] = left
            if left:
                left -= min(left, _count(partial(visit, names=[name]), bound))
    return bound, ties
