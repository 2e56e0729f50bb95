"""How weights are distributed: one histogram a checkpoint, on one axis (Raghu et al. 2019, figure 14)."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint, open_checkpoint
from wsurgery.checkpoint.dtypes import BITS, is_float
from wsurgery.checkpoint.spool import seekable
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.figures.style import PALETTE, WIDTH, add_legend, add_title, house_style, plain_text
from wsurgery.operations.layers import image_convolution
from wsurgery.operations.random_streams import chunk_slice, chunks
from wsurgery.operations.scaled import require_unscaled
from wsurgery.operations.statistics import Moments, moments


class Histogram(NamedTuple):
    """The weights of one checkpoint.

    Attributes:
        density: (bins,), integrates to 1 over the common edges.
        mean, std: of the weights.
        elements: how many there are.
        tensors: whose they are.
    """

    density: npt.NDArray[np.float64]
    mean: float
    std: float
    elements: int
    tensors: Sequence[str] = ()


def read_histograms(
    sources: Sequence[str | Path], *, selection: Selection | None, bins: int | None = None
) -> tuple[npt.NDArray[np.float64], list[Histogram]]:
    """Count the weights of several checkpoints in common bins, one tensor in memory at a time.

    Args:
        sources: safetensors files, folders of shards, URLs, or `-`.
        selection: whose floating-point tensors are counted; None for the weight of the first convolution.
        bins: of equal width, from the smallest weight of all to the largest; None for 2∛n (Rice's rule) of the fewest
            weights.

    Returns:
        The edges, (bins + 1,), and a histogram for each source.

    Raises:
        UsageError: nothing is selected, or nothing of it is floating point.
        WsurgeryError: a weight is not finite.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(open_checkpoint(source)) for source in sources]
        checkpoints = [stack.enter_context(seekable(checkpoint)) for checkpoint in opened]
        chosen = [_chosen(checkpoint, selection) for checkpoint in checkpoints]
        for checkpoint, names in zip(checkpoints, chosen, strict=True):
            require_unscaled(checkpoint, names)
        low, high = np.inf, -np.inf
        for checkpoint, names in zip(checkpoints, chosen, strict=True):
            for name in names:
                x = checkpoint.read_array(name)
                with np.errstate(invalid="ignore"):
                    ends = (float(x.min()), float(x.max())) if x.size else (np.inf, -np.inf)
                if x.size and not np.isfinite(ends).all():
                    raise WsurgeryError(f"{checkpoint.label}: {printable(name)} has NaN or infinite weights")
                low, high = min(low, ends[0]), max(high, ends[1])
        if low < high and not np.isfinite(high - low):
            raise WsurgeryError(f"weights from {low:g} to {high:g} are too far apart for bins of equal width")
        counts = [
            sum(checkpoint.tensors[name].elements for name in names)
            for checkpoint, names in zip(checkpoints, chosen, strict=True)
        ]
        bins = bins or max(2, round(2 * min(counts) ** (1 / 3)))
        edges = np.histogram_bin_edges([low, high] if low <= high else [], bins)
        return edges, [_count(*pair, edges) for pair in zip(checkpoints, chosen, strict=True)]


def _chosen(checkpoint: Checkpoint, selection: Selection | None) -> list[str]:
    tensors = checkpoint.tensors
    if selection is None:
        return [image_convolution(checkpoint)]
    try:
        names = [name for name in tensors if name in selection.names(tensors)]
    except UsageError as error:
        raise UsageError(f"{checkpoint.label}: {error}") from None
    found = [name for name in names if is_float(tensors[name].dtype) and BITS[tensors[name].dtype] >= 8]
    if not found:
        raise UsageError(f"{checkpoint.label}: the selected part has no floating-point tensors")
    return found


def _count(checkpoint: Checkpoint, names: Sequence[str], edges: npt.NDArray[np.float64]) -> Histogram:
    counts, whole = np.zeros(len(edges) - 1), Moments(0, 0.0, 0.0)
    for name in names:
        flat = checkpoint.read_array(name).reshape(-1)
        whole += moments(flat, map)
        for chunk in chunks(flat.size):
            counts += np.histogram(flat[chunk_slice(chunk)].astype(np.float64), edges)[0]
    density = counts / (max(whole.count, 1) * np.diff(edges))
    return Histogram(density, whole.mean, whole.std, whole.count, tuple(names))


@house_style
def draw_histograms(
    edges: npt.NDArray[np.float64], labelled: Sequence[tuple[str, Histogram]], *, log: bool = False, title: str = ""
) -> Figure:
    """Draw densities as steps on one axis, in the order given; `log` for a logarithmic density axis."""
    figure = Figure(figsize=(WIDTH, 0.6 * WIDTH))
    axes = figure.subplots()
    for i, (label, histogram) in enumerate(labelled):
        lap, colour = divmod(i, len(PALETTE))
        axes.stairs(
            histogram.density, edges, color=PALETTE[colour], linestyle=("-", "--", ":")[lap % 3], linewidth=1.4,
            label=f"{plain_text(label)}  (mean {histogram.mean:.2g}, std {histogram.std:.2g}, n {histogram.elements:,})",
        )  # fmt: skip
    axes.set_xlabel("weight")
    axes.set_ylabel("probability density")
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    add_title(figure, title)
    add_legend(figure, axes, columns=1)
    return figure
