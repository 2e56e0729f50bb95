"""Similarity of representations: along the layers between floor and ceiling, or every layer against every other."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from wsurgery.experiments.cca import Comparison, layer_names, metric_of, standard_error
from wsurgery.figures.curves import band_words
from wsurgery.figures.style import WIDTH, add_legend, add_title, house_style, line_styles, plain_text
from wsurgery.similarity.metric_names import METRICS
from wsurgery.statistics.spread import spread

if TYPE_CHECKING:
    from wsurgery.similarity.results import LayerSimilarity


@house_style
def draw_layers(found: "Sequence[LayerSimilarity]", *, title: str = "") -> Figure:
    """Draw the similarity of two networks along their layers, a line a metric.

    The whisker is ± 1 standard error. Dotted lines in its colour are its floor and ceiling.
    """
    figure = Figure(figsize=(WIDTH, 0.6 * WIDTH))
    axes = figure.subplots()
    layers = list(dict.fromkeys(x.layer for x in found))
    metrics = list(dict.fromkeys(x.metric for x in found))
    styles = line_styles(metrics)
    for metric in metrics:
        results = [x for x in found if x.metric == metric]
        at = [layers.index(x.layer) for x in results]
        floors, values, ceilings = (
            [nan if y is None else y for y in ys]
            for ys in zip(*((x.floor, x.value, x.ceiling) for x in results), strict=True)
        )
        for bound in (floors, ceilings):
            axes.plot(at, bound, color=styles[metric]["color"], linestyle=":", linewidth=1)
        errors = [x.se or 0.0 for x in results]
        axes.errorbar(at, values, yerr=errors, label=_words(metric), elinewidth=1, **styles[metric])
    axes.set_xticks(range(len(layers)), [plain_text(layer) for layer in layers])
    if sum(map(len, layers)) > 60:  # characters that fit side by side
        axes.tick_params(axis="x", rotation=90)
    axes.set_ylim(min(axes.get_ylim()[0], 0.0), 1.02)  # two pictures can be compared; an unbiased score can be negative
    axes.set_ylabel(_words(metrics[0]) if len(metrics) == 1 else "similarity")
    axes.set_xlabel("layer")
    axes.grid(axis="x", visible=False)
    add_title(figure, title)
    images = sorted({x.images for x in found if x.images})
    n = f"n {' to '.join(f'{n:,}' for n in dict.fromkeys((images[0], images[-1])))} images; " if images else ""
    add_legend(figure, axes, f"{n}dotted: floor and ceiling; whisker: ± 1 standard error")
    return figure


@house_style
def draw_matrix(found: "Sequence[LayerSimilarity]", *, title: str = "") -> Figure:
    """Draw the similarity of every layer of A to every layer of B as a heat map, a panel a metric.

    It is the place of each value between its floor, 0, and its ceiling, 1: the floor is not the same for all layers.
    """
    metrics = list(dict.fromkeys(x.metric for x in found))
    in_a, in_b = (list(dict.fromkeys(layers)) for layers in zip(*((x.layer_a, x.layer_b) for x in found), strict=True))
    wide, high = 1.6 + 0.42 * len(in_b), 1.2 + 0.42 * len(in_a)
    figure = Figure(figsize=(max(wide, 3.4) * len(metrics), max(high, 3.2)))
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        values = {(x.layer_a, x.layer_b): x.normalised for x in found if x.metric == metric}
        grid = [[nan if (y := values[a, b]) is None else y for b in in_b] for a in in_a]
        image = axes.imshow(grid, vmin=0, vmax=1, cmap="cividis", origin="lower")
        for row, scores in enumerate(grid):
            for column, score in enumerate(scores):
                if score == score:
                    colour = "white" if score < 0.5 else "black"
                    axes.text(column, row, f"{score:.2f}", ha="center", va="center", size=6, color=colour)
        axes.set_xticks(range(len(in_b)), [plain_text(layer) for layer in in_b], rotation=90)
        axes.set_yticks(range(len(in_a)), [plain_text(layer) for layer in in_a])
        axes.grid(visible=False)
        axes.set_title(_words(metric), size="medium")
        axes.set_xlabel("layer of B")
        axes.set_ylabel("layer of A")
    figure.colorbar(image, ax=figure.axes, label="0: floor, 1: ceiling", shrink=0.8)
    add_title(figure, title)
    return figure


@house_style
def draw_comparisons(shown: Mapping[str, Comparison], *, title: str = "", width: float = WIDTH) -> Figure:
    """Draw the mean similarity of each comparison along the layers, a line each with a band over its seeds.

    Dotted lines in its colour are its floor and ceiling. Made once, it has whiskers of ± 1 standard error instead.

    Args:
        shown: label → comparison.
        title: of the figure.
        width: in inches.
    """
    figure = Figure(figsize=(width, 0.6 * width))
    axes = figure.subplots()
    layers = layer_names({label: comparison.results for label, comparison in shown.items()})
    styles = line_styles(shown)
    for label, comparison in shown.items():
        colour, means = styles[label]["color"], comparison.means()
        at = [layers.index(layer) for layer in means]
        for bound in ("floor", "ceiling"):
            bounds = comparison.means(bound)
            where = [layers.index(layer) for layer in bounds]
            axes.plot(where, list(bounds.values()), color=colour, linestyle=":", linewidth=1)
        errors = None
        if len(comparison.by_seed) == 1:
            errors = [standard_error(comparison, layer) or 0.0 for layer in means]
        else:
            spreads = [spread(list(comparison.values(layer).values())) for layer in means]
            low, high = [x.low for x in spreads], [x.high for x in spreads]
            axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.errorbar(at, list(means.values()), yerr=errors, label=plain_text(label), elinewidth=1, **styles[label])
    axes.set_xticks(range(len(layers)), [plain_text(layer) for layer in layers])
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(plain_text(metric_of(shown.values())))
    axes.set_xlabel("layer")
    add_title(figure, title)
    sizes = [len(comparison.by_seed) for comparison in shown.values()]
    seeds = " to ".join(dict.fromkeys((str(min(sizes)), str(max(sizes)))))
    whisker = "whisker: ±1 standard error" if 1 in sizes else ""
    said = ("dotted: floor and ceiling", f"n {seeds} seed{'s' if max(sizes) > 1 else ''}", band_words(sizes), whisker)
    add_legend(figure, axes, "; ".join(filter(None, said)))
    return figure


def _words(metric: str) -> str:
    return plain_text(METRICS.get(metric, metric))
