"""`wsurgery shuffle`."""

from typing import Annotated

import typer

from wsurgery.commands._resample import resample
from wsurgery.commands._shared import BatchNorm, Input, Part, Seed, SurgeryOutput, command


@command
def shuffle(
    source: Input = None,
    bn: Annotated[
        BatchNorm, typer.Option(help="Batch norm: the identity, resampled by mean and variance, or kept.")
    ] = BatchNorm.identity,
    seed: Seed = 0,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Permute each tensor at random.

    Example: wsurgery shuffle resnet50.safetensors > shuffle.safetensors
    """
    resample("shuffle", source, bn, seed, part, output)
