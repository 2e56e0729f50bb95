"""What `average` and `lerp` have in common: a weighted sum of checkpoints, and its record."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from wsurgery.commands._shared import Part, SurgeryOutput, write_surgery
from wsurgery.errors import UsageError

if TYPE_CHECKING:
    from wsurgery.checkpoint import Checkpoint


def combine(
    name: str,
    sources: Sequence[str],
    weights: Sequence[float],
    arguments: Sequence[str],
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Run the command `name`, typed with `arguments` and the selectors, as a weighted sum of `sources`."""
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.small_edits import weighted_sum_edits

    if list(sources).count("-") > 1:
        raise UsageError("standard input can be one of the checkpoints only: name a file for the others")
    with ExitStack() as stack:
        first, *others = [stack.enter_context(open_checkpoint(source)) for source in sources]
        history = History.of(first)
        inputs = [describe_input(first, history, flows=True)]
        inputs += [describe_input(other, History.of(other), flows=False) for other in others]
        seekable = [_seekable(other, stack) for other in others]
        edits = weighted_sum_edits([first, *seekable], weights, selection=part.selection)
        record = make_record(name, [*arguments, *part.arguments], seed=None, inputs=inputs)
        write_surgery(edits, history, record, output, name_from=first)


def _seekable(checkpoint: "Checkpoint", stack: ExitStack) -> "Checkpoint":
    """Give the checkpoint itself, or of a pipe a temporary copy, for a pipe cannot be read in another's order."""
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.writer import write_all

    if checkpoint.seekable:
        return checkpoint
    path = Path(stack.enter_context(TemporaryDirectory(prefix="wsurgery-"))) / "piped.safetensors"
    with path.open("wb", buffering=0) as stream:
        write_all(stream, checkpoint.header_bytes)
        for tensor in checkpoint.tensors.values():
            for piece in checkpoint.pieces(tensor):
                write_all(stream, piece)
    copy = stack.enter_context(open_checkpoint(path))
    copy.label = checkpoint.label
    return copy
