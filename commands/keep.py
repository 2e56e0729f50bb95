"""`wsurgery keep`."""

from wsurgery.commands._shared import Input, Part, SurgeryOutput, command
from wsurgery.commands._subset import subset


@command
def keep(source: Input = None, *, part: Part, output: SurgeryOutput) -> None:
    """Leave out all but the selected tensors.

    Example: wsurgery keep resnet50.safetensors --upto block2 > lower-half.safetensors
    """
    subset("keep", source, part, output)
