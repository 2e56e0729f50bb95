"""`wsurgery rename`."""

from dataclasses import replace
from typing import Annotated

from wsurgery.plugin import Argument, Checkpoint, History, Result, Selection, copies, edit


@edit()
def rename(
    checkpoint: Checkpoint,
    selection: Selection,
    pattern: Annotated[str, Argument(help="A Python regular expression.")],
    replacement: Annotated[str, Argument(help=r"What each match becomes; \1 is the first capture.")],
) -> Result:
    r"""Rename tensors: every match of PATTERN in a name becomes REPLACEMENT. The freeze specification and
    the aliases of tied tensors follow.

    Example: wsurgery rename '^module\.' '' ddp.safetensors > plain.safetensors
    """
    from wsurgery.operations.names import new_names, renamed_history

    history, tensors = History.of(checkpoint), checkpoint.tensors
    aliases = history.aliases(tensors)
    chosen = selection.names(tensors)
    chosen |= {alias for alias, tensor in aliases.items() if tensor in chosen}
    names = new_names([*tensors, *aliases], pattern, replacement, chosen=chosen)
    edits = [replace(edit, tensor=replace(edit.tensor, name=names[edit.tensor.name])) for edit in copies(checkpoint)]
    return Result(edits, renamed_history(history, tensors, {name: names[name] for name in tensors}, names))
