"""`wsurgery sample`."""

from wsurgery.commands._resample import Resampling, resample
from wsurgery.commands._shared import Input, SurgeryOutput, command


@command
def sample(source: Input = None, *, how: Resampling, output: SurgeryOutput) -> None:
    """Draw each tensor's elements iid from its own values.

    Example: wsurgery sample resnet50.safetensors --blocks block3,block4 > sample.safetensors
    """
    resample("sample", source, how, output)
