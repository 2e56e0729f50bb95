"""Loss and AUC along the line between two networks."""

from collections.abc import Mapping
from math import nan
from typing import Any

from matplotlib.figure import Figure

from wsurgery.figures.style import FAINT, INK, WIDTH, add_title, house_style


@house_style
def draw_path(result: Mapping[str, Any], *, title: str = "") -> Figure:
    """Draw what `wsurgery.path` returns: a panel for the loss and one for the macro AUC, with the line between the ends."""
    figure = Figure(figsize=(WIDTH, 0.8 * WIDTH))
    points = result["points"]
    at = [point["t"] for point in points]
    for axes, key, words in zip(
        figure.subplots(2, 1, sharex=True), ("loss", "macro_auc"), ("loss (nats)", "macro AUC"), strict=True
    ):
        values = [nan if point[key] is None else point[key] for point in points]
        axes.plot((0, 1), (values[0], values[-1]), color=FAINT, linestyle="--", linewidth=1)
        axes.plot(at, values, color=INK, marker="o")
        axes.set_ylabel(words)
    axes.set_xlabel(
        f"t, from A (0) to B (1)\ndashed: the line between the ends; n {result['n']:,} images; one pair, no band"
    )
    add_title(figure, title)
    return figure
