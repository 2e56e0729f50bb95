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
from wsurgery.training.baseline_names import WORDS, Name

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
    baseline: Annotated[
        Name | None,
        typer.Option(help="Hold the AUC against a logistic regression on these features of the split train's images."),
    ] = None,
    force: Force = False,
    json: Json = False,
    *,
    of_run: OfRun,
) -> None:
    """Evaluate checkpoints: AUC for each label and their mean, with 95 % confidence intervals.

    One interval is DeLong's, the other a bootstrap's; both take patients as independent, and not the images of one, or
    images where no patient is known. The predictions hold each probability and its logit, from which the AUC is.
    A baseline is fitted to the images that a run was trained on, 16 x 16 pixels or histograms of 16 bins a channel: a network
    that does not beat it tells apart what needs no network. DeLong's paired test says so, with the interval of the difference.
    Where the labels are the five grades of retinopathy, also for the eyes to be referred: moderate or worse.

    Started by torchrun or srun, the processes share the images, and the result is one process's.

    Example: wsurgery eval run --data synthetic:fundus?n=2000 --predictions test.csv
    """
    from wsurgery import studies
    from wsurgery.checkpoint import AtomicFile
    from wsurgery.checkpoint.remote import without_secrets
    from wsurgery.checkpoint.writer import require_free
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
    targets = [Path(checkpoint).with_name(beside) for checkpoint in checkpoints] if beside else []
    if len(set(targets)) < len(targets):
        raise UsageError(
            f"--beside {beside}: two of these are in one folder: evaluate each by itself, with another name"
        )
    for target in targets:
        refuse_link(target)
        require_free(target, force=force)
    with joined() as processes:
        choose_device(device, processes)  # before images are decoded for one that is not there
        images = studies.Images(
            data, split=split, image_size=image_size, skip_bad=skip_bad, bad_list=bad_list, say=say, processes=processes
        )
        for i, (checkpoint, own) in enumerate(zip(checkpoints, models_for(checkpoints, model), strict=True)):
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
                baseline=baseline,
                force=force,
                say=say,
                processes=processes,
            )
            if not processes.is_first:
                continue
            if beside:
                with AtomicFile(targets[i], force=force) as stream:
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
    from wsurgery.statistics.delong import WITHOUT_INTERVAL

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
    beaten = result.get("baseline")
    if beaten:
        shown = f"macro, {beaten['name']}s", f"{beaten['macro_auc']:.4f}", words(beaten["macro_delong_ci"]), ""
        table.add_row(*shown)
    unit = result["independent"]
    rows = [*result["labels"].values(), *graded.values()]
    certain = any(label["auc"] is not None and label["ci"] is None and label["bootstrap_ci"] is None for label in rows)
    perfect = f". {WITHOUT_INTERVAL}" if certain else ""
    clustered = ": clustered DeLong (Obuchowski 1997)" if unit == "patients" else ""
    drawn = f"; the bootstrap draws {unit} {result['bootstrap']:,} times" if result["bootstrap"] else ""
    lost = f", {result['macro_left_out']:,} samples without both classes of each label left out of the macro AUC's"
    table.caption, table.caption_justify = (
        f"{Sample(result['n'], unit, result['units']).in_words()}, taken as independent{clustered}{drawn}"
        f"{lost if result['macro_left_out'] else ''}{perfect}{_against(beaten) if beaten else ''}",
        "left",
    )
    show_table(table)


def _against(baseline: dict[str, Any]) -> str:
    """Say how a network stands against a baseline, and where it does not beat it, what that means."""
    chosen = f"chosen on {baseline['penalty_chosen_on']}" if baseline["penalty_chosen_on"] else "not chosen"
    what = (
        f". Macro less that of a logistic regression on {WORDS[baseline['name']]} of {baseline['trained_on']:,} training images "
        f"(penalty {baseline['penalty']:g}, {chosen}): {baseline['difference']:+.4f}"
    )
    interval, p = baseline["ci"], baseline["p"]
    tested = f" ({interval[0]:+.4f} to {interval[1]:+.4f})" if interval else ", of too few for an interval"
    tested += f", p = {p:.2g}, DeLong's paired test" if p is not None else ""
    beats = interval is not None and interval[0] > 0
    return f"{what}{tested}." + (
        "" if beats else " That the network beats it is not shown: a claim about this network is worth little."
    )
