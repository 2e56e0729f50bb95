"""`wsurgery shuffle`."""

from wsurgery.commands._resample import Resampling, resample
from wsurgery.commands._shared import Input, SurgeryOutput, command


@command
def shuffle(source: Input = None, *, how: Resampling, output: SurgeryOutput) -> None:
    """Permute each tensor at random.

    Example: wsurgery shuffle resnet50.safetensors > shuffle.safetensors
    """
    resample("shuffle", source, how, output)
