"""`wsurgery path`: what lies on the line between two networks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from wsurgery.commands._images import BadList, SkipBad
from wsurgery.commands._shared import (
    Data,
    Device,
    Force,
    Json,
    ModelOption,
    NetworkThreads,
    OfRun,
    command,
    print_table,
    say,
)


@command
def path(
    a: Annotated[str, typer.Argument(metavar="A", help="A checkpoint, or a run's folder.")],
    b: Annotated[str, typer.Argument(metavar="B", help="A checkpoint of the same architecture and as many classes.")],
    data: Data,
    points: Annotated[int, typer.Option(min=2, max=10_000, help="Points on the line, the ends with them.")] = 11,
    split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "test",
    recalibrate: Annotated[
        bool,
        typer.Option(
            help="Between the ends, set batch norm's running statistics to those of images of the split train."
        ),
    ] = True,
    images: Annotated[int, typer.Option(min=2, max=10**9, help="How many of them, in whole patients.")] = 512,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side. Default: as in training.")] = None,
    skip_bad: SkipBad = False,
    bad_list: BadList = None,
    arch: Annotated[str | None, typer.Option(help="The timm model, if a checkpoint does not say it.")] = None,
    model: ModelOption = None,
    device: Device = "auto",
    threads: NetworkThreads = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table with a line a point.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw loss and AUC along the line: .pdf, .svg or .png.")
    ] = None,
    force: Force = False,
    json: Json = False,
    *,
    of_run: OfRun,
) -> None:
    """Evaluate networks along the line from A to B, (1 - t) A + t B: loss and macro AUC, and the barrier between them.

    The ends are what eval finds of A and B; one that was never trained is evaluated as the other. The barrier is the largest
    excess of the loss, or of 1 - AUC, over the line between the ends' values (Entezari et al. 2022, arXiv 2110.06296; Frankle
    et al. 2020, arXiv 1912.05671): none says that the two are in one basin.

    Example: wsurgery path run1 run2 --data manifest.csv --plot path.pdf
    """
    from wsurgery import studies
    from wsurgery.errors import printable_json

    a, b = of_run.of([a, b])
    result = studies.path(
        a,
        b,
        data=data,
        points=points,
        split=split,
        recalibrate=recalibrate,
        images=images,
        image_size=image_size,
        skip_bad=skip_bad,
        bad_list=bad_list,
        arch=arch,
        model=model,
        device=device,
        threads=threads,
        csv=csv,
        plot=plot,
        force=force,
        say=say,
    )
    if json:
        typer.echo(printable_json(result))
        return
    rows = [[f"{point['t']:.4g}", f"{point['loss']:.4f}", _number(point["macro_auc"])] for point in result["points"]]
    print_table(["t", "loss", "macro AUC"], rows, left=())
    for name, barrier in result["barrier"].items():
        typer.echo(f"barrier of the {'loss' if name == 'loss' else 'error, 1 - macro AUC'}: {_barrier(barrier)}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _barrier(found: dict[str, Any] | None) -> str:
    return "–" if found is None else f"{found['value']:.4f}, at t = {found['t']:.4g}"
