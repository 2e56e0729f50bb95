"""`wsurgery lerp`."""

from typing import Annotated

from wsurgery.plugin import Argument, Checkpoint, Option, Result, Selection, edit


@edit()
def lerp(
    a: Annotated[Checkpoint, Argument(metavar="A", help="A checkpoint, or - for standard input.")],
    b: Annotated[Checkpoint, Argument(metavar="B", help="A checkpoint of the same architecture.")],
    *,
    t: Annotated[float, Option("--t", metavar="T", help="0 gives A, 1 gives B; beyond them it goes on.")],
    selection: Selection,
) -> Result:
    """Interpolate linearly between two checkpoints: (1 - T) A + T B, in float64 and rounded once to A's types.

    Integers, and what the selectors leave out, come from A.

    Example: wsurgery lerp init.safetensors run/best.safetensors --t 0.5 > halfway.safetensors
    """
    from wsurgery.operations.average import weighted_sum_edits

    return weighted_sum_edits([a, b], [1 - t, t], selection=selection)
