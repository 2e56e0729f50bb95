"""`wsurgery compare`: do two runs, or two arms of several seeds, differ?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsurgery.commands._images import SkipBad, say_skipped
from wsurgery.commands._shared import Device, Json, ModelOption, NetworkThreads, Seed, command, say, table_console
from wsurgery.errors import WsurgeryError, printable

if TYPE_CHECKING:
    from wsurgery.experiments.runs import Run
    from wsurgery.training.predictions import Predictions


@command
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run's folder, or an arm's with a folder a seed.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The same of what it is compared to.")],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Evaluate each run's best.safetensors on this data. Default: read the predictions.csv beside it.",
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Count steps to this validation macro AUC.")] = 0.9,
    split: Annotated[str, typer.Option(help="With --data: the split to evaluate on.")] = "test",
    image_size: Annotated[int | None, typer.Option(min=1, help="With --data: pixels a side. Default: theirs.")] = None,
    skip_bad: SkipBad = False,
    model: ModelOption = None,
    device: Device = "auto",
    threads: NetworkThreads = None,
    bootstrap: Annotated[int, typer.Option(min=0, metavar="N", help="Samples of the bootstrap; 0 for none.")] = 2000,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare two runs, or two arms: steps to a threshold, and AUC on the same images (paired DeLong test).

    Arms with the same seeds are compared seed by seed. A run that never got to the threshold is shown as > its last step
    and counts as censored. Images of one patient are not taken for independent.

    Example: wsurgery compare runs/transfer runs/random --threshold 0.85 --data synthetic:fundus?n=2000
    """
    from json import dumps

    from wsurgery.experiments.comparison import as_json, compare_aucs, compare_steps, pairs_of
    from wsurgery.experiments.runs import read_seeds
    from wsurgery.figures.comparison_tables import auc_table, steps_table

    runs_a, runs_b = read_seeds(a), read_seeds(b)
    runs = [*runs_a, *runs_b]
    steps = compare_steps(runs_a, runs_b, threshold)
    pairs, _ = pairs_of(runs_a, runs_b)
    if data is None:
        found = _read(runs)
    else:
        found = _predict(runs, data, split, image_size, device=device, threads=threads, skip_bad=skip_bad, model=model)
    aucs = None
    if found:
        n = len(runs_a)
        aucs = compare_aucs(found[:n], found[n:], pairs, resamples=bootstrap, seed=seed)
    else:
        say(
            "no AUC compared, for no run has a predictions.csv: give --data SPEC, or write them with eval --predictions"
        )
    if json:
        typer.echo(dumps(as_json(steps, aucs, pairs), indent=2, ensure_ascii=False, allow_nan=False))
        return
    console = table_console()
    console.print(f"A: {printable(str(a))}\nB: {printable(str(b))}\n", markup=False, highlight=False)
    console.print(steps_table(steps))
    if aucs:
        console.print()
        console.print(auc_table(aucs))


def _read(runs: "list[Run]") -> "list[Predictions]":
    from wsurgery.training.predictions import read_predictions

    files = [run.folder / "predictions.csv" for run in runs]
    missing = [file for file in files if not file.is_file()]
    if len(missing) == len(files):
        return []
    if missing:
        raise WsurgeryError(
            f"{printable(str(missing[0]))} is missing, and other runs have one: "
            "write it with eval best.safetensors --predictions, or give --data SPEC"
        )
    return [read_predictions(file) for file in files]


def _predict(
    runs: "list[Run]",
    data: str,
    split: str,
    image_size: int | None,
    *,
    device: str,
    threads: int | None,
    skip_bad: bool,
    model: str | None,
) -> "list[Predictions]":
    import torch

    from wsurgery.cores import cores
    from wsurgery.data.dataset import load_dataset
    from wsurgery.devices import choose_device
    from wsurgery.models import load, models_for
    from wsurgery.training.predict import predict
    from wsurgery.training.predictions import from_logits

    torch.set_num_threads(threads or cores())
    where = choose_device(device)
    dataset = load_dataset(data, split=split, image_size=image_size, skip_bad=skip_bad)
    say_skipped(split, dataset.skipped)
    found = []
    checkpoints = [run.folder / "best.safetensors" for run in runs]
    for checkpoint, own in zip(checkpoints, models_for(checkpoints, model), strict=True):
        logits = predict(load(str(checkpoint), model=own), dataset, device=where)
        found.append(from_logits(str(checkpoint), dataset, logits))
    return found
