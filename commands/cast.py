"""`wsurgery cast`."""

from typing import Annotated, Literal

from wsurgery.plugin import Checkpoint, Option, Result, Selection, edit

_DTYPES = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8_e4m3": "F8_E4M3", "fp8_e5m2": "F8_E5M2"}


@edit()
def cast(
    checkpoint: Checkpoint,
    *,
    to: Annotated[Literal["fp64", "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2"], Option(help="The new type.")],
    selection: Selection,
) -> Result:
    """Convert floating-point tensors to another type, rounded once to the nearest (ties to even). Integers stay.

    Finite values beyond the new type's range become infinite (NaN in fp8_e4m3) and are reported.
    8-bit weights with a scale beside them (weight_scale, weight_scale_inv, scale_weight, ...) are multiplied by it,
    which is then left out.

    Example: wsurgery cast resnet50.safetensors --to fp16 --except 'bn*' > half.safetensors
    """
    from wsurgery.operations.element_types import cast_edits

    return cast_edits(checkpoint, _DTYPES[to], selection=selection)
