"""`wsurgery new-head`."""

from dataclasses import replace
from typing import Annotated

import typer

from wsurgery.commands._shared import Input, Seed, SurgeryOutput, command, write_surgery


@command
def new_head(
    num_classes: Annotated[int, typer.Option(min=1, help="Outputs of the new classifier.")],
    source: Input = None,
    seed: Seed = 0,
    *,
    output: SurgeryOutput,
) -> None:
    """Replace the classifier by a fresh random one for another number of classes (the same number redraws it).

    Example: wsurgery new-head resnet50.safetensors --num-classes 5 --seed 1 > five.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.new_head import new_head as new_head_edits

    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        edits = new_head_edits(
            checkpoint,
            architecture=history.architecture,
            num_classes=num_classes,
            seed=seed,
            occurrence=history.count("new-head"),
        )
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record("new-head", ["--num-classes", str(num_classes)], seed=seed, inputs=inputs)
        if history.architecture:
            history = replace(history, architecture={**history.architecture, "num_classes": num_classes})
        write_surgery(edits, history, record, output, name_from=checkpoint)
