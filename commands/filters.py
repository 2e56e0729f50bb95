"""`wsurgery filters`: first-layer filters as pictures."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._pictures import labels_of
from wsurgery.commands._shared import Force, OfRun, command


@command
def filters(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT…", help="Checkpoints, or folders of runs.")],
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The figure: .pdf, .svg or .png.")],
    force: Force = False,
    *,
    of_run: OfRun,
) -> None:
    """Draw the filters of the first convolution, checkpoints side by side, each with one scale for all its filters.

    Example: wsurgery filters run/init.safetensors run -o filters.png
    """
    from wsurgery.figures.filter_grid import read_first_filters
    from wsurgery.figures.filters import draw_filters
    from wsurgery.figures.style import save
    from wsurgery.figures.titles import network_names

    checkpoints = of_run.of(checkpoints)
    names = [network_names([source]) for source in checkpoints]
    labels = [f"{label} ({name})" if name else label for label, name in zip(labels_of(checkpoints), names, strict=True)]
    labelled = [(label, read_first_filters(source)) for label, source in zip(labels, checkpoints, strict=True)]
    save(draw_filters(labelled), output, force=force)
