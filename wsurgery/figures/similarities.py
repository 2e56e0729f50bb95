"""Similarity of representations: along the layers between floor and ceiling, or every layer against every other."""

from collections.abc import Mapping, Sequence
from math import nan
from statistics import fmean
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from wsurgery.figures.runs import LayerScore
from wsurgery.figures.style import house_style, line_styles, plain_text

if TYPE_CHECKING:
    from wsurgery.similarity.results import LayerSimilarity

Series = Mapping[str, Sequence[Sequence[LayerScore]]]  # name → one result for each seed


def layer_names(series: Series) -> list[str]:
    """Name the layers of all results, from the lowest up."""
    return list(dict.fromkeys(layer.layer for results in series.values() for result in results for layer in result))


def layer_means(results: Sequence[Sequence[LayerScore]], field: str) -> dict[str, float]:
    """Average `field` over the seeds, for each layer where every seed has it."""
    found: dict[str, list[float | None]] = {}
    for result in results:
        for layer in result:
            found.setdefault(layer.layer, []).append(getattr(layer, field))
    means = {}
    for layer_name, values in found.items():
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(results):
            means[layer_name] = fmean(numbers)
    return means


@house_style
def draw_layers(found: "Sequence[LayerSimilarity]") -> Figure:
    """Draw the similarity of two networks along their layers, a line a metric.

    The whisker is ± 1 standard error. The band runs from the floor to the ceiling, in the metric's colour.
    """
    figure = Figure(figsize=(5.4, 3.8))
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
        axes.fill_between(at, floors, ceilings, color=styles[metric]["color"], alpha=0.12, linewidth=0)
        for bound in (floors, ceilings):
            axes.plot(at, bound, color=styles[metric]["color"], linewidth=0.6)
        errors = [x.se or 0.0 for x in results]
        axes.errorbar(at, values, yerr=errors, label=plain_text(metric), elinewidth=1, **styles[metric])
    axes.set_xticks(range(len(layers)), [plain_text(layer) for layer in layers])
    if sum(map(len, layers)) > 60:  # characters that fit side by side
        axes.tick_params(axis="x", rotation=90)
    axes.set_ylim(min(axes.get_ylim()[0], 0.0), 1.02)  # two pictures can be compared; an unbiased score can be negative
    axes.set_ylabel("similarity")
    title = "whisker: ± 1 standard error; band: from floor to ceiling"
    figure.legend(loc="outside lower center", ncols=min(len(metrics), 3), title=title, title_fontsize="small")
    return figure


@house_style
def draw_matrix(found: "Sequence[LayerSimilarity]") -> Figure:
    """Draw the similarity of every layer of A to every layer of B as a heat map, a panel a metric."""
    metrics = list(dict.fromkeys(x.metric for x in found))
    in_a, in_b = (list(dict.fromkeys(layers)) for layers in zip(*((x.layer_a, x.layer_b) for x in found), strict=True))
    wide, high = 1.6 + 0.42 * len(in_b), 1.2 + 0.42 * len(in_a)
    figure = Figure(figsize=(max(wide, 2.8) * len(metrics), max(high, 2.4)))
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        values = {(x.layer_a, x.layer_b): x.value for x in found if x.metric == metric}
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
        axes.set_title(plain_text(metric), size="medium")
        axes.set_xlabel("layer of B")
        axes.set_ylabel("layer of A")
    figure.colorbar(image, ax=figure.axes, label="similarity", shrink=0.8)
    return figure
