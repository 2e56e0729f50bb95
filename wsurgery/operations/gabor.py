"""Gabor filters for the first convolution: the paper's synthetic conv1 (appendix F.3)."""

import math

import numpy as np
from numpy.typing import NDArray

from wsurgery.errors import WsurgeryError
from wsurgery.operations.arrays import Array
from wsurgery.operations.cast import round_once
from wsurgery.operations.statistics import moments

ANGLES, SIGMA, FREQUENCIES = 16, 2.0, (0.08, 0.16, 0.25, 0.32)  # cycles per pixel
_RESIZE, _CROP = 10, 7  # the paper resizes each kernel to 10 × 10 and keeps the middle 7 × 7

Image = NDArray[np.float64]


def gabor(x: Array) -> Array:
    """Replace a first convolution by Gabor filters, the same in every input channel.

    The scale is one factor for all filters: it gives the new weights the standard deviation of those they replace. (The
    paper says "to match the numerical magnitudes of the learned Gabor filters" and not how.)

    Args:
        x: (out, in, k, k), floating point. The paper's bank has 64 filters; fewer are spread evenly over it, more repeat it.

    Returns:
        Same shape and dtype.

    Raises:
        WsurgeryError: the kernel is not square, or the weights are not floating point, or not finite.
    """
    if x.dtype.kind in "?biuc":
        raise WsurgeryError(f"is {x.dtype}: Gabor filters need floating-point weights")
    out, channels, height, width = x.shape
    if height != width:
        raise WsurgeryError(f"is {x.shape}: Gabor filters need a square kernel")
    filters = np.repeat(gabor_bank(height)[_spread(out), None], channels, axis=1)
    scale = moments(x, map).std
    if not math.isfinite(scale):
        raise WsurgeryError(
            "holds NaN or infinity, so it has no variance for the filters to take: leave it out with --except"
        )
    filters *= scale / filters.std()
    return round_once(filters, x.dtype)


def gabor_bank(size: int) -> Image:
    """Return the paper's 64 filters, (64, size, size): frequencies outermost, then angles."""
    resize = round(size * _RESIZE / _CROP)
    start = (resize - size) // 2
    middle = slice(start, start + size)
    return np.stack(
        [
            _resize(_gabor_kernel(frequency, angle * math.pi / ANGLES), resize)[middle, middle]
            for frequency in FREQUENCIES
            for angle in range(ANGLES)
        ]
    )


def _spread(filters: int) -> list[int]:
    """Choose filters of the bank: equally many of each frequency, their angles even and staggered between frequencies."""
    n = len(FREQUENCIES)
    if filters >= n * ANGLES:
        return [i % (n * ANGLES) for i in range(filters)]
    chosen = []
    for f in range(n):
        count = filters * (f + 1) // n - filters * f // n
        chosen += [f * ANGLES + int((j + f / n) * ANGLES / count) for j in range(count)]
    return chosen


def _gabor_kernel(frequency: float, theta: float) -> Image:
    """Real part of a complex Gabor kernel, cut at three standard deviations, as skimage.filters.gabor_kernel gives it."""
    half = math.ceil(max(abs(3 * SIGMA * math.cos(theta)), abs(3 * SIGMA * math.sin(theta)), 1))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    along = x * math.cos(theta) + y * math.sin(theta)
    envelope = np.exp(-(x * x + y * y) / (2 * SIGMA * SIGMA)) / (2 * math.pi * SIGMA * SIGMA)
    return np.asarray(envelope * np.cos(2 * math.pi * frequency * along))


def _resize(image: Image, size: int) -> Image:
    """Resize a square image as skimage.transform.resize does: Gaussian against aliasing, then bilinear."""
    matrix = _resize_matrix(len(image), size)
    return np.asarray(matrix @ image @ matrix.T)


def _resize_matrix(old: int, new: int) -> Image:
    factor = old / new
    at = (np.arange(new) + 0.5) * factor - 0.5  # those beyond the image are in the margin, which is cropped
    low = np.minimum(at.astype(int), old - 2)
    bilinear = np.zeros((new, old))
    bilinear[np.arange(new), low] = 1 - (at - low)
    bilinear[np.arange(new), low + 1] = at - low
    sigma = max(0.0, (factor - 1) / 2)
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return bilinear
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    blur = np.zeros((old, old))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        mirrored = np.abs(np.arange(old) + offset)
        mirrored = np.where(mirrored >= old, 2 * (old - 1) - mirrored, mirrored)
        blur[np.arange(old), mirrored] += weight
    return np.asarray(bilinear @ blur)
