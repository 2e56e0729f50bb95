"""`augment` on a CUDA device, as two kernels in place of 86: one sums each image's luma as it will be, one writes the batch.

Both resample an image as they go: reading its bytes twice costs less than writing and reading it once in float32.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from wsurgery.data.augment import RGB_FROM_YIQ, YIQ_FROM_RGB, Augmentation, constant

_PIXELS = 1024  # of an image, that a program works on


def augment(
    images: Tensor,
    drawn: Tensor,
    augmentation: Augmentation,
    *,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
) -> Tensor:
    """Crop, flip, recolour and normalise a batch: as `wsurgery.data.augment.augment`, to rounding."""
    b, h, w, _ = images.shape
    images, drawn = images.contiguous(), drawn.contiguous()
    numbers = (*sum(YIQ_FROM_RGB, ()), *sum(RGB_FROM_YIQ, ()), *mean, *std)
    constants = constant(tuple(numbers), torch.float32, images.device)
    flips = {"FLIP_V": augmentation.flip_vertical, "FLIP_H": augmentation.flip_horizontal, "PIXELS": _PIXELS}
    grid = (triton.cdiv(h * w, _PIXELS), b)
    recolours = bool(augmentation.hue or augmentation.contrast)
    sums = torch.empty(grid[1], grid[0], device=images.device)
    if recolours:
        _sum_luma[grid](images, drawn, constants, sums, b, h, w, grid[0], **flips)
    mean_luma = sums.sum(1).div_(h * w)
    out = torch.empty(b, 3, h, w, device=images.device, memory_format=torch.channels_last)
    _write[grid](
        images, drawn, constants, mean_luma, out, b, h, w, 2 * torch.pi * augmentation.hue, RECOLOUR=recolours, **flips
    )
    return out


@triton.jit
def _resampled(images, drawn, n, pixel, inside, b, h, w, FLIP_V: tl.constexpr, FLIP_H: tl.constexpr):
    """Red, green and blue of an image's pixels, each in [0, 255], interpolated as rows first and then as columns."""
    y, x = pixel // w, pixel % w
    if FLIP_V:
        y = tl.where(tl.load(drawn + 4 * b + n) < 0.5, h - 1 - y, y)
    if FLIP_H:
        x = tl.where(tl.load(drawn + 3 * b + n) < 0.5, w - 1 - x, x)
    side, left, top = tl.load(drawn + n), tl.load(drawn + b + n), tl.load(drawn + 2 * b + n)
    down = h * (1 - side) * top + side * (y + 0.5) - 0.5
    across = w * (1 - side) * left + side * (x + 0.5) - 0.5
    down = tl.minimum(tl.maximum(down, 0.0), h - 1.0)
    across = tl.minimum(tl.maximum(across, 0.0), w - 1.0)
    row, column = tl.floor(down), tl.floor(across)
    of_row, of_column = down - row, across - column
    row, column = row.to(tl.int32), column.to(tl.int32)
    below, right = tl.minimum(row + 1, h - 1), tl.minimum(column + 1, w - 1)
    image = images + n.to(tl.int64) * h * w * 3
    upper_left, upper_right = image + (row * w + column) * 3, image + (row * w + right) * 3
    lower_left, lower_right = image + (below * w + column) * 3, image + (below * w + right) * 3
    red = _between(upper_left, upper_right, lower_left, lower_right, inside, of_row, of_column)
    green = _between(upper_left + 1, upper_right + 1, lower_left + 1, lower_right + 1, inside, of_row, of_column)
    blue = _between(upper_left + 2, upper_right + 2, lower_left + 2, lower_right + 2, inside, of_row, of_column)
    return red, green, blue


@triton.jit
def _between(upper_left, upper_right, lower_left, lower_right, inside, of_row, of_column):
    left = tl.load(upper_left, inside, 0).to(tl.float32) * (1 - of_row)
    left += tl.load(lower_left, inside, 0).to(tl.float32) * of_row
    right = tl.load(upper_right, inside, 0).to(tl.float32) * (1 - of_row)
    right += tl.load(lower_right, inside, 0).to(tl.float32) * of_row
    return left * (1 - of_column) + right * of_column


@triton.jit
def _sum_luma(
    images, drawn, constants, sums, b, h, w, parts, FLIP_V: tl.constexpr, FLIP_H: tl.constexpr, PIXELS: tl.constexpr
):
    part, n = tl.program_id(0), tl.program_id(1)
    pixel = part * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < h * w
    red, green, blue = _resampled(images, drawn, n, pixel, inside, b, h, w, FLIP_V, FLIP_H)
    luma = _weighed(constants, red, green, blue) / 255  # YIQ's first row
    tl.store(sums + n * parts + part, tl.sum(tl.where(inside, luma, 0.0), 0))


@triton.jit
def _write(
    images, drawn, constants, mean_luma, out, b, h, w, hue,
    RECOLOUR: tl.constexpr, FLIP_V: tl.constexpr, FLIP_H: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < h * w
    red, green, blue = _resampled(images, drawn, n, pixel, inside, b, h, w, FLIP_V, FLIP_H)
    red, green, blue = red / 255, green / 255, blue / 255
    if RECOLOUR:
        turn, contrast = hue * tl.load(drawn + 5 * b + n), tl.load(drawn + 6 * b + n)
        offset = (1 - contrast) * tl.load(mean_luma + n)
        luma = _weighed(constants, red, green, blue)
        in_phase, quadrature = _weighed(constants + 3, red, green, blue), _weighed(constants + 6, red, green, blue)
        cos, sin = tl.cos(turn), tl.sin(turn)
        turned, other = cos * in_phase - sin * quadrature, sin * in_phase + cos * quadrature
        red = _within(contrast * _weighed(constants + 9, luma, turned, other) + offset)
        green = _within(contrast * _weighed(constants + 12, luma, turned, other) + offset)
        blue = _within(contrast * _weighed(constants + 15, luma, turned, other) + offset)
    place = out + n.to(tl.int64) * h * w * 3 + pixel * 3
    mean, std = constants + 18, constants + 21
    tl.store(place, (red - tl.load(mean)) / tl.load(std), inside)
    tl.store(place + 1, (green - tl.load(mean + 1)) / tl.load(std + 1), inside)
    tl.store(place + 2, (blue - tl.load(mean + 2)) / tl.load(std + 2), inside)


@triton.jit
def _weighed(row, x, y, z):
    return tl.load(row) * x + tl.load(row + 1) * y + tl.load(row + 2) * z


@triton.jit
def _within(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)
