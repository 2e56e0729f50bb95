"""`wsurgery drop`."""

from wsurgery.plugin import Checkpoint, Result, Selection, edit


@edit(needs_part="which tensors? Say what to drop with a selector, such as --only GLOB or --blocks head")
def drop(checkpoint: Checkpoint, selection: Selection) -> Result:
    """Leave out the selected tensors.

    Example: wsurgery drop resnet50.safetensors --blocks head > backbone.safetensors
    """
    from wsurgery.operations.names import subset

    names = checkpoint.tensors.keys() | selection.aliases.keys()
    return subset(checkpoint, names - selection.every_name(checkpoint.tensors))
