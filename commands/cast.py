"""`wsurgery cast`."""

from enum import Enum
from typing import Annotated

import typer

from wsurgery.commands._shared import Input, Part, SurgeryOutput, command, say, write_surgery


class FloatType(str, Enum):
    """Floating-point types by the names that people use."""

    fp64 = "fp64"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    fp8_e4m3 = "fp8_e4m3"
    fp8_e5m2 = "fp8_e5m2"


_DTYPES = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8_e4m3": "F8_E4M3", "fp8_e5m2": "F8_E5M2"}


@command
def cast(
    to: Annotated[FloatType, typer.Option(help="The new type.")],
    source: Input = None,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Convert floating-point tensors to another type, rounded once to the nearest (ties to even). Integers stay.

    Finite values beyond the new type's range become infinite (NaN in fp8_e4m3) and are reported.

    Example: wsurgery cast resnet50.safetensors --to fp16 --except 'bn*' > half.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.errors import printable
    from wsurgery.operations.small_edits import cast_edits

    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        edits, overflows = cast_edits(checkpoint, _DTYPES[to.value], selection=part.selection)
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record("cast", ["--to", to.value, *part.arguments], seed=None, inputs=inputs)
        write_surgery(edits, history, record, output, name_from=checkpoint)
        if overflows:
            first = next(name for name in checkpoint.tensors if name in overflows)
            became = "NaN" if to is FloatType.fp8_e4m3 else "infinite"
            say(
                f"{sum(overflows.values()):,} finite values in {len(overflows)} tensors became {became}, "
                f"first in {printable(first)}: {to.value} does not reach so far"
            )
