"""`wsurgery add-noise`."""

import math
from typing import Annotated

from wsurgery.plugin import Array, Option, RandomStream, Tensor, WsurgeryError, edit


@edit(elementwise=True)
def add_noise(
    x: Array,
    *,
    std: Annotated[float, Option(metavar="S", min=0, help="Standard deviation of the noise.")],
    relative: Annotated[bool, Option("--relative", help="S counts in standard deviations of each tensor.")] = False,
    random: RandomStream,
    tensor: Tensor,
) -> Array:
    """Add iid Gaussian noise to floating-point tensors.

    Batch norm's running mean and variance are left alone, unless --only or --role chooses them.

    Example: wsurgery add-noise resnet50.safetensors --std 0.1 --relative --seed 1 > noisy.safetensors
    """
    if relative:
        std *= tensor.moments.std
        if not math.isfinite(std):
            raise WsurgeryError(
                "holds NaN or infinity, so noise has no scale relative to it: leave it out with --except"
            )
    return random.normal(x) * std + x
