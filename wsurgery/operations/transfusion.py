"""Pretrained weights in one part of a network; in the rest another network's, or fresh ones."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from wsurgery.anatomy import Selection, role_map
from wsurgery.anatomy.roles import Described
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import BITS, is_float, numpy_dtype
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array, Compute, Map
from wsurgery.operations.counterparts import COUNTER, under_names_of, untied
from wsurgery.operations.overflows import Overflows
from wsurgery.operations.random_init import random_init
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.resampling import RESAMPLINGS, constant, resampling
from wsurgery.operations.tensor_edit import Result, TensorEdit, copy


def transfuse_into(source: Checkpoint, into: Checkpoint, *, selection: Selection) -> Result:
    """Take the selected tensors from `source`, all others from `into`, in the order of `into`.

    Shapes outside the selection may differ. A dtype that differs is converted to `into`'s. Where no selected name is in
    `source`, a wrapper's prefix that only one side has is looked through.

    Args:
        source: a file, or a stream with the names of `into` in the same order.
        into: the checkpoint that receives.
        selection: of the tensors of both, under the names of `into`.

    Raises:
        WsurgeryError: the selected part of the two differs in names or shapes; the message shows the first tensor.
    """
    into, history, says = untied(into, [source])
    chosen = selection.names(into.tensors, beside=source.tensors)
    counterparts = under_names_of(into.tensors, chosen, source)
    _require_counterparts(counterparts, selection, chosen, source, into)
    edits, overflows = [], Overflows()
    for tensor in into.tensors.values():
        origin = counterparts.get(tensor.name)
        if tensor.name not in chosen or origin is None:
            edits.append(copy(tensor, into))
            continue
        compute = None if origin.dtype == tensor.dtype else _conversion(origin, tensor, overflows)
        edits.append(TensorEdit(tensor, source, origin, compute))
    taken = {origin.name for name, origin in counterparts.items() if name in chosen}
    return Result(edits, history, says=[*says, *_other_blocks(source, selection, taken)], warns=overflows.warnings)


def _other_blocks(source: Checkpoint, selection: Selection, taken: set[str]) -> Iterator[str]:
    """Say so where the source's own block map means other tensors by the selected blocks."""
    own = History.of(source).blocks
    if own is None or not (selection.upto or selection.blocks):
        return
    try:
        meant = replace(selection, block_map=own).names(source.tensors)
    except UsageError:  # it has no block of that name
        meant = set()
    if meant != taken:
        yield f"{source.label} has other blocks of these names: those of --into count, {len(taken)} tensors for {len(meant)}"


def transfuse_rest(
    source: Checkpoint, *, selection: Selection, rest: str, batch_norm: str, random: RandomStream
) -> list[TensorEdit]:
    """Keep the selected tensors of `source`; the others become fresh random ones, or are resampled from themselves.

    Args:
        source: the pretrained checkpoint.
        selection: what is kept.
        rest: `random`, or an operation of `RESAMPLINGS`.
        batch_norm: what a resampling does to batch norm.
        random: the draws of this edit.

    Raises:
        WsurgeryError: `rest` is random, and one of the others is complex, a bare exponent or smaller than a byte.
    """
    chosen, roles = selection.names(source.tensors), role_map(source.tensors)
    edits = []
    for tensor in source.tensors.values():
        own = replace(random, operation=f"transfuse {rest}", tensor=tensor.name)
        role = roles[tensor.name]
        compute: Compute | None = None
        if tensor.name not in chosen and role != "buffer":
            if rest == "random":
                if tensor.dtype.startswith(("F", "C")) and (not is_float(tensor.dtype) or BITS[tensor.dtype] < 8):
                    raise WsurgeryError(
                        f"{printable(tensor.name)} is {tensor.dtype}, of which no fresh values can be drawn: "
                        "select it too, or take it from another network with --into"
                    )
                fan_in = _fan_in(tensor, source.tensors)
                compute = partial(_random, role=role, fan_in=fan_in, random=own)
                if role == "batch_norm" and _starts_at_zero(tensor.name, source.tensors):
                    compute = constant(np.zeros_like)
            else:
                compute = resampling(tensor, role, partial(RESAMPLINGS[rest], random=own), batch_norm, own)
        edits.append(TensorEdit(tensor, source, tensor, compute))
    return edits


def _random(x: Array, run: Map, *, role: str, fan_in: int, random: RandomStream) -> Array:
    return random_init(x, role=role, fan_in=fan_in, random=random, run=run)


def _conversion(origin: TensorInfo, tensor: TensorInfo, overflows: Overflows) -> Compute:
    dtype = tensor.dtype
    if not (is_float(origin.dtype) and is_float(dtype)) or min(BITS[origin.dtype], BITS[dtype]) < 8:
        raise WsurgeryError(
            f"{printable(origin.name)} is {origin.dtype} in the source and {dtype} in --into: add --except"
        )
    return lambda x, run: overflows.cast(tensor.name, x, dtype=numpy_dtype(dtype), run=run)


def _fan_in(tensor: TensorInfo, tensors: Mapping[str, Described]) -> int:
    module, _, part = tensor.name.rpartition(".")
    weight = tensor if "weight" in part else tensors.get(f"{module}.weight")
    bias = tensors.get(f"{module}.bias")
    if weight and bias and weight.shape[1:] == bias.shape != weight.shape[:1]:  # GPT-2's Conv1D: (in, out)
        return weight.shape[0]
    return math.prod(weight.shape[1:]) if weight else 0


def _starts_at_zero(name: str, tensors: Collection[str]) -> bool:
    """Whether it is the weight of a ResNet's last batch norm in a residual block (`zero_init_last` in timm)."""
    match = re.fullmatch(r"(.*layer\d+\.\d+\.bn)([23])\.weight", name)
    return match is not None and f"{match[1]}{int(match[2]) + 1}.weight" not in tensors


def _require_counterparts(
    counterparts: Mapping[str, TensorInfo], selection: Selection, into: set[str], source: Checkpoint, target: Checkpoint
) -> None:
    for name, tensor in target.tensors.items():
        other = counterparts.get(name)
        if name in into and other is not None and other.shape != tensor.shape:
            raise WsurgeryError(
                f"{printable(name)} is {other.shape} in {source.label} and {tensor.shape} in {target.label}: "
                f"choose a lower --upto, or add --except {printable(name)}"
            )
    for missing, here, there, names in (
        (into - counterparts.keys(), target, source, source.tensors),
        (selection.names(counterparts, beside=target.tensors) - set(target.tensors), source, target, target.tensors),
    ):
        lost = sorted(name for name in missing if not name.endswith(COUNTER))
        if lost:
            raise WsurgeryError(
                f"{printable(lost[0])} (and {len(lost) - 1} more of the selected part) is in {here.label} and not in "
                f"{there.label}, which has names like {printable(min(names), 60)}: if only the names differ, "
                "wsurgery rename makes them agree"
            )
