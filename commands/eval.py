"""`wsurgery eval`."""

import os
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.commands._images import SkipBad, say_skipped
from wsurgery.commands._shared import Data, Device, Force, Json, Threads, command, table_console
from wsurgery.errors import UsageError, WsurgeryError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from wsurgery.data.dataset import Dataset


@command
def eval(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="The checkpoints to evaluate.")],
    data: Data,
    split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "test",
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write each image's probabilities here.")
    ] = None,
    beside: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write each result as JSON to this name beside its checkpoint.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side. Default: the images' own.")] = None,
    skip_bad: SkipBad = False,
    arch: Annotated[str | None, typer.Option(help="The timm model, if a checkpoint does not say it.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Evaluate checkpoints: AUC for each label with its 95 % confidence interval (DeLong), and their mean.

    Where the labels are the five grades of retinopathy, also for the eyes to be referred: moderate or worse.

    Example: wsurgery eval run/best.safetensors --data synthetic:fundus?n=2000 --predictions test.csv
    """
    import torch

    from wsurgery.checkpoint import AtomicFile
    from wsurgery.checkpoint.remote import without_secrets
    from wsurgery.data.dataset import load_dataset
    from wsurgery.models import load
    from wsurgery.training.predict import choose_device, predict

    if len(checkpoints) > 1 and (predictions or (json and not beside)):
        raise UsageError("--predictions and --json are for one checkpoint; for several, write each with --beside NAME")
    if beside is not None and beside != Path(beside).name:
        raise UsageError(f"--beside {beside}: give a file name, without a folder")
    if beside is not None and any("://" in checkpoint for checkpoint in checkpoints):
        raise UsageError("--beside writes beside a file, and a URL is read only: use --json")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    where = choose_device(device)
    dataset = load_dataset(data, split=split, image_size=image_size, skip_bad=skip_bad)
    say_skipped(split, dataset.skipped)
    for checkpoint in checkpoints:
        label = without_secrets(checkpoint)
        logits = predict(load(checkpoint, arch).to(where), dataset, device=where)
        result = _evaluate(logits, dataset, label, split)
        if predictions:
            _write_predictions(predictions, dataset, logits, force=force)
        if beside:
            with AtomicFile(Path(checkpoint).with_name(beside), force=force) as stream:
                stream.write(dumps(result, indent=2).encode() + b"\n")
        if json:
            typer.echo(dumps(result, indent=2))
        else:
            _print_table(result, label if len(checkpoints) > 1 else None)


def _evaluate(logits: "NDArray[np.float32]", dataset: "Dataset", label: str, split: str) -> dict[str, Any]:
    from wsurgery.data.grades import referable
    from wsurgery.training.metrics import auc_per_label, delong_interval, macro

    if logits.shape[1] != len(dataset.label_names):
        raise WsurgeryError(f"{label} has {logits.shape[1]} outputs, the data {len(dataset.label_names)} labels")
    aucs = auc_per_label(dataset.labels, logits, dataset.label_names)
    intervals = [delong_interval(dataset.labels[:, i], logits[:, i]) for i in range(len(aucs))]
    result: dict[str, Any] = {
        "labels": {name: {"auc": aucs[name], "ci": interval} for name, interval in zip(aucs, intervals, strict=True)},
        "macro_auc": macro(aucs),
        "n": len(dataset.images),
        "split": split,
    }
    graded = referable(dataset.label_names, dataset.labels, logits)
    if graded:
        truth, score = graded
        auc = auc_per_label(truth[:, None], score[:, None], ["referable"])["referable"]
        result["referable"] = {"auc": auc, "ci": delong_interval(truth, score)}
    return result


def _write_predictions(path: Path, dataset: "Dataset", logits: "NDArray[np.float32]", *, force: bool) -> None:
    import csv
    import io

    import numpy as np

    from wsurgery.checkpoint import AtomicFile
    from wsurgery.data.grades import referable

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = dataset.label_names
    graded = referable(names, dataset.labels, logits)
    added = ["referable", "p_referable"] if graded else []
    writer.writerow(["path", "patient", *names, *(f"p_{name}" for name in names), *added])
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    rows = zip(dataset.paths, dataset.patients, dataset.labels, probabilities, strict=True)
    for row, (image, patient, labels, scores) in enumerate(rows):
        known = ["" if np.isnan(label) else int(label) for label in labels]
        referred = []
        if graded:
            truth, log_odds = graded[0][row], graded[1][row]
            referred = ["" if np.isnan(truth) else int(truth), 1 / (1 + np.exp(-log_odds))]
        writer.writerow([image, patient, *known, *scores, *referred])  # all digits: rounded, they would tie
    with AtomicFile(path, force=force) as stream:
        stream.write(text.getvalue().encode())


def _print_table(result: dict[str, Any], title: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from wsurgery.errors import printable

    table = Table(title=Text(printable(title)) if title else None, box=None, header_style="bold", pad_edge=False)
    table.add_column("label")
    for column in ("AUC", "95 % interval"):
        table.add_column(column, justify="right")
    graded = {"referable": result["referable"]} if "referable" in result else {}
    for name, label in [*result["labels"].items(), *graded.items()]:
        auc = "–" if label["auc"] is None else f"{label['auc']:.4f}"
        interval = "–" if label["ci"] is None else "{:.4f} – {:.4f}".format(*label["ci"])
        table.add_row(Text(printable(name)), auc, interval)
    mean = result["macro_auc"]
    table.add_row(Text("macro"), "–" if mean is None else f"{mean:.4f}", f"n = {result['n']}")
    table_console().print(table)
