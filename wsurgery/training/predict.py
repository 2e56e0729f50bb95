"""Running a network over a data set."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from wsurgery.data.augment import normalise, to_float
from wsurgery.data.dataset import Dataset
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.processes import ALONE, Processes


def choose_device(name: str, processes: Processes = ALONE) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means here; of several processes each has a CUDA device.

    Raises:
        UsageError: there is no such device, or fewer than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: say auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine has no CUDA device; use --device cpu")
    if device.type == "cuda" and processes.count > 1:
        here, n = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if ":" in name or here > n:
            raise UsageError(f"--device {name}: {here} processes need as many CUDA devices of {n}: use --device cuda")
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return what `auto`, `fp32` or `bf16` means on a device: `fp32` or `bf16`.

    Raises:
        UsageError: the device has no arithmetic in bfloat16; emulated, it is many times slower than float32.
    """
    has_bf16 = supports_bf16(device)
    if name == "bf16" and not has_bf16:
        raise UsageError(f"--precision bf16: this {device.type} computes in bfloat16 only by emulation; use fp32")
    return "bf16" if name == "bf16" or (name == "auto" and device.type == "cuda" and has_bf16) else "fp32"


def supports_bf16(device: torch.device) -> bool:
    """Return whether a device has arithmetic in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    try:
        features = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older PyTorch cannot tell
        features = {name for name, here in known.items() if here is True}
    return not features.isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))


def image_statistics(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation, per channel in [0, 1], that the network's images are normalised with.

    They are what its `pretrained_cfg` says, and ImageNet's where it has none or does not say them.
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return tuple(cfg.get("mean") or IMAGENET_DEFAULT_MEAN), tuple(cfg.get("std") or IMAGENET_DEFAULT_STD)


def fit_channels(images: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Make (b, 3, h, w) images grey, (b, 1, h, w), for a network of one input channel."""
    return images.mean(1, keepdim=True) if getattr(model, "in_chans", 3) == 1 else images


def predict(
    model: nn.Module,
    dataset: Dataset,
    *,
    device: torch.device,
    batch_size: int = 128,
    processes: Processes = ALONE,
) -> NDArray[np.float32]:
    """Return the logits, (n, k) float32, of a network in eval mode; its mode is put back, and it stays on the device.

    Several processes take whole batches in turn and exchange the logits, so that each returns, bit for bit, what one
    process finds.

    Raises:
        WsurgeryError: a logit is NaN, which has no rank.
    """
    mean, std = image_statistics(model)
    starts = range(0, len(dataset.images), batch_size)
    logits, was_training = [], [module for module in model.modules() if module.training]
    model.to(device).to(memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        for start in starts[processes.rank :: processes.count]:
            batch = torch.from_numpy(np.ascontiguousarray(dataset.images[start : start + batch_size])).to(device)
            images = normalise(to_float(batch), mean, std)
            logits.append(model(fit_channels(images, model)).float().cpu().numpy())
    for module in was_training:
        module.training = True
    shares = processes.to_all(logits)
    result = np.concatenate([shares[i % processes.count][i // processes.count] for i in range(len(starts))])
    if np.isnan(result).any():
        raise WsurgeryError("the network's outputs are NaN: wsurgery show --stats says which tensors are not finite")
    return result
