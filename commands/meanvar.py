"""`wsurgery meanvar`."""

from typing import Annotated

import typer

from wsurgery.commands._resample import resample
from wsurgery.commands._shared import BatchNorm, Input, Part, Seed, SurgeryOutput, command


@command
def meanvar(
    source: Input = None,
    bn: Annotated[
        BatchNorm, typer.Option(help="Batch norm: the identity, resampled by mean and variance, or kept.")
    ] = BatchNorm.identity,
    seed: Seed = 0,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Resample each tensor iid Gaussian from its own mean and variance.

    Example: wsurgery meanvar resnet50.safetensors > meanvar.safetensors
    """
    resample("meanvar", source, bn, seed, part, output)
