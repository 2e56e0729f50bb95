"""`wsurgery keep`."""

from wsurgery.plugin import Checkpoint, Result, Selection, edit


@edit(needs_part="which tensors? Say what to keep with a selector, such as --only GLOB or --blocks head")
def keep(checkpoint: Checkpoint, selection: Selection) -> Result:
    """Leave out all but the selected tensors.

    Example: wsurgery keep resnet50.safetensors --upto block2 > lower-half.safetensors
    """
    from wsurgery.operations.names import subset

    return subset(checkpoint, selection.every_name(checkpoint.tensors))
