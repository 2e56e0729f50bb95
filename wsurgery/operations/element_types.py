"""Other element types for tensors, and the values of weights that are stored with a scale."""

from collections.abc import Sequence
from functools import partial

from wsurgery.anatomy import Selection
from wsurgery.anatomy.scales import MARKER, of_activations, scales
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.dtypes import is_float, numpy_dtype
from wsurgery.checkpoint.spool import spooled
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.cast import cast, overflow_count
from wsurgery.operations.overflows import Overflows
from wsurgery.operations.scaled import dequantise
from wsurgery.operations.tensor_edit import Result, Separable, TensorEdit, copy


def cast_edits(checkpoint: Checkpoint, dtype: str, *, selection: Selection) -> Result:
    """Convert the selected floating-point tensors to `dtype`, its safetensors name; copy those that have it already.

    A weight of 8 bits with a scale is multiplied by it, and the scale left out.

    Raises:
        WsurgeryError: a selected weight is scaled in a way that is not known.
    """
    overflows = Overflows()
    target = numpy_dtype(dtype)

    def convert(x: Array, run: Map, *, name: str) -> Array:
        return overflows.cast(name, x, dtype=target, run=run)

    def several(x: Array, tensors: Sequence[tuple[str, int]]) -> Array | None:
        result = cast(x, dtype=target)
        return None if overflow_count(x, result) else result

    chosen = selection.names(checkpoint.tensors)
    stored = scales(checkpoint.tensors)
    dequantised = {name for name in stored if name in chosen and checkpoint.tensors[name].dtype != dtype}
    checkpoint = spooled(checkpoint) if dequantised else checkpoint  # a scale may stand behind its weight
    computes = {name: dequantise(checkpoint, name, stored[name], target, overflows) for name in dequantised}
    gone = {each for name in dequantised for each in (*stored[name], *of_activations(name))}
    if dequantised == stored.keys() != set():
        gone.add(MARKER)
    chosen -= {each for name in stored for each in stored[name]}  # narrower, they would be another scale
    edits = []
    for tensor in checkpoint.tensors.values():
        converted = TensorInfo(tensor.name, dtype, tensor.shape, 0, 0).placed(0)
        if tensor.name in gone:
            continue
        if tensor.name in dequantised:
            edits.append(TensorEdit(converted, checkpoint, tensor, computes[tensor.name]))
        elif tensor.name in chosen and is_float(tensor.dtype) and tensor.dtype != dtype:
            compute = Separable(partial(convert, name=tensor.name), ((several, tensor.name),))
            edits.append(TensorEdit(converted, checkpoint, tensor, compute))
        else:
            edits.append(copy(tensor, checkpoint))
    says = [f"{len(dequantised)} weights were multiplied by their scales, which are left out"] if dequantised else []
    return Result(edits, says=says, warns=overflows.warnings)
