"""`wsurgery rename`."""

from dataclasses import replace
from typing import Annotated

import typer

from wsurgery.commands._shared import Input, Part, SurgeryOutput, command, write_surgery


@command
def rename(
    pattern: Annotated[str, typer.Argument(help="A Python regular expression.")],
    replacement: Annotated[str, typer.Argument(help=r"What each match becomes; \1 is the first capture.")],
    source: Input = None,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    r"""Rename tensors: every match of PATTERN in a name becomes REPLACEMENT. The freeze specification and
    the aliases of tied tensors follow.

    Example: wsurgery rename '^module\.' '' ddp.safetensors > plain.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.edits import copy
    from wsurgery.operations.names import aliases_after, frozen_after, new_names

    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        tensors, aliases = checkpoint.tensors, history.aliases(checkpoint.tensors)
        chosen = part.selection.names(tensors)
        chosen |= {alias for alias, tensor in aliases.items() if tensor in chosen}
        names = new_names([*tensors, *aliases], pattern, replacement, chosen=chosen)
        edits = [
            replace(copy(tensor, checkpoint), tensor=replace(tensor, name=names[tensor.name]))
            for tensor in tensors.values()
        ]
        like_options = any(word.startswith("-") for word in (pattern, replacement))
        arguments = [*part.arguments, *(["--"] if like_options else []), pattern, replacement]
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record("rename", arguments, seed=None, inputs=inputs)
        after = replace(
            history,
            freeze=frozen_after(history.freeze, {name: names[name] for name in tensors}),
            others=aliases_after(history.others, aliases, names),
        )
        write_surgery(edits, after, record, output, name_from=checkpoint)
