"""`wsurgery meanvar`."""

from wsurgery.commands._resample import Resampling, resample
from wsurgery.commands._shared import Input, SurgeryOutput, command


@command
def meanvar(source: Input = None, *, how: Resampling, output: SurgeryOutput) -> None:
    """Resample each tensor iid Gaussian from its own mean and variance.

    Example: wsurgery meanvar resnet50.safetensors > meanvar.safetensors
    """
    resample("meanvar", source, how, output)
