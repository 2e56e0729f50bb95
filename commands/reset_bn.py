"""`wsurgery reset-bn`."""

from wsurgery.commands._shared import Input, Part, SurgeryOutput, command, write_surgery


@command
def reset_bn(source: Input = None, *, part: Part, output: SurgeryOutput) -> None:
    """Set batch norm to the identity: weight and running variance 1, bias, running mean and counter 0.

    Example: wsurgery reset-bn resnet50.safetensors -o identity.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.edits import reset_batch_norm

    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        edits = reset_batch_norm(checkpoint, selection=part.selection)
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record("reset-bn", part.arguments, seed=None, inputs=inputs)
        write_surgery(edits, history, record, output, name_from=checkpoint)
