"""First-layer filters in a grid, and a grid as a PNG file: with numpy alone."""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsurgery.checkpoint import open_checkpoint
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.layers import image_convolution
from wsurgery.operations.scaled import require_unscaled


class FilterGrid(NamedTuple):
    """Filters of one checkpoint.

    Attributes:
        pixels: (rows·(kh+1) − 1, columns·(kw+1) − 1, 4), RGBA from 0 to 1; the gaps are transparent.
        scale: the weight that is shown as 1; 0 is a weight of −scale, mid-grey a weight of zero.
    """

    pixels: npt.NDArray[np.float64]
    scale: float


def read_first_filters(source: str | Path) -> npt.NDArray[np.float64]:
    """Read the convolution that meets the image, (out, in, kh, kw), from a safetensors file or `-`.

    Raises:
        UsageError: the network has no such convolution.
        WsurgeryError: a weight is not finite.
    """
    with open_checkpoint(source) as checkpoint:
        name = image_convolution(checkpoint)
        require_unscaled(checkpoint, [name])
        weight = checkpoint.read_array(name).astype(np.float64)
        checkpoint.finish()
    if not weight.size:
        raise UsageError(f"{checkpoint.label}: {printable(name)} is empty, {weight.shape}: there is nothing to draw")
    if not np.isfinite(weight).all():
        raise WsurgeryError(f"{checkpoint.label}: {printable(name)} has NaN or infinite weights, which have no colour")
    return weight


def filter_grid(weight: npt.NDArray[np.float64]) -> FilterGrid:
    """Lay filters out in a grid, by rows, with gaps of one pixel.

    One scale for all filters, the largest magnitude, so that they can be compared: pixel = 0.5 + weight / (2·scale).

    Args:
        weight: (out, in, kh, kw); three input channels are shown as red, green and blue, others as their mean in grey.
    """
    n, channels, kh, kw = weight.shape
    colours = weight if channels == 3 else weight.mean(axis=1, keepdims=True)
    scale = float(np.abs(colours).max())
    rgb = np.broadcast_to(0.5 + colours / (2 * scale or 1), (n, 3, kh, kw)).transpose(0, 2, 3, 1)
    columns = _columns(n)
    rows = -(-n // columns)
    pixels = np.zeros((rows, kh + 1, columns, kw + 1, 4))
    for i, tile in enumerate(rgb):
        pixels[i // columns, :kh, i % columns, :kw] = np.concatenate([tile, np.ones((kh, kw, 1))], axis=2)
    return FilterGrid(pixels.reshape(rows * (kh + 1), columns * (kw + 1), 4)[:-1, :-1], scale)


def _columns(n: int) -> int:
    """Choose a grid without holes that is no wider than 3 to 1, else one near a square."""
    square = int(np.ceil(np.sqrt(n)))
    return next((columns for columns in range(square, min(n, int(1.7 * square)) + 1) if n % columns == 0), square)


def png(pixels: npt.NDArray[np.float64]) -> bytes:
    """Write a picture, (height, width, 4), RGBA from 0 to 1, as a PNG file of 8 bits (ISO/IEC 15948)."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 4 * width), np.uint8)  # the first byte of each: no filter
    rows[:, 1:] = (pixels * 255).round().astype(np.uint8).reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    compressed = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")
