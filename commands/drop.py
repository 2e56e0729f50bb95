"""`wsurgery drop`."""

from wsurgery.plugin import Checkpoint, Result, Selection, edit


@edit(needs_part="which tensors? Say what to drop with a selector, such as --only GLOB or --blocks head")
def drop(checkpoint: Checkpoint, selection: Selection) -> Result:
    """Leave out the selected tensors.

    Example: wsurgery drop resnet50.safetensors --blocks head > backbone.safetensors
    """
    from wsurgery.operations.names import subset

    return subset(checkpoint, checkpoint.tensors.keys() - selection.names(checkpoint.tensors))
