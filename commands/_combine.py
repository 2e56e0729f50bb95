"""What `average` and `lerp` have in common: a weighted sum of checkpoints, and its record."""

from collections.abc import Sequence
from contextlib import ExitStack

from wsurgery.commands._shared import Part, SurgeryOutput, write_surgery
from wsurgery.errors import UsageError


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
    from wsurgery.checkpoint.spool import seekable
    from wsurgery.operations.small_edits import weighted_sum_edits

    if list(sources).count("-") > 1:
        raise UsageError("standard input can be one of the checkpoints only: name a file for the others")
    with ExitStack() as stack:
        first, *others = [stack.enter_context(open_checkpoint(source)) for source in sources]
        history = History.of(first)
        inputs = [describe_input(first, history, flows=True)]
        inputs += [describe_input(other, History.of(other), flows=False) for other in others]
        # Tensors are computed in several threads, so that the others are not read in their own order.
        others = [stack.enter_context(seekable(other)) for other in others]
        edits = weighted_sum_edits([first, *others], weights, selection=part.selection)
        record = make_record(name, [*arguments, *part.arguments], seed=None, inputs=inputs)
        write_surgery(edits, history, record, output, name_from=first)
