"""How far each block moved from one checkpoint to another."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from wsurgery.errors import UsageError
from wsurgery.figures.style import INK, PALETTE, WIDTH, add_title, house_style, plain_text

_MOST_BLOCKS = 200


@house_style
def draw_block_changes(changed: Mapping[str, Any], *, title: str = "") -> Figure:
    """Draw a bar for each block, in order from the top: ‖B − A‖ / ‖A‖ over all its elements.

    Args:
        changed: what `operations.changes.changes` returns.
        title: names A and B.

    Raises:
        UsageError: there are more blocks than a picture has room for.
    """
    rows = changed["blocks"]
    if len(rows) > _MOST_BLOCKS:
        raise UsageError(f"{len(rows)} blocks, and a picture has room for {_MOST_BLOCKS}: choose some with --blocks")
    figure = Figure(figsize=(WIDTH, 1.2 + 0.26 * len(rows)))
    axes = figure.subplots()
    values = [row["relative_l2"] or 0 for row in rows]
    axes.barh(range(len(rows)), values, height=0.7, color=PALETTE[1])
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        said = "undefined" if row["relative_l2"] is None else "identical" if row["identical"] else f"{value:.3g}"
        axes.annotate(
            f"{said}, n {row['compared']}",
            (value, i),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=INK,
        )
    axes.set_yticks(range(len(rows)), [plain_text(row["name"]) for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.25 * max(values, default=0) or 1)  # room for the words
    axes.set_axisbelow(True)
    axes.set_xlabel("relative L2 distance ‖B − A‖ / ‖A‖\n(n: tensors compared; one pair of checkpoints, no band)")
    add_title(figure, title)
    return figure
