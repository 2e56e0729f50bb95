"""`wsurgery gabor`."""

from wsurgery.commands._shared import Input, SurgeryOutput, command, write_surgery


@command
def gabor(source: Input = None, *, output: SurgeryOutput) -> None:
    """Put Gabor filters in the first convolution, with the standard deviation of the weights they replace.

    Example: wsurgery init cbr_small | wsurgery gabor > gabor.safetensors
    """
    from dataclasses import replace

    from wsurgery.anatomy import first_convolution
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.edits import copy
    from wsurgery.operations.gabor import gabor as gabor_filters

    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        first = first_convolution({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
        edits = [
            replace(edit, compute=lambda x, run: gabor_filters(x)) if edit.tensor.name == first else edit
            for edit in (copy(tensor, checkpoint) for tensor in checkpoint.tensors.values())
        ]
        record = make_record("gabor", [], seed=None, inputs=[describe_input(checkpoint, history, flows=True)])
        write_surgery(edits, history, record, output, name_from=checkpoint)
