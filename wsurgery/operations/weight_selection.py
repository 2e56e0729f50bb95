"""Weights of a smaller network from a larger one of its family (Xu et al. 2024, "Initializing Models with Larger Ones").

As in the authors' code (github.com/OscarXZQ/weight-selection): a tensor comes from that of the same name, so that of each
stage the first layers are taken, evenly spaced along each dimension; the head is left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from wsurgery.anatomy import HEAD, Selection
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import is_float, numpy_dtype
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import WsurgeryError, printable
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.counterparts import under_names_of
from wsurgery.operations.overflows import Overflows
from wsurgery.operations.tensor_edit import Result, TensorEdit


def select_weights(fresh: Result, larger: Checkpoint) -> Result:
    """Take the tensors of a fresh network from a larger one where it has their names, but for the head.

    Args:
        fresh: the network as it is drawn.
        larger: open, read at any place.

    Raises:
        WsurgeryError: none of its tensors has a counterpart, or one is not as large.
    """
    tensors = {edit.tensor.name: edit.tensor for edit in fresh.tensors}
    own = (fresh.history or History()).blocks
    blocks = Selection(block_map=own if own and HEAD in own else None).place(tensors)
    wanted = [name for name in tensors if blocks[name] != HEAD]
    found = under_names_of(tensors, wanted, larger)
    chosen = {name: found[name] for name in wanted if name in found}
    if not chosen:
        raise WsurgeryError(
            f"{larger.label} has no tensor of this network's names, such as {printable(next(iter(wanted), 'none'))}: --from "
            "takes a larger network of the same family"
        )
    _require_larger(tensors, chosen, larger)
    overflows = Overflows()
    edits = [
        TensorEdit(
            edit.tensor, larger, chosen[edit.tensor.name], partial(_selected, tensor=edit.tensor, overflows=overflows)
        )
        if edit.tensor.name in chosen
        else edit
        for edit in fresh.tensors
    ]
    missing = [name for name in wanted if name not in chosen]
    says = [f"{len(chosen)} of {len(tensors)} tensors are selected from {larger.label}, the others drawn"]
    if missing:
        says.append(
            f"{printable(missing[0])} (and {len(missing) - 1} more below the head) is not in {larger.label}: drawn"
        )
    return replace(fresh, tensors=edits, says=[*fresh.says, *says], warns=overflows.warnings)


def evenly_spaced(size: int, count: int) -> Array:
    """Return `count` indices into `size` elements: every k-th from 0 where it divides, else from the first to the last."""
    if size % count == 0:
        return np.arange(count) * (size // count)
    return np.rint(np.arange(count) * (size - 1) / max(count - 1, 1)).astype(np.intp)


def _selected(x: Array, run: Map, *, tensor: TensorInfo, overflows: Overflows) -> Array:
    picked = x[np.ix_(*map(evenly_spaced, x.shape, tensor.shape))] if x.ndim else x
    dtype = numpy_dtype(tensor.dtype)
    if not is_float(tensor.dtype):
        return picked.astype(dtype)
    return overflows.cast(tensor.name, np.ascontiguousarray(picked), dtype=dtype, run=run)


def _require_larger(tensors: Mapping[str, TensorInfo], chosen: Mapping[str, TensorInfo], larger: Checkpoint) -> None:
    for name, origin in chosen.items():
        tensor = tensors[name]
        said = f"{printable(name)} is {tensor.shape} here and {origin.shape} in {larger.label}"
        fits = len(tensor.shape) == len(origin.shape) and all(map(int.__le__, tensor.shape, origin.shape))
        if not fits:
            raise WsurgeryError(f"{said}: --from takes a larger network of the same family")
        if 0 in tensor.shape or is_float(tensor.dtype) != is_float(origin.dtype):
            raise WsurgeryError(f"{said}, {origin.dtype}: nothing can be selected from it")
        try:
            numpy_dtype(origin.dtype)
        except TypeError as error:  # elements smaller than a byte
            raise WsurgeryError(f"{larger.label}: {printable(name)}: {error}") from None
