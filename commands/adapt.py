"""`wsurgery adapt`."""

from dataclasses import replace
from typing import Annotated

import typer

from wsurgery.commands._shared import Input, SurgeryOutput, command, write_surgery
from wsurgery.errors import UsageError


@command
def adapt(
    source: Input = None,
    in_chans: Annotated[int | None, typer.Option(min=1, help="Channels of the new images.")] = None,
    img_size: Annotated[int | None, typer.Option(min=1, help="Side of the new images, in pixels.")] = None,
    *,
    output: SurgeryOutput,
) -> None:
    """Adapt a network to images with other channels or of another size, as timm does when it loads weights.

    One channel gets the sum of the first convolution's; more repeat them in turn. Tables of positions are resampled.

    Example: wsurgery adapt vit.safetensors --in-chans 1 --img-size 384 > grey384.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.adapt import adapt_edits

    if in_chans is None and img_size is None:
        raise UsageError("to what? Give --in-chans, --img-size or both")
    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        edits = adapt_edits(checkpoint, in_chans=in_chans, img_size=img_size)
        arguments = [] if in_chans is None else ["--in-chans", str(in_chans)]
        arguments += [] if img_size is None else ["--img-size", str(img_size)]
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record("adapt", arguments, seed=None, inputs=inputs)
        if architecture := history.architecture:
            channels = {} if in_chans is None else {"in_chans": in_chans}
            size = {} if img_size is None else {"args": {**architecture.get("args", {}), "img_size": img_size}}
            history = replace(history, architecture={**architecture, **channels, **size})
        write_surgery(edits, history, record, output, name_from=checkpoint)
