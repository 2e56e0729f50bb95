"""Similarity of representations per layer, each value on the track from its floor to its ceiling."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure

from wsurgery.figures.runs import LayerScore
from wsurgery.figures.style import FAINT, house_style, line_styles, plain_text

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
def draw_similarities(series: Series) -> Figure:
    """Draw the mean similarity of each series at each layer.

    The whisker is the range over the seeds, or ± 1 standard error for one; the grey track runs from floor to ceiling.
    """
    figure = Figure(figsize=(5.4, 3.8))
    axes = figure.subplots()
    layers = layer_names(series)
    styles = line_styles(series)
    for i, (name, results) in enumerate(series.items()):
        shift = (i - (len(series) - 1) / 2) * 0.8 / len(series)
        at = {layer: x + shift for x, layer in enumerate(layers)}
        floors, ceilings = layer_means(results, "floor"), layer_means(results, "ceiling")
        tracks = [layer for layer in floors if layer in ceilings]
        axes.vlines(
            [at[layer] for layer in tracks],
            [floors[layer] for layer in tracks],
            [ceilings[layer] for layer in tracks],
            color=FAINT,
            alpha=0.35,
            linewidth=5,
        )
        means = layer_means(results, "value")
        whiskers = [_whisker(results, layer, mean) for layer, mean in means.items()]
        axes.errorbar(
            [at[layer] for layer in means],
            list(means.values()),
            yerr=[[low for low, _ in whiskers], [high for _, high in whiskers]],
            label=plain_text(name),
            elinewidth=1,
            **{**styles[name], "linestyle": "none"},
        )
    axes.set_xticks(range(len(layers)), [plain_text(layer) for layer in layers])
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("mean canonical correlation")
    figure.legend(loc="outside lower center", ncols=min(len(series), 3))
    return figure


def _whisker(results: Sequence[Sequence[LayerScore]], name: str, mean: float) -> tuple[float, float]:
    """Return how far to reach below and above the mean."""
    layers = [layer for result in results for layer in result if layer.layer == name]
    if len(layers) == 1:
        return (layers[0].se or 0.0,) * 2
    values = [layer.value for layer in layers if layer.value is not None]
    return mean - min(values), max(values) - mean
