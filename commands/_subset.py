"""What `drop` and `keep` have in common: all but which side of the cut stays."""

from dataclasses import replace

from wsurgery.commands._shared import Part, SurgeryOutput, write_surgery
from wsurgery.errors import UsageError


def subset(name: str, source: str | None, part: Part, output: SurgeryOutput) -> None:
    """Write the selected tensors only (`keep`), or all the others (`drop`)."""
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.edits import copy
    from wsurgery.operations.names import aliases_after, frozen_after

    if not part.arguments:
        raise UsageError(f"which tensors? Say what to {name} with a selector, such as --only GLOB or --blocks head")
    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        chosen = part.selection.names(checkpoint.tensors)
        stays = [tensor for tensor in checkpoint.tensors.values() if (tensor.name in chosen) == (name == "keep")]
        if not stays:
            raise UsageError("that is every tensor: a checkpoint without tensors is of no use")
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record(name, part.arguments, seed=None, inputs=inputs)
        names, aliases = {tensor.name: tensor.name for tensor in stays}, history.aliases(checkpoint.tensors)
        after = replace(
            history,
            freeze=frozen_after(history.freeze, names),
            others=aliases_after(history.others, aliases, names | {alias: alias for alias in aliases}),
        )
        write_surgery([copy(tensor, checkpoint) for tensor in stays], after, record, output, name_from=checkpoint)
