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

from wsurgery.devices import memory_format

LUMA = (0.299, 0.587, 0.114)
YIQ_FROM_RGB = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # the NTSC's
RGB_FROM_YIQ = tuple(map(tuple, np.linalg.inv(YIQ_FROM_RGB).tolist()))

BLOCK_PIXELS = 1 << 17  # that a CPU works on at a time, so that they stay in its cache: 1.5 MiB in float32


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


def draw(augmentation: Augmentation, *, seed: int, epoch: int, indices: NDArray[np.integer]) -> NDArray[np.float32]:
    """Draw what images get: (7, b) float32, a row for each `Purpose`, each in the range that `augmentation` allows.

    Args:
        augmentation: what may be done.
        seed: of the run.
        epoch: of the training.
        indices: (b,), each image's index in the data set.
    """
    low, high = np.array([
        (1 - augmentation.crop, 1), (0, 1), (0, 1), (0, 1), (0, 1), (-1, 1),
        (1 - augmentation.contrast, 1 + augmentation.contrast),
    ]).T[:, :, None]  # fmt: skip
    drawn = low + (high - low) * uniforms(seed, epoch, np.arange(len(Purpose))[:, None], indices)
    as_trained: NDArray[np.float32] = drawn.astype(np.float32)
    return as_trained


def augment(
    images: Tensor,
    drawn: Tensor,
    augmentation: Augmentation,
    *,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
) -> Tensor:
    """Crop, flip, recolour and normalise a batch.

    Args:
        images: uint8 (b, h, w, 3), RGB.
        drawn: float32 (7, b), on the same device: see `draw`.
        augmentation: what may be done, and what they were drawn for.
        mean: (3,), subtracted from the channels, which then are in [0, 1].
        std: (3,), by which they are divided then.

    Returns:
        float32 (b, 3, h, w) on the device of `images`, in memory channels last, but on MPS.
    """
    moves = augmentation.crop or augmentation.flip_horizontal or augmentation.flip_vertical
    recolours = augmentation.hue or augmentation.contrast
    b, h, w, _ = images.shape
    if moves:
        side = drawn[Purpose.SCALE]
        down = _positions(h, side, drawn[Purpose.TOP])
        across = _positions(w, side, drawn[Purpose.LEFT])
    if augmentation.flip_vertical:
        down = torch.where(drawn[Purpose.FLIP_VERTICAL][:, None] < 0.5, down.flip(1), down)
    if augmentation.flip_horizontal:
        across = torch.where(drawn[Purpose.FLIP_HORIZONTAL][:, None] < 0.5, across.flip(1), across)
    if recolours:
        contrast = drawn[Purpose.CONTRAST]
        matrix = _colour_matrix(augmentation.hue * drawn[Purpose.HUE], contrast)

    out = torch.empty(b, 3, h, w, device=images.device, memory_format=memory_format(images.device))
    at_once = max(1, b if images.device.type != "cpu" else BLOCK_PIXELS // max(1, h * w))
    for start in range(0, b, at_once):
        some = slice(start, start + at_once)
        x = to_float(_resample(images[some], down[some], across[some]) if moves else images[some])
        if recolours:
            x = _recolour(x, matrix[some], contrast[some])
        out[some] = normalise(x, mean, std)
    return out


def to_float(images: Tensor) -> Tensor:
    """uint8 (b, h, w, 3) in [0, 255] to float32 (b, 3, h, w) in [0, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Subtract `mean` from each channel and divide by `std`, (3,) each, in place. `images`: float32 (b, 3, h, w)."""
    centre, scale = (constant(tuple(x), images.dtype, images.device)[:, None, None] for x in (mean, std))
    return images.sub_(centre).div_(scale)


@cache  # a copy to a GPU for every batch would be waited for
def constant(numbers: Hashable, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor of numbers, (n,) or (n, m), that is made once and lies on the device from then on."""
    with torch.inference_mode(False):  # whoever asks first, all may use it
        return torch.tensor(numbers, dtype=dtype, device=device)


def uniforms(
    seed: int, epoch: int, purpose: int | NDArray[np.integer], indices: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) for images `indices`, (b,), hashed by SplitMix64 (Steele, Lea and Flood, 2014).

    `purpose` may be an array, with which `indices` are broadcast.
    """
    state = np.zeros(1, np.uint64)
    for word in (seed & 0xFFFF_FFFF_FFFF_FFFF, epoch, purpose):
        state = _mix(state ^ np.array(word, np.uint64))
    return (_mix(state ^ indices.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _positions(n: int, side: Tensor, place: Tensor) -> Tensor:
    """(b, n): where n pixels lie along an axis of n pixels, in a window of `side` at `place`, (b,) each in [0, 1]."""
    left = n * (1 - side) * place
    return left[:, None] + side[:, None] * (torch.arange(n, device=side.device) + 0.5) - 0.5


def _resample(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Bilinear interpolation of (b, h, w, 3) at the rows `down`, (b, h), and the columns `across`, (b, w).

    One axis after the other, each as the outer one, so that whole rows are copied: grid_sample, which gathers four
    pixels for each, takes twice as long.

    Returns:
        float32 (b, h, w, 3), in memory by columns.
    """
    rows = _interpolate(images, down)
    columns = _interpolate(rows.permute(0, 2, 3, 1).contiguous(), across)
    return columns.permute(0, 3, 1, 2)


def _interpolate(x: Tensor, positions: Tensor) -> Tensor:
    """Linear interpolation of (b, n, …) along n at `positions`, (b, m); constant beyond the ends. float32 (b, m, …)."""
    b, n = x.shape[:2]
    positions = positions.clamp(0, n - 1)
    before = positions.floor()
    weight = (positions - before).view(-1, 1)
    index = before.long() + n * torch.arange(b, device=x.device)[:, None]
    after = index + (before < n - 1)
    lines = x.reshape(b * n, -1)
    below, above = (lines.index_select(0, i.flatten()).float() for i in (index, after))
    return below.mul_(1 - weight).add_(above.mul_(weight)).view(b, -1, *x.shape[2:])


def _colour_matrix(turn: Tensor, contrast: Tensor) -> Tensor:
    """(b, 3, 3): what turns colours about the grey axis in YIQ and then scales them. (b,) each; `turn` in full turns."""
    cos, sin = torch.cos(2 * torch.pi * turn), torch.sin(2 * torch.pi * turn)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    to_yiq, to_rgb = (constant(matrix, turn.dtype, turn.device) for matrix in (YIQ_FROM_RGB, RGB_FROM_YIQ))
    return contrast[:, None, None] * (to_rgb @ rotation @ to_yiq)


def _recolour(images: Tensor, matrix: Tensor, contrast: Tensor) -> Tensor:
    """Turn and scale colours, with `matrix` (b, 3, 3), about the mean luma; clipped to [0, 1]."""
    pixels = images.flatten(2)
    mean_luma = constant(LUMA, images.dtype, images.device) @ pixels.mean(dim=2).T
    offset = ((1 - contrast) * mean_luma)[:, None, None]
    return torch.baddbmm(offset, matrix, pixels).clamp_(0, 1).view_as(images)
