"""`wsurgery scale`."""

import math
from typing import Annotated

import typer

from wsurgery.commands._shared import Input, Part, SurgeryOutput, command, write_surgery
from wsurgery.errors import UsageError


@command
def scale(
    by: Annotated[float, typer.Option(metavar="X", help="The factor.")],
    source: Input = None,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Multiply floating-point tensors by a number.

    Batch norm's running mean and variance are left alone, unless --only or --role chooses them.

    Example: wsurgery scale resnet50.safetensors --by 0.5 --blocks head > cooler.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.small_edits import scale_edits

    if not math.isfinite(by):
        raise UsageError(f"--by {by}: a finite number is needed")
    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        edits = scale_edits(checkpoint, by=by, selection=part.selection)
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record("scale", ["--by", str(by), *part.arguments], seed=None, inputs=inputs)
        write_surgery(edits, history, record, output, name_from=checkpoint)
