"""Pruning: weights become zero, those of the least magnitude (Han et al. 2015, Frankle and Carbin 2019) or random ones.

Weights are ordered by a key, an unsigned integer: the bits of |w|, which are in the order of the numbers, or random bits. The
key that bounds those to go is found digit by digit from counts (a radix select), so that of a whole checkpoint only a chunk
is in memory; of equal keys those go that come first by tensor name and position.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.spool import spooled
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.layers import layer_weights
from wsurgery.operations.random_streams import RandomStream, chunk_slice, chunks
from wsurgery.operations.scaled import require_unscaled
from wsurgery.operations.tensor_edit import Result, TensorEdit

Key = Callable[[Array, int], Array]  # the elements of a chunk, and its number → their keys
_DIGIT = 16  # bits
_VALUES = 1 << _DIGIT


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
    keys = {
        name: partial(magnitude_key, wide=wide[name]) if by_magnitude else partial(random_key, random=random.of(name))
        for name in chosen
    }

    def each(x: Array, run: Map, *, name: str) -> Array:
        flat = x.reshape(-1)
        bound, ties = least([(name, lambda: flat, keys[name])], round(sparsity * x.size), bits=32 << wide[name])
        return pruned(x, keys[name], bound, ties.get(name, 0))

    if together:
        total = sum(tensors[name].elements for name in chosen)
        found = [(name, partial(checkpoint.read_array, name), keys[name]) for name in chosen]
        bound, ties = least(found, round(sparsity * total), bits=32 << any(wide.values()))

    def all_alike(x: Array, run: Map, *, name: str) -> Array:
        return pruned(x, keys[name], bound, ties.get(name, 0))

    operation = all_alike if together else each
    edits = [
        TensorEdit(tensor, checkpoint, tensor, partial(operation, name=name) if name in keys else None)
        for name, tensor in tensors.items()
    ]
    return Result(edits, recorded={"seed": None} if by_magnitude else {})


def magnitude_key(x: Array, chunk: int, *, wide: bool) -> Array:
    """Return the bits of |x|, uint32, or uint64 where `wide`, which float64 needs: in the order of the magnitudes, NaN last."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        magnitudes: Array = np.abs(x.astype(np.float64 if wide else np.float32))
    return magnitudes.view(np.uint64 if wide else np.uint32)


def random_key(x: Array, chunk: int, *, random: RandomStream) -> Array:
    """Return iid uniform numbers, uint64, and 0 where x is 0."""
    drawn: Array = random.generator(chunk).integers(1, 1 << 64, x.size, np.uint64)
    drawn[x == 0] = 0
    return drawn


def least(
    tensors: Iterable[tuple[str, Callable[[], Array], Key]], count: int, *, bits: int
) -> tuple[int, Mapping[str, int]]:
    """Find the `count` least keys of all elements of some tensors.

    Args:
        tensors: name, what reads the tensor, and what gives its keys; in the order in which equal keys count. Each is read
            once for every 16 bits.
        count: how many, at most as many as there are elements.
        bits: of a key.

    Returns:
        A bound: the keys below it are among them. And name → how many of the tensor's first keys equal to the bound are, too.
    """
    bound, left, ties = 0, count, dict[str, int]()
    if not count:
        return bound, ties
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = np.zeros(_VALUES, np.int64)
        own: list[tuple[str, Array, Array]] = []
        for name, read, key in tensors:
            x = read().reshape(-1)
            inside = np.zeros(_VALUES, np.int64)
            for chunk in chunks(x.size):
                digits = key(x[chunk_slice(chunk)], chunk) >> shift
                if shift < bits - _DIGIT:
                    digits = digits[digits >> _DIGIT == bound]
                inside += np.bincount((digits & (_VALUES - 1)).astype(np.intp), minlength=_VALUES)
            counts += inside
            if not shift:
                there = np.flatnonzero(inside)
                own.append((name, there, inside[there]))
        ends = counts.cumsum()
        digit = int(np.searchsorted(ends, left))
        left -= int(ends[digit] - counts[digit])
        bound = bound << _DIGIT | digit
    for name, there, some in own:
        ties[name] = min(left, int(some[there == digit].sum()))
        left -= ties[name]
    return bound, ties


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
