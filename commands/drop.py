"""`wsurgery drop`."""

from wsurgery.commands._shared import Input, Part, SurgeryOutput, command
from wsurgery.commands._subset import subset


@command
def drop(source: Input = None, *, part: Part, output: SurgeryOutput) -> None:
    """Leave out the selected tensors.

    Example: wsurgery drop resnet50.safetensors --blocks head > backbone.safetensors
    """
    subset("drop", source, part, output)
