"""`wsurgery sample`."""

from typing import Annotated

import typer

from wsurgery.commands._resample import resample
from wsurgery.commands._shared import BatchNorm, Input, Part, Seed, SurgeryOutput, command


@command
def sample(
    source: Input = None,
    bn: Annotated[
        BatchNorm, typer.Option(help="Batch norm: the identity, resampled by mean and variance, or kept.")
    ] = BatchNorm.identity,
    seed: Seed = 0,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Draw each tensor's elements iid from its own values.

    Example: wsurgery sample resnet50.safetensors --blocks block3,block4 > sample.safetensors
    """
    resample("sample", source, bn, seed, part, output)
