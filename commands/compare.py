"""`wsurgery compare`: do two runs, or two arms of several seeds, differ?"""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._images import BadList, SkipBad
from wsurgery.commands._shared import (
    Device,
    Json,
    ModelOption,
    NetworkThreads,
    OfRun,
    Seed,
    command,
    say,
    show_table,
    table_console,
)
from wsurgery.errors import printable, printable_json


@command
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run's folder, or an arm's with a folder a seed.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The same of what it is compared to.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Evaluate each run's best checkpoint on this data. Default: read the predictions.csv beside it.",
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Count steps to this validation macro AUC.")] = 0.9,
    split: Annotated[str, typer.Option(help="With --data: the split to evaluate on.")] = "test",
    image_size: Annotated[
        int | None, typer.Option(min=1, help="With --data: pixels a side. Default: as in training.")
    ] = None,
    skip_bad: SkipBad = False,
    bad_list: BadList = None,
    model: ModelOption = None,
    device: Device = "auto",
    threads: NetworkThreads = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, max=1_000_000, metavar="N", help="Samples of the bootstrap; 0 for none.")
    ] = 2000,
    seed: Seed = 0,
    json: Json = False,
    *,
    of_run: OfRun,
) -> None:
    """Compare two runs, or two arms: steps to a threshold, and AUC on the same images (paired DeLong test).

    Arms with the same seeds are compared seed by seed, by sign flips of log steps and of AUC: p is one-sided, 1/32 at least
    with 5 seeds. A run that never got to the threshold is shown as > its last step and counts as censored. Images of one
    patient are not taken for independent.

    Example: wsurgery compare runs/transfer runs/random --threshold 0.85 --data synthetic:fundus?n=2000
    """
    from wsurgery import studies
    from wsurgery.experiments.comparison import as_json
    from wsurgery.figures.comparison_tables import auc_table, steps_table

    steps, aucs, pairs = studies.compare_runs(
        a,
        b,
        data=data,
        threshold=threshold,
        split=split,
        image_size=image_size,
        skip_bad=skip_bad,
        bad_list=bad_list,
        model=model,
        device=device,
        threads=threads,
        bootstrap=bootstrap,
        seed=seed,
        which=of_run.which,
        say=say,
    )
    if json:
        typer.echo(printable_json(as_json(steps, aucs, pairs)))
        return
    console = table_console()
    console.print(f"A: {printable(str(a))}\nB: {printable(str(b))}\n", markup=False, highlight=False)
    show_table(steps_table(steps))
    if aucs:
        console.print()
        show_table(auc_table(aucs))
