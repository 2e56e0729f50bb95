"""`wsurgery histogram`: distributions of weights as a picture."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._pictures import labels_of
from wsurgery.commands._shared import Force, OfRun, Part, command


@command
def histogram(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT…", help="Checkpoints, or folders of runs.")],
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The figure: .pdf, .svg or .png.")],
    bins: Annotated[
        int | None, typer.Option(min=2, max=10_000, help="Bins, of equal width. Default: twice the cube root of n.")
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="A logarithmic axis of densities: shows the tails.")] = False,
    force: Force = False,
    *,
    part: Part,
    of_run: OfRun,
) -> None:
    """Draw how weights are distributed, checkpoints on one axis: the first convolution's, or the selected part's.

    Example: wsurgery histogram pretrained.safetensors meanvar.safetensors random.safetensors -o conv1.pdf
    """
    from wsurgery.figures.histograms import draw_histograms, read_histograms
    from wsurgery.figures.style import save

    checkpoints = of_run.of(checkpoints)
    selection = part.selection if part.selection.arguments else None
    edges, found = read_histograms(checkpoints, selection=selection, bins=bins)
    save(draw_histograms(edges, list(zip(labels_of(checkpoints), found, strict=True)), log=log), output, force=force)
