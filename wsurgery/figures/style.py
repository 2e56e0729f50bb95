"""One look for every figure, and figures as files with the same bytes every time."""

import io
import re
from collections.abc import Iterable
from itertools import chain, count, product
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.transforms import Affine2D

from wsurgery.checkpoint import AtomicFile
from wsurgery.checkpoint.sink import write_all
from wsurgery.errors import UsageError, printable

INK = "#1f2328"
FAINT = "#8c959f"
# Okabe and Ito's colour-blind-safe palette without its yellow, which is lost on white.
PALETTE = (INK, "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_MARKERS = "os^DvPX"
_KNOWN = ("random", "transfer", "meanvar", "transfuse-block1", "gabor", "shuffle", "sample")
_SAME = {"pretrained-pair": "transfer", "random-pair": "random"}  # pairs of runs of these arms
_LONGEST = 40  # letters of a name
_DASHES = ("-", "--", ":", "-.")
WIDTH = 5.4  # inches
PAGE_WIDTH = 4.1  # of a figure that a page shows as wide as it is: on a phone its smallest letters are 10 pixels high
_NO_DATE = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_LOOK: Any = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "figure.titlesize": "medium",
    "font.size": 9,
    "grid.alpha": 0.3,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
    "savefig.transparent": False,
    "svg.hashsalt": "wsurgery",  # element ids are random without it
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

# A decorator: whatever makes or saves a figure runs in it, for matplotlib looks up most of this only then.
house_style = matplotlib.rc_context(_LOOK)


def line_styles(arms: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Give each arm its colour, line and marker, as keyword arguments of `Axes.plot`.

    The arms of the paper always have the same ones. Others share out, in alphabetical order, the colours that no arm here
    has, and then all of them again, with other dashes and other markers.
    """
    arms = set(arms)
    slots = {arm: i for i, arm in enumerate(_KNOWN) if arm in {_SAME.get(arm, arm) for arm in arms}}
    taken = set(slots.values())
    free = chain((i for i in range(len(PALETTE)) if i not in taken), count(len(PALETTE)))
    slots |= dict(zip(sorted(arms.difference(_KNOWN, _SAME)), free, strict=False))
    styles: dict[str, dict[str, Any]] = {}
    for arm, slot in slots.items():
        lap, colour = divmod(slot, len(PALETTE))
        marker, dashes = _MARKERS[(colour + 3 * lap) % len(_MARKERS)], _DASHES[lap % len(_DASHES)]
        styles[arm] = {"color": PALETTE[colour], "marker": marker, "linestyle": dashes}
    return {arm: styles[_SAME.get(arm, arm)] for arm in arms}


def add_legend(figure: Figure, axes: Axes, title: str = "", *, columns: int = 3) -> None:
    """Put the legend below the axes, whole, in as many columns as there is room for, and make the figure so much taller.

    Args:
        figure: its width stays.
        axes: whose lines the legend names.
        title: of the legend.
        columns: at most.
    """
    handles, labels = axes.get_legend_handles_labels()
    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    sizes = ("medium", "small", "x-small", "xx-small")
    for size, n in product(sizes, range(min(columns, len(labels)), 0, -1)):
        if size != "medium" and n > 1:
            continue
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=n, fontsize=size, title=_folded(title, figure), handlelength=3,
            title_fontsize="medium",
        )  # fmt: skip
        legend.get_title().set_multialignment("center")
        box = legend.get_window_extent(renderer)
        if box.width <= figure.bbox.width:
            break
        if (size, n) != (sizes[-1], 1):
            legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)


def add_title(figure: Figure, title: str) -> None:
    """Write a title above all axes, folded to the figure's width, if there is one."""
    if title:
        figure.suptitle(_folded(printable(title, 300).replace("$", r"\$"), figure))


def _folded(text: str, figure: Figure) -> str:
    return fill(text, int(12 * figure.get_figwidth()))  # letters an inch, at 9 points


def marker_points(marker: str, size: float) -> str:
    """Return a marker of matplotlib around 0, 0 as the points of an SVG polygon; `size` is that of matplotlib."""
    shape = MarkerStyle(marker)
    fine = shape.get_transform() + Affine2D().scale(100 * size, -100 * size)  # curves become lines of a unit's length
    polygons: Any = shape.get_path().transformed(fine).to_polygons()
    (points,) = polygons
    return " ".join(f"{x / 100:.2f},{y / 100:.2f}" for x, y in points[:: 1 + len(points) // 50])


def plain_text(text: str) -> str:
    """Show a name as it is: to matplotlib, dollars are mathematics and a leading underscore hides a legend entry."""
    text = printable(text, 1000)
    if len(text) > _LONGEST:  # names of one experiment often begin alike, and end otherwise
        text = f"{text[: _LONGEST // 2 - 1]}…{text[-_LONGEST // 2 :]}"
    text = text.replace("$", r"\$")
    return "\u200b" + text if text.startswith("_") else text


@house_style
def save(figure: Figure, path: Path, *, force: bool = False) -> None:
    """Write a figure as PDF, SVG or PNG, as the suffix of `path` says, atomically and without a date.

    Raises:
        UsageError: another suffix, or the file exists and `force` is off.
    """
    suffix = path.suffix.lower()
    if suffix not in _NO_DATE:
        raise UsageError(f"{printable(str(path))}: a figure is a .pdf, .svg or .png file")
    rendered = io.BytesIO()
    figure.savefig(rendered, format=suffix[1:], metadata=_NO_DATE[suffix])
    with AtomicFile(path, force=force) as stream:
        write_all(stream, rendered.getvalue())


@house_style
def inline_svg(figure: Figure, description: str) -> str:
    """Return a figure as an `<svg>` element for HTML, its ink in the page's own text colour.

    Args:
        figure: the figure; its size in inches is its largest size on the page.
        description: what a screen reader says instead; must be escaped already.
    """
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=_NO_DATE[".svg"], transparent=True)
    svg = text.getvalue().replace(INK, "currentColor")
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    width, height = figure.get_size_inches() * 72
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{description}">{body}'
