"""What stands between images and a network: how they are normalised, and what is said of those it cannot take."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from wsurgery.devices import is_out_of_memory
from wsurgery.errors import WsurgeryError, located, printable

Output = TypeVar("Output")


def image_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation, per channel in [0, 1], that the network's images are normalised with.

    They are what its `pretrained_cfg` says, one number for all three or one for each, and ImageNet's where it has none or
    does not say them.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    mean, std = cfg.get("mean") or IMAGENET_DEFAULT_MEAN, cfg.get("std") or IMAGENET_DEFAULT_STD
    mean, std = (tuple(x) * 3 if len(x) == 1 else tuple(x) for x in (mean, std))
    return mean, std


def fit_channels(images: Tensor, model: nn.Module) -> Tensor:
    """Make (b, 3, h, w) images grey, (b, 1, h, w), for a network of one input channel."""
    return images.mean(1, keepdim=True) if getattr(model, "in_chans", 3) == 1 else images


def run(network: Callable[[Tensor], Output], images: Tensor) -> Output:
    """Return a network's output for images, (b, c, h, w).

    Raises:
        WsurgeryError: it cannot take them; the message has torch's reason.
    """
    try:
        return network(images)
    except (RuntimeError, ValueError, AssertionError, LookupError, TypeError) as error:  # what modules raise
        if is_out_of_memory(error):
            raise
        b, c, h, w = images.shape
        if "more than 1 value per channel" in str(error):
            raise WsurgeryError(
                f"batch norm needs more than one value a channel, and {b} image of {h} × {w} gives it one: use --batch-size "
                "2 or more (of several processes, --global-batch twice as many as they), as many training images, a larger "
                "--image-size, or freeze-spec --role batch_norm"
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        theirs = located(error, _is_somebodys)
        other_channels = f"but got {c} channels" in reason  # as torch's convolutions say it
        remedy = (
            f"wsurgery adapt --in-chans {c} has it take them" if other_channels else "--image-size changes their size"
        )
        raise WsurgeryError(
            f"the network does not take images of {h} × {w} with {c} channels: {theirs or printable(reason)}; {remedy}"
            f"{', --debug shows the traceback' if theirs else ''}"
        ) from error


def logits_of(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return what a network makes of images, (b, c, h, w): (b, k).

    Raises:
        WsurgeryError: it cannot take them, or gives something else.
    """
    made = run(network, images)
    if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != len(images):
        given = tuple(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise WsurgeryError(
            f"the network gives {given} for {len(images)} images, and a tensor of ({len(images)}, labels) is due: its forward "
            "returns the logits alone"
        )
    return made


def _is_somebodys(frame: FrameType) -> bool:
    """Whether a frame is of a network of the user's own."""
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    return package not in ("torch", "timm", "wsurgery") and package not in sys.stdlib_module_names
