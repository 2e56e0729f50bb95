"""`wsurgery lerp`."""

from typing import Annotated

import typer

from wsurgery.commands._combine import combine
from wsurgery.commands._shared import Part, SurgeryOutput, command


@command
def lerp(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint, or - for standard input.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A checkpoint of the same architecture.")],
    t: Annotated[float, typer.Option("--t", metavar="T", help="0 gives A, 1 gives B; beyond them it goes on.")],
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Interpolate linearly between two checkpoints: (1 - T) A + T B, in float64 and rounded once to A's types.

    Integers, and what the selectors leave out, come from A.

    Example: wsurgery lerp init.safetensors run/best.safetensors --t 0.5 > halfway.safetensors
    """
    combine("lerp", [a, b], [1 - t, t], ["--t", str(t)], part, output)
