"""`wsurgery eval`."""

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Seed,
    command,
    say,
    show_table,
)
from wsurgery.errors import UsageError

if TYPE_CHECKING:
    from wsurgery.statistics.bootstrap import Interval


@command
def eval(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Checkpoints, or folders of runs.")],
    data: Data,
    split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "test",
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write each image's probabilities and logits here.")
    ] = None,
    beside: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write each result as JSON to this name beside its checkpoint.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side. Default: as in training.")] = None,
    skip_bad: SkipBad = False,
    bad_list: BadList = None,
    arch: Annotated[str | None, typer.Option(help="The timm model, if a checkpoint does not say it.")] = None,
    model: ModelOption = None,
    device: Device = "auto",
    threads: NetworkThreads = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, max=1_000_000, metavar="N", help="Samples of the bootstrap; 0 for none.")
    ] = 2000,
    seed: Seed = 0,
    force: Force = False,
    json: Json = False,
    *,
    of_run: OfRun,
) -> None:
    """Evaluate checkpoints: AUC for each label and their mean, with 95 % confidence intervals.

    One interval is DeLong's, the other a bootstrap's; both take patients as independent, and not the images of one, or
    images where no patient is known. The predictions hold each probability and its logit, from which the AUC is.
    Where the labels are the five grades of retinopathy, also for the eyes to be referred: moderate or worse.

    Started by torchrun, the processes share the images, and the result is one process's.

    Example: wsurgery eval run --data synthetic:fundus?n=2000 --predictions test.csv
    """
    from wsurgery import studies
    from wsurgery.checkpoint import AtomicFile
    from wsurgery.checkpoint.remote import without_secrets
    from wsurgery.devices import choose_device
    from wsurgery.models import models_for
    from wsurgery.processes import joined
    from wsurgery.untrusted import refuse_link

    checkpoints = of_run.of(checkpoints)
    if len(checkpoints) > 1 and (predictions or (json and not beside)):
        raise UsageError("--predictions and --json are for one checkpoint; for several, write each with --beside NAME")
    if beside is not None and beside != Path(beside).name:
        raise UsageError(f"--beside {beside}: give a file name, without a folder")
    if beside is not None and any("://" in checkpoint for checkpoint in checkpoints):
        raise UsageError("--beside writes beside a file, and a URL is read only: use --json")
    for checkpoint in checkpoints if beside else ():
        refuse_link(Path(checkpoint).with_name(str(beside)))
    with joined() as processes:
        choose_device(device, processes)  # before images are decoded for one that is not there
        images = studies.Images(
            data, split=split, image_size=image_size, skip_bad=skip_bad, bad_list=bad_list, say=say, processes=processes
        )
        for checkpoint, own in zip(checkpoints, models_for(checkpoints, model), strict=True):
            result = studies.evaluate(
                checkpoint,
                data=images,
                split=split,
                predictions=predictions,
                arch=arch,
                model=own,
                device=device,
                threads=threads,
                bootstrap=bootstrap,
                seed=seed,
                force=force,
                say=say,
                processes=processes,
            )
            if not processes.is_first:
                continue
            if beside:
                with AtomicFile(Path(checkpoint).with_name(beside), force=force) as stream:
                    stream.write(dumps(result, indent=2).encode() + b"\n")
            if json:
                typer.echo(dumps(result, indent=2))
            else:
                _print_table(result, without_secrets(checkpoint) if len(checkpoints) > 1 else None)


def _print_table(result: dict[str, Any], title: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from wsurgery.errors import printable
    from wsurgery.statistics.bootstrap import Sample

    table = Table(title=Text(printable(title)) if title else None, box=None, header_style="bold", pad_edge=False)
    table.add_column("label")
    for column in ("AUC", "95 %, DeLong", "95 %, bootstrap"):
        table.add_column(column, justify="right")

    def words(interval: "Interval | None") -> str:
        return "–" if interval is None else "{:.4f} – {:.4f}".format(*interval)

    graded = {"referable": result["referable"]} if "referable" in result else {}
    for name, label in [*result["labels"].items(), *graded.items()]:
        auc = "–" if label["auc"] is None else f"{label['auc']:.4f}"
        table.add_row(Text(printable(name)), auc, words(label["ci"]), words(label["bootstrap_ci"]))
    if "top1" in result:
        table.add_row(Text("top-1 accuracy"), f"{result['top1']:.4f}", "", "")
    mean = result["macro_auc"]
    intervals = words(result["macro_delong_ci"]), words(result["macro_ci"])
    table.add_row(Text("macro"), "–" if mean is None else f"{mean:.4f}", *intervals)
    unit = result["independent"]
    clustered = ": clustered DeLong (Obuchowski 1997)" if unit == "patients" else ""
    drawn = f"; the bootstrap draws {unit} {result['bootstrap']:,} times" if result["bootstrap"] else ""
    lost = f", {result['macro_left_out']:,} samples without both classes of each label left out of the macro AUC's"
    table.caption, table.caption_justify = (
        f"{Sample(result['n'], unit, result['units']).in_words()}, taken as independent{clustered}{drawn}"
        f"{lost if result['macro_left_out'] else ''}",
        "left",
    )
    show_table(table)
