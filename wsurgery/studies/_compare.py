"""`wsurgery.compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wsurgery.checkpoint.opening import of_run, which_of_run
from wsurgery.devices import choose_device, on_device, threads_used
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.experiments.comparison import Aucs, Steps, as_json, compare_aucs, compare_steps, pairs_of, units_of
from wsurgery.experiments.runs import Run, read_seeds, require_one_split
from wsurgery.models import load
from wsurgery.models.own import Model
from wsurgery.processes import ALONE
from wsurgery.studies._checkpoints import models_of
from wsurgery.studies._given import Say, require_at_least, warn
from wsurgery.studies._images import Images, predictions_of
from wsurgery.training.predictions import Predictions, read_predictions


class Comparison(NamedTuple):
    """Two runs or arms, compared.

    Attributes:
        steps: their steps to a threshold.
        aucs: their AUCs on the same images; None where nothing is known of them.
        pairs: which runs are compared, as indices of A and B.
    """

    steps: Steps
    aucs: Aucs | None
    pairs: list[tuple[int, int]]


def compare(
    a: str | Path,
    b: str | Path,
    *,
    data: str | Path | None = None,
    threshold: float = 0.9,
    split: str = "test",
    image_size: int | None = None,
    skip_bad: bool = False,
    bad_list: str | Path | None = None,
    model: Model | None = None,
    device: str = "auto",
    threads: int | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    last: bool = False,
    init: bool = False,
    say: Say = warn,
) -> dict[str, Any]:
    """Compare two runs, or two arms: steps to a threshold, and AUC on the same images (paired DeLong test).

    Arms with the same seeds are compared seed by seed, by sign flips. A run that never got to the threshold counts as censored.

    Args:
        a: a run's folder, or an arm's with a folder a seed.
        b: the same of what it is compared to.
        data: evaluate each run's best checkpoint on this data. Default: read the `predictions.csv` beside it.
        threshold: count steps to this validation macro AUC, 0 to 1.
        split: with `data`: the split to evaluate on.
        image_size: with `data`: pixels a side. Default: those of each network's training, as its record says it.
        skip_bad: leave out images that are missing or cannot be read.
        bad_list: do so, and list them in this file, CSV: split, path, reason.
        model: what makes the network, if timm does not: `FILE.py:CALLABLE`, `package.module:CALLABLE`, or the callable.
        device: `auto` (cuda or cpu), `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: default all cores. Another number may round otherwise.
        bootstrap: samples of the bootstrap; 0 for none.
        seed: of the bootstrap.
        last: with `data`: the last checkpoint of each run, not the best.
        init: with `data`: what each run began from.
        say: takes a message for people.

    Returns:
        What `compare --json` prints: `steps`, `auc` (None where no run has predictions), the runs of `a` and of `b`.

    Raises:
        UsageError: no runs there, or an option that cannot be.
        WsurgeryError: a run is broken or has not ended, or predictions are not of the same images.
    """
    return as_json(
        *compare_runs(
            a, b, data=data, threshold=threshold, split=split, image_size=image_size, skip_bad=skip_bad, bad_list=bad_list,
            model=model, device=device, threads=threads, bootstrap=bootstrap, seed=seed,
            which=which_of_run(last=last, init=init), say=say,
        )
    )  # fmt: skip


def compare_runs(
    a: str | Path,
    b: str | Path,
    *,
    data: str | Path | None,
    threshold: float,
    split: str,
    image_size: int | None,
    skip_bad: bool,
    bad_list: str | Path | None,
    model: Model | None,
    device: str,
    threads: int | None,
    bootstrap: int,
    seed: int,
    which: str,
    say: Say,
) -> Comparison:
    """Do what `compare` does; return what its tables are made from."""
    require_at_least(0, bootstrap=bootstrap, seed=seed)
    require_at_least(1, threads=threads, image_size=image_size)
    if not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g} is no AUC: give 0 to 1")
    if data is None and which != "best":
        raise UsageError(f"--{which} is for --data: a predictions.csv is of the checkpoint that eval was given")
    runs_a, runs_b = read_seeds(Path(a)), read_seeds(Path(b))
    runs = [*runs_a, *runs_b]
    require_one_split(runs)
    steps = compare_steps(runs_a, runs_b, threshold)
    pairs, _ = pairs_of(runs_a, runs_b)
    if data is None:
        found = _predictions_beside(runs)
    else:
        with threads_used(threads):
            where = choose_device(device)
            images = Images(data, split=split, image_size=image_size, skip_bad=skip_bad, bad_list=bad_list, say=say)
            checkpoints = [str(of_run(run.folder, which)) for run in runs]
            found = []
            for checkpoint, own in zip(checkpoints, models_of(checkpoints, model), strict=True):
                network = load(checkpoint, model=own)
                with on_device(where):
                    found.append(predictions_of(checkpoint, network, images, where, say, ALONE)[0])
    if not found:
        say(
            "no AUC compared, for no run has a predictions.csv: give --data SPEC, or write them with eval --predictions"
        )
        return Comparison(steps, None, pairs)
    n = len(runs_a)
    shared = units_of(runs_a, runs_b)
    seeds = [runs_a[i].seed or f"{i}" for i, _ in pairs]
    units = [shared.get(seed, seed) for seed in seeds]
    aucs = compare_aucs(found[:n], found[n:], pairs, resamples=bootstrap, seed=seed, units=units)
    return Comparison(steps, aucs, pairs)


def _predictions_beside(runs: Sequence[Run]) -> list[Predictions]:
    files = [run.folder / "predictions.csv" for run in runs]
    missing = [file for file in files if not file.is_file()]
    if len(missing) == len(files):
        return []
    if missing:
        raise WsurgeryError(
            f"{printable(str(missing[0]))} is missing, and other runs have one: "
            "write it with eval RUN --predictions, or give --data SPEC"
        )
    return [read_predictions(file) for file in files]
