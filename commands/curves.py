"""`wsurgery curves`: AUC or loss against optimiser steps."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from wsurgery.commands._shared import Force, command


@command
def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, ARM/SEED: one line an ARM.")],
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The figure: .pdf, .svg or .png.")],
    metric: Annotated[Literal["auc", "loss"], typer.Option(help="What to draw.")] = "auc",
    by: Annotated[
        Literal["label", "block"] | None,
        typer.Option(
            help="A panel for each label, of its own AUC, or for each block, of its parameters' relative L2 distance from "
            "initialisation."
        ),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Draw a line at this value.")] = None,
    smooth: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.999,
            help="Smooth each seed: an exponential moving average over its logged points, of this factor.",
        ),
    ] = 0,
    force: Force = False,
) -> None:
    """Draw convergence curves: the mean over the seeds of each arm, with a band.

    Example: wsurgery curves runs/random/* runs/transfer/* -o curves.pdf --threshold 0.9

    Example: wsurgery curves runs/*/1 -o loss.png --metric loss --smooth 0.9

    Example: wsurgery curves runs/random/* runs/transfer/* -o moved.png --by block
    """
    from wsurgery.errors import UsageError
    from wsurgery.experiments.runs import read_run, require_alike, require_one_split, told_apart
    from wsurgery.figures.curves import draw_curves, draw_curves_by
    from wsurgery.figures.style import save

    if by and metric == "loss":
        raise UsageError(f"--metric loss is of the whole network: leave it out with --by {by}")
    found = told_apart([read_run(run) for run in runs])
    require_alike(found)
    if metric == "auc" and by != "block":
        require_one_split(found)
    thresholds = [] if threshold is None else [threshold]
    if by:
        figure = draw_curves_by(by, found, thresholds=thresholds, smooth=smooth)
    else:
        figure = draw_curves(found, metric=metric, thresholds=thresholds, smooth=smooth)
    save(figure, output, force=force)
