"""Convergence: AUC or loss against optimiser steps, one line an arm, with a band over its seeds."""

from collections.abc import Sequence
from typing import Literal

from matplotlib.figure import Figure

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.runs import Run, by_arm
from wsurgery.figures.style import FAINT, WIDTH, add_legend, add_title, house_style, line_styles, plain_text
from wsurgery.figures.titles import networks_of_runs
from wsurgery.statistics.spread import SD_FROM, Spread, spread

Metric = Literal["auc", "loss"]
_LABELS: dict[str, str] = {"auc": "macro AUC, validation split", "loss": "training loss (binary cross-entropy, nats)"}


def seed_curve(runs: Sequence[Run], metric: Metric) -> dict[int, Spread]:
    """Summarise the runs of one arm at each step that all of them have. A run that stopped early ends the curve.

    Raises:
        UsageError: there is no such step.
    """
    curves = [getattr(run, metric) for run in runs]
    common = [step for step in curves[0] if all(step in curve for curve in curves)]
    if not common:
        raise UsageError(f"runs of {printable(runs[0].arm)} share no step with a known {metric}: draw them one by one")
    return {step: spread([curve[step] for curve in curves]) for step in common}


def band_caption(runs: Sequence[Run]) -> str:
    """Say what the bands are."""
    sizes = [len(arm) for arm in by_arm(runs).values()]
    words = {False: "smallest to largest seed", True: "±1 standard deviation of the seeds"}
    kinds = [words[large] for large in sorted({n >= SD_FROM for n in sizes if n > 1})]
    seeds = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    if not kinds:
        return "one seed an arm, no band"
    return f"mean of {seeds} seeds; band: {' or '.join(kinds)}{f' (from {SD_FROM} seeds on)' if len(kinds) > 1 else ''}"


@house_style
def draw_curves(
    runs: Sequence[Run], *, metric: Metric = "auc", thresholds: Sequence[float] = (), width: float = WIDTH
) -> Figure:
    """Draw one line an arm: the mean over its seeds, with a band.

    Args:
        runs: any number of arms and seeds.
        metric: what to draw.
        thresholds: values at which to draw a dashed line; the middle one has its number at it.
        width: in inches.
    """
    arms = by_arm(runs)
    figure = Figure(figsize=(width, 0.6 * width))
    axes = figure.subplots()
    styles = line_styles(arms)
    for arm, members in arms.items():
        curve = seed_curve(members, metric)
        steps, points = list(curve), list(curve.values())
        every = 1 + len(steps) // 40  # markers on every logged loss would hide the line
        means = [point.mean for point in points]
        axes.plot(steps, means, label=plain_text(arm), markevery=every, **styles[arm])
        if len(members) > 1:
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(steps, low, high, color=styles[arm]["color"], alpha=0.15, linewidth=0)
    for threshold in thresholds:
        axes.axhline(threshold, color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
        if threshold != thresholds[len(thresholds) // 2]:  # labels of lines so near would lie on each other
            continue
        axes.annotate(
            f"{threshold:g}",
            (0.01, threshold),
            xycoords=("axes fraction", "data"),
            va="bottom",
            color=FAINT,
        )
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(_LABELS[metric])
    add_title(figure, networks_of_runs(run.folder for run in runs))
    add_legend(figure, axes, band_caption(runs))
    return figure
