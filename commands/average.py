"""`wsurgery average`."""

from typing import Annotated

import typer

from wsurgery.commands._combine import combine
from wsurgery.commands._shared import Part, SurgeryOutput, command
from wsurgery.errors import UsageError


@command
def average(
    sources: Annotated[list[str], typer.Argument(metavar="A B ...", help="Checkpoints; A may be -, standard input.")],
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,...", help="One a checkpoint, used as given; they must sum to 1. Default: equal ones."),
    ] = None,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Average checkpoints of one architecture, in float64 and rounded once to A's types.

    Integers, and what the selectors leave out, come from A. A checkpoint of weight 0 is not read.

    Example: wsurgery average run1/best.safetensors run2/best.safetensors > soup.safetensors
    """
    arguments = ["--weights", weights] if weights is not None else []
    try:
        numbers = [float(word) for word in weights.split(",")] if weights is not None else None
    except ValueError:
        raise UsageError(f"--weights {weights}: write numbers with commas between them") from None
    combine("average", sources, numbers or [1 / len(sources)] * len(sources), arguments, part, output)
