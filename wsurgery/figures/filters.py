"""First-layer filters as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from wsurgery.anatomy import first_convolution
from wsurgery.checkpoint import open_checkpoint
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.figures.style import house_style
from wsurgery.operations.scaled import require_unscaled

_PIXELS = 64  # weights in an inch, at most: three dots each in a PNG file
_WIDEST = 10.0  # inches, of several panels beside each other


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
        try:
            name = first_convolution({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
        except UsageError as error:
            raise UsageError(f"{checkpoint.label}: {error}") from None
        require_unscaled(checkpoint, [name])
        weight = checkpoint.read_array(name).astype(np.float64)
        checkpoint.finish()
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


@house_style
def draw_filters(labelled: Sequence[tuple[str, npt.NDArray[np.float64]]]) -> Figure:
    """Draw the filters of several checkpoints side by side, each with its own scale.

    Args:
        labelled: for each checkpoint its label and its filters, (out, in, kh, kw).
    """
    grids = [(label, filter_grid(weight)) for label, weight in labelled]
    shapes = [grid.pixels.shape for _, grid in grids]
    wide = [max(2.2, columns / _PIXELS) for _, columns, _ in shapes]
    columns = max(1, min(len(grids), 4, int(_WIDEST / max(wide))))
    rows = -(-len(grids) // columns)
    widths = [max(wide[i::columns]) for i in range(columns)]
    heights = [
        max(wide[i] * shapes[i][0] / shapes[i][1] for i in range(row * columns, min((row + 1) * columns, len(grids))))
        + 0.5
        for row in range(rows)
    ]
    figure = Figure(figsize=(sum(widths), sum(heights)), layout=ConstrainedLayoutEngine(wspace=0.12))
    ratios = {"width_ratios": widths, "height_ratios": heights}
    panels = list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios).flat)
    for axes in panels:
        axes.set_axis_off()
        axes.set_anchor("N")  # those of a row begin on one line
    for axes, (label, grid) in zip(panels, grids, strict=False):
        axes.imshow(grid.pixels, interpolation="nearest")
        axes.set_title(f"{printable(label, 60)}\nblack to white: ±{grid.scale:.3g}".replace("$", r"\$"), fontsize=8)
    return figure


def _columns(n: int) -> int:
    """Choose a grid without holes that is no wider than 3 to 1, else one near a square."""
    square = int(np.ceil(np.sqrt(n)))
    return next((columns for columns in range(square, min(n, int(1.7 * square)) + 1) if n % columns == 0), square)
