"""Convergence: AUC or loss against optimiser steps, one line an arm, with a band over its seeds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wsurgery.errors import UsageError, printable
from wsurgery.experiments.runs import Run, by_arm, shared
from wsurgery.figures.style import FAINT, WIDTH, add_legend, add_title, house_style, line_styles, plain_text
from wsurgery.figures.titles import networks_of_runs
from wsurgery.statistics.spread import SD_FROM, Spread, spread

Metric = Literal["auc", "loss"]
By = Literal["label", "block"]
Curve = Mapping[int, float]
_PANELS: dict[By, tuple[str, str]] = {  # what the vertical axis says, and what a log has to hold
    "label": ("AUC, validation split", "no label in common whose AUC is known"),
    "block": (
        "distance from init ‖W − W₀‖ / ‖W₀‖",
        "no block in common whose distance from initialisation was logged",
    ),
}
_MOST_PANELS = 30


def seed_curve(curves: Sequence[Curve], *, arm: str, what: str) -> dict[int, Spread]:
    """Summarise the runs of one arm at each step that all of them have. A run that stopped early ends the curve.

    Args:
        curves: optimiser step → value, of each run.
        arm: whose, for the message.
        what: the value's name, likewise.

    Raises:
        UsageError: there is no such step.
    """
    common = [step for step in curves[0] if all(step in curve for curve in curves)]
    if not common:
        raise UsageError(f"runs of {printable(arm)} share no step with a known {what}: draw them one by one")
    return {step: spread([curve[step] for curve in curves]) for step in common}


def smoothed(run: Run, factor: float) -> Run:
    """Return a run with each of its curves as an exponential moving average over what was logged, not over steps.

    Args:
        run: any.
        factor: the weight of the average so far, at least 0 and below 1; what is missing before the first point is
            corrected for, as in Adam (Kingma and Ba 2015, section 3).
    """

    def average(curve: Mapping[int, float]) -> dict[int, float]:
        found, total, weight = {}, 0.0, 0.0
        for step, value in curve.items():
            total, weight = factor * total + (1 - factor) * value, factor * weight + (1 - factor)
            found[step] = total / weight
        return found

    by_label, by_block = (
        {name: average(curve) for name, curve in curves.items()} for curves in (run.by_label, run.by_block)
    )
    return replace(run, auc=average(run.auc), loss=average(run.loss), by_label=by_label, by_block=by_block)


def band_words(sizes: Collection[int]) -> str:
    """Say what the bands are of lines with so many seeds; nothing where each has one."""
    words = {False: "smallest to largest seed", True: "±1 standard deviation of the seeds"}
    kinds = [words[large] for large in sorted({n >= SD_FROM for n in sizes if n > 1})]
    return f"band: {' or '.join(kinds)}{f' (from {SD_FROM} seeds on)' if len(kinds) > 1 else ''}" if kinds else ""


def band_caption(runs: Sequence[Run], *, smooth: float = 0) -> str:
    """Say what the bands are, and how the curves were smoothed, if they were."""
    sizes = [len(arm) for arm in by_arm(runs).values()]
    seeds = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    bands = band_words(sizes)
    said = f"mean of {seeds} seeds; {bands}" if bands else "one seed an arm, no band"
    return f"{said}; each seed smoothed: exponential moving average, factor {smooth:g}" if smooth else said


@house_style
def draw_curves(
    runs: Sequence[Run],
    *,
    metric: Metric = "auc",
    thresholds: Sequence[float] = (),
    smooth: float = 0,
    width: float = WIDTH,
) -> Figure:
    """Draw one line an arm: the mean over its seeds, with a band.

    Args:
        runs: any number of arms and seeds.
        metric: what to draw.
        thresholds: values at which to draw a dashed line; the middle one has its number at it.
        smooth: each seed by this factor, before the mean: see `smoothed`.
        width: in inches.
    """
    figure = Figure(figsize=(width, 0.6 * width))
    axes = figure.subplots()
    arms = by_arm([smoothed(run, smooth) for run in runs])
    curves = {arm: [getattr(run, metric) for run in members] for arm, members in arms.items()}
    _draw_lines(axes, curves, metric, line_styles(arms), markers=40)
    _draw_thresholds(axes, thresholds)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"macro AUC, {_split(runs)}" if metric == "auc" else _loss_label(runs))
    add_title(figure, networks_of_runs(run.folder for run in runs))
    add_legend(figure, axes, band_caption(runs, smooth=smooth))
    return figure


def _split(runs: Sequence[Run]) -> str:
    """Name the split of the AUCs of runs that have one."""
    name = runs[0].split
    return f"{'validation' if name == 'valid' else plain_text(name)} split"


def _loss_label(runs: Sequence[Run]) -> str:
    """Name the losses that runs were trained with, where each says which."""
    names = list(dict.fromkeys(run.loss_name for run in runs))
    return f"training loss ({' or '.join(names)}, nats)" if all(names) else "training loss"


@house_style
def draw_curves_by(
    by: By,
    runs: Sequence[Run],
    *,
    thresholds: Sequence[float] = (),
    smooth: float = 0,
    width: float = WIDTH,
) -> Figure:
    """Draw a panel for each label, of its own AUC, or for each block, of its distance from initialisation.

    Args:
        by: what has a panel and a vertical axis of its own: `Run.by_label`, or `Run.by_block`, of which a head's may be a
            hundred times a trunk's.
        runs: any number of arms and seeds.
        thresholds, smooth: as in `draw_curves`, the same in each panel.
        width: in inches.

    Raises:
        UsageError: the logs have no label or block in common, or more than a picture has room for.
    """
    axis, missing = _PANELS[by]
    names = shared([_curves_by(by, run) for run in runs])
    if not names:
        raise UsageError(f"the runs have {missing}: draw them without --by {by}")
    if len(names) > _MOST_PANELS:
        raise UsageError(f"{len(names)} {by}s, and a picture has room for {_MOST_PANELS}: leave --by {by} out")
    columns = min(3 if len(names) > 4 else 2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(width, 0.85 * width / columns * rows))
    arms = by_arm([smoothed(run, smooth) for run in runs])
    styles = line_styles(arms)
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
        curves = {arm: [_curves_by(by, run)[name] for run in members] for arm, members in arms.items()}
        _draw_lines(panel, curves, "distance" if by == "block" else "auc", styles, markers=40 // columns)
        _draw_thresholds(panel, thresholds)
        panel.set_title(plain_text(name), fontsize="medium")
    for panel in panels[len(names) :]:
        panel.remove()
    for panel in panels[max(0, len(names) - columns) : len(names)]:  # with none below it
        panel.xaxis.set_tick_params(labelbottom=True)
        panel.set_xlabel("optimiser steps")
    figure.supylabel(axis, fontsize="medium")
    add_title(figure, networks_of_runs(run.folder for run in runs))
    add_legend(figure, panels[0], band_caption(runs, smooth=smooth))
    return figure


def _curves_by(by: By, run: Run) -> Mapping[str, Curve]:
    return run.by_label if by == "label" else run.by_block


def _draw_lines(
    axes: Axes,
    arms: Mapping[str, Sequence[Curve]],
    what: str,
    styles: Mapping[str, dict[str, Any]],
    *,
    markers: int,
) -> None:
    """Draw one line an arm, with so many markers or somewhat more."""
    for arm, curves in arms.items():
        curve = seed_curve(curves, arm=arm, what=what)
        steps, points = list(curve), list(curve.values())
        every = 1 + len(steps) // markers  # markers on every logged loss would hide the line
        means = [point.mean for point in points]
        axes.plot(steps, means, label=plain_text(arm), markevery=every, **styles[arm])
        if len(curves) > 1:
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(steps, low, high, color=styles[arm]["color"], alpha=0.15, linewidth=0)


def _draw_thresholds(axes: Axes, thresholds: Sequence[float]) -> None:
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
