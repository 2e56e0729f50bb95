"""`wsurgery freeze-spec`."""

import json as json_module
from dataclasses import replace

import typer

from wsurgery.commands._shared import Input, Json, Part, SurgeryOutput, command, write_surgery
from wsurgery.errors import UsageError


@command
def freeze_spec(source: Input = None, json: Json = False, *, part: Part, output: SurgeryOutput) -> None:
    """Write into the checkpoint which tensors `train` must leave alone. It replaces an earlier specification.

    Example: wsurgery freeze-spec init.safetensors --upto block1 > frozen.safetensors
    """
    from wsurgery.anatomy import globs_for
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.edits import copy

    if not part.arguments:
        raise UsageError("which part? Name the last frozen block with --upto, or use another selector")
    with open_checkpoint(source) as checkpoint:
        globs = globs_for(part.selection.names(checkpoint.tensors), checkpoint.tensors)
        if json:
            typer.echo(json_module.dumps({"freeze": globs}))
            return
        history = History.of(checkpoint)
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record("freeze-spec", part.arguments, seed=None, inputs=inputs)
        edits = [copy(tensor, checkpoint) for tensor in checkpoint.tensors.values()]
        write_surgery(edits, replace(history, freeze=tuple(globs)), record, output, name_from=checkpoint)
