"""`wsurgery histogram`: distributions of weights as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsurgery.commands._pictures import labels_of
from wsurgery.commands._shared import Force, OfRun, Part, command

if TYPE_CHECKING:
    from wsurgery.anatomy import Selection
    from wsurgery.figures.histograms import Histogram


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
    from wsurgery.figures.titles import network_names

    checkpoints = of_run.of(checkpoints)
    selection = part.selection if part.selection.arguments else None
    edges, found = read_histograms(checkpoints, selection=selection, bins=bins)
    labelled = list(zip(labels_of(checkpoints), found, strict=True))
    names = network_names(checkpoints)
    what = _what(found, selection)
    save(draw_histograms(edges, labelled, log=log, title=f"{names}: {what}" if names else what), output, force=force)


def _what(found: "Sequence[Histogram]", selection: "Selection | None") -> str:
    if selection is None:
        return f"the first convolution only ({', '.join(dict.fromkeys(name for one in found for name in one.tensors))})"
    numbers = dict.fromkeys(len(one.tensors) for one in found)
    return f"{' and '.join(map(str, numbers))} tensors: {' '.join(selection.arguments)}"
