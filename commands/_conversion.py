"""What `convert` and `fetch` share: a state dict in, clean safetensors out."""

from dataclasses import replace
from typing import TYPE_CHECKING

from wsurgery.commands._shared import Output, say
from wsurgery.errors import printable

if TYPE_CHECKING:
    from wsurgery.anatomy.timm_names import TimmNames
    from wsurgery.checkpoint.provenance import History
    from wsurgery.checkpoint.state_dict import StateDict


def write_converted(
    state: "StateDict", names: "TimmNames", history: "History", output: Output, *, default: str
) -> None:
    """Write a state dict under its new names, and say what was done to it.

    Args:
        state: the open state dict.
        names: what its tensors become.
        history: of the result, but for the aliases, which are added.
        output: where to.
        default: the file's name on a terminal.
    """
    from wsurgery.checkpoint import open_output
    from wsurgery.checkpoint.header import format_header
    from wsurgery.checkpoint.writer import GatheringWriter
    from wsurgery.operations.conversion import assembled, described, new_aliases
    from wsurgery.progress import Progress

    aliases = new_aliases(names, state.aliases, state.history.metadata())
    tensors = described(names, state.tensors, aliases)
    for note in state.notes:
        say(note)
    if names.prefix:
        say(f"stripped the prefix {names.prefix}")
    if names.lineage:
        say(f"renamed from {names.lineage} to timm's names")
    if names.left_out:
        more = f" and {len(names.left_out) - 3} more" if len(names.left_out) > 3 else ""
        say(f"left out what timm's network has not: {printable(', '.join(names.left_out[:3]))}{more}")
    for alias, kept in aliases.items():
        say(f"{printable(alias)} is {printable(kept)}: written once, and recorded")
    if history.architecture:
        say(f"recorded the architecture {printable(history.architecture['name'])}")
    else:
        say("the architecture is not known: wsurgery convert --arch NAME records it for train, eval and cca")
    history = replace(history, others={**history.others, **aliases})
    with (
        output.destination(default) as path,
        open_output(path, force=output.force) as stream,
        Progress(sum(tensor.nbytes for tensor in tensors), "writing") as progress,
    ):
        gathered = GatheringWriter(stream)
        gathered.write(format_header(tensors, history.metadata()))
        for data in assembled(names, state.tensors, aliases, state.read):
            gathered.write(data)
            progress.advance(len(data))
        gathered.flush()
        state.finish()
