"""First-layer filters as pictures."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from wsurgery.errors import printable
from wsurgery.figures.filter_grid import filter_grid
from wsurgery.figures.style import house_style

_PIXELS = 64  # weights in an inch, at most: three dots each in a PNG file
_LETTERS = 13  # an inch, at 8 points
_WIDEST = 10.0  # inches, of several panels beside each other


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
    for i, (axes, (label, grid)) in enumerate(zip(panels, grids, strict=False)):
        axes.imshow(grid.pixels, interpolation="nearest")
        name = fill(printable(label, 100), int(_LETTERS * widths[i % columns]))
        axes.set_title(f"{name}\nblack to white: ±{grid.scale:.3g}".replace("$", r"\$"), fontsize=8)
    return figure
