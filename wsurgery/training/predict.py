"""Running a network over a data set."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsurgery.data.augment import normalise, to_float
from wsurgery.data.dataset import Dataset
from wsurgery.errors import UsageError, WsurgeryError


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means here.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: say auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine has no CUDA device; use --device cpu")
    return device


def image_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation, per channel in [0, 1], that the network's images are normalised with."""
    cfg = model.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"])  # type: ignore[index]


def fit_channels(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Make (b, 3, h, w) images grey, (b, 1, h, w), for a network of one input channel."""
    return images.mean(1, keepdim=True) if getattr(model, "in_chans", 3) == 1 else images


def predict(model: nn.Module, dataset: Dataset, *, device: torch.device, batch_size: int = 128) -> NDArray[np.float32]:
    """Return the logits, (n, k) float32, of a network in eval mode; its mode is put back afterwards.

    Raises:
        WsurgeryError: a logit is NaN, which has no rank.
    """
    mean, std = image_statistics(model)
    logits, was_training = [], [module for module in model.modules() if module.training]
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(dataset.images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(dataset.images[start : start + batch_size])).to(device)
            images = normalise(to_float(batch), mean, std)
            logits.append(model(fit_channels(images, model)).float().cpu())
    for module in was_training:
        module.training = True
    result: NDArray[np.float32] = torch.cat(logits).numpy()
    if np.isnan(result).any():
        raise WsurgeryError("the network's outputs are NaN: wsurgery show --stats says which tensors are not finite")
    return result
