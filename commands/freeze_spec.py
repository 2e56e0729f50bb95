"""`wsurgery freeze-spec`."""

from dataclasses import replace

from wsurgery.plugin import Checkpoint, History, Result, Selection, copies, edit


@edit(
    needs_part="which part? Name the last frozen block with --upto, or use another selector",
    json=lambda history: {"freeze": list(history.freeze)},
)
def freeze_spec(checkpoint: Checkpoint, selection: Selection) -> Result:
    """Write into the checkpoint which tensors `train` must leave alone. It replaces an earlier specification.

    Example: wsurgery freeze-spec init.safetensors --upto block1 > frozen.safetensors
    """
    from wsurgery.anatomy import globs_for

    globs = globs_for(selection.names(checkpoint.tensors), checkpoint.tensors)
    return Result(copies(checkpoint), replace(History.of(checkpoint), freeze=tuple(globs)))
