"""Augmentation of whole batches on the device that trains.

What an image gets is a function of (seed, epoch, image) alone: a hash, not a generator's state. It is the same in any
batch, worker or process.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

LUMA = (0.299, 0.587, 0.114)
YIQ_FROM_RGB = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # the NTSC's
RGB_FROM_YIQ = tuple(map(tuple, np.linalg.inv(YIQ_FROM_RGB).tolist()))


@dataclass(frozen=True)
class Augmentation:
    """How much may be done to an image. Zeros and False do nothing.

    Attributes:
        crop: the crop's side is drawn from [1 - crop, 1] of the image's, its place anywhere inside.
        flip_horizontal: left and right exchanged, for half of the images.
        flip_vertical: top and bottom exchanged, for half of the images.
        hue: colours are turned by an angle from [-hue, hue], in full turns; brightness stays.
        contrast: differences from the mean brightness are scaled by a factor from [1 - contrast, 1 + contrast].
    """

    crop: float
    flip_horizontal: bool
    flip_vertical: bool
    hue: float
    contrast: float


class Purpose(IntEnum):
    """What a random number is for: each purpose has its own."""

    SCALE = 0
    LEFT = 1
    TOP = 2
    FLIP_HORIZONTAL = 3
    FLIP_VERTICAL = 4
    HUE = 5
    CONTRAST = 6


def augment(
    images: Tensor, augmentation: Augmentation, *, seed: int, epoch: int, indices: NDArray[np.integer]
) -> Tensor:
    """Crop, flip and recolour a batch.

    Args:
        images: uint8 (b, h, w, 3), RGB.
        augmentation: what may be done.
        seed: of the run.
        epoch: of the training.
        indices: (b,), each image's index in the data set.

    Returns:
        float32 (b, 3, h, w) in [0, 1], on the device of `images`.
    """

    def uniform(purpose: Purpose, low: float, high: float) -> Tensor:
        drawn = low + (high - low) * uniforms(seed, epoch, purpose, indices)
        return torch.from_numpy(drawn.astype(np.float32)).to(images.device, non_blocking=True)

    for wanted, purpose, axis in (
        (augmentation.flip_horizontal, Purpose.FLIP_HORIZONTAL, 2),
        (augmentation.flip_vertical, Purpose.FLIP_VERTICAL, 1),
    ):
        if wanted:
            flipped = (uniform(purpose, 0, 1) < 0.5)[:, None, None, None]
            images = torch.where(flipped, images.flip(axis), images)
    x = to_float(images)
    if augmentation.crop:
        side = uniform(Purpose.SCALE, 1 - augmentation.crop, 1)
        room = 1 - side
        x = _crop(x, side, room * uniform(Purpose.LEFT, -1, 1), room * uniform(Purpose.TOP, -1, 1))
    if augmentation.hue or augmentation.contrast:
        turn = augmentation.hue * uniform(Purpose.HUE, -1, 1)
        x = _recolour(x, turn, uniform(Purpose.CONTRAST, 1 - augmentation.contrast, 1 + augmentation.contrast))
    return x


def to_float(images: Tensor) -> Tensor:
    """uint8 (b, h, w, 3) in [0, 255] to float32 (b, 3, h, w) in [0, 1]."""
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255)  # moving bytes is cheaper than moving floats


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract `mean` from each channel and divide by `std`, (3,) each. `images`: float32 (b, 3, h, w)."""
    centre, scale = (_constant(tuple(x), images.dtype, images.device)[:, None, None] for x in (mean, std))
    return (images - centre) / scale


@cache  # a copy to a GPU for every batch would be waited for
def _constant(numbers: Hashable, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever asks first, all may use it
        return torch.tensor(numbers, dtype=dtype, device=device)


def uniforms(seed: int, epoch: int, purpose: int, indices: NDArray[np.integer]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for images `indices`, (b,), hashed by SplitMix64 (Steele, Lea and Flood, 2014)."""
    state = np.zeros(1, np.uint64)
    for word in (seed & 0xFFFF_FFFF_FFFF_FFFF, epoch, purpose):
        state = _mix(state ^ np.uint64(word))
    return (_mix(state ^ indices.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _crop(images: Tensor, side: Tensor, centre_x: Tensor, centre_y: Tensor) -> Tensor:
    """Enlarge a window of each image, bilinearly. (b,) each: its side, and its centre in [-1, 1], both 1 at the edge."""
    # Not affine_grid: a window that is not turned needs no matrix product a pixel.
    b, _, h, w = images.shape
    y, x = (torch.arange(1, 2 * n, 2, device=images.device) / n - 1 for n in (h, w))  # pixel centres in [-1, 1]
    rows = (centre_y[:, None] + side[:, None] * y)[:, :, None].expand(b, h, w)
    columns = (centre_x[:, None] + side[:, None] * x)[:, None, :].expand(b, h, w)
    grid = torch.stack([columns, rows], dim=3)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _recolour(images: Tensor, turn: Tensor, contrast: Tensor) -> Tensor:
    """Turn colours about the grey axis in YIQ, and scale them about the mean luma; clipped to [0, 1]. (b,) each."""
    cos, sin = torch.cos(2 * torch.pi * turn), torch.sin(2 * torch.pi * turn)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    to_yiq, to_rgb = (_constant(matrix, images.dtype, images.device) for matrix in (YIQ_FROM_RGB, RGB_FROM_YIQ))
    pixels = images.flatten(2)
    mean_luma = to_yiq[0] @ pixels.mean(dim=2).T
    offset = ((1 - contrast) * mean_luma)[:, None, None]
    matrix = contrast[:, None, None] * (to_rgb @ rotation @ to_yiq)
    return torch.baddbmm(offset, matrix, pixels).clamp_(0, 1).view_as(images)
