"""`wsurgery average`."""

from typing import Annotated

from wsurgery.plugin import Argument, Checkpoint, Option, Result, Selection, edit


@edit()
def average(
    sources: Annotated[list[Checkpoint], Argument(metavar="A B ...", help="Checkpoints; A may be -, standard input.")],
    *,
    weights: Annotated[
        str | None,
        Option(metavar="W,...", help="One a checkpoint, used as given; they must sum to 1. Default: equal ones."),
    ] = None,
    selection: Selection,
) -> Result:
    """Average checkpoints of one architecture, in float64 and rounded once to A's types.

    Integers, and what the selectors leave out, come from A. A checkpoint of weight 0 is not read. A wrapper's prefix
    (module., model.) that only one side has is looked through, counters (num_batches_tracked) may be missing, and tensors
    that are tied in one checkpoint only are tied in the result no longer.

    Task vectors are weights, too: base + 0.4 (one - base) + 0.4 (two - base) is --weights 0.2,0.4,0.4 of base, one and two,
    and base - 0.5 (one - base), which forgets a task, --weights 1.5,-0.5.

    Example: wsurgery average base.safetensors one.safetensors two.safetensors --weights 0.2,0.4,0.4 > merged.safetensors

    Example: wsurgery average run1/best.safetensors run2/best.safetensors > soup.safetensors
    """
    from wsurgery.operations.average import parse_weights, weighted_sum_edits

    return weighted_sum_edits(sources, parse_weights(weights) or [1 / len(sources)] * len(sources), selection=selection)
