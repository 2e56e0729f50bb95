"""`wsurgery scale`."""

from typing import Annotated

from wsurgery.plugin import Array, Option, edit


@edit(elementwise=True)
def scale(x: Array, *, by: Annotated[float, Option(metavar="X", help="The factor.")]) -> Array:
    """Multiply floating-point tensors by a number.

    Batch norm's running mean and variance are left alone, unless --only or --role chooses them.

    Example: wsurgery scale resnet50.safetensors --by 0.5 --blocks head > cooler.safetensors
    """
    return x * by
