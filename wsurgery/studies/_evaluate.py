"""`wsurgery.evaluate`."""

from pathlib import Path
from typing import Any

from wsurgery.data.dataset import Dataset
from wsurgery.devices import choose_device, threads_used
from wsurgery.models.own import Model
from wsurgery.processes import ALONE, Processes
from wsurgery.studies._checkpoints import Say, Source, label, network_of, require_at_least, unedited, warn
from wsurgery.studies._images import Images, predictions_of
from wsurgery.training.evaluation import evaluate as evaluate_predictions
from wsurgery.training.predictions import write_predictions


def evaluate(
    checkpoint: Source,
    *,
    data: "str | Path | Dataset | Images",
    split: str = "test",
    predictions: str | Path | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    bad_list: str | Path | None = None,
    arch: str | None = None,
    model: Model | None = None,
    device: str = "auto",
    threads: int | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    force: bool = False,
    say: Say = warn,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Evaluate a checkpoint: AUC for each label and their mean, with 95 % confidence intervals.

    Args:
        checkpoint: the network.
        data: a manifest, or `scheme:argument?key=value`; or the images of `load_images`, so that several networks share
            them, or `Images`: then `image_size` and `skip_bad` are settled, and `split` is their name in the result.
        split: the split to evaluate on.
        predictions: write each image's probabilities and logits to this file, CSV.
        image_size: pixels a side. Default: those of the training, if the checkpoint's record says it, else the images' own.
        skip_bad: leave out images that are missing or cannot be read.
        bad_list: do so, and list them in this file, CSV: split, path, reason.
        arch: the timm model, if the checkpoint does not say it.
        model: what makes the network, if timm does not: `FILE.py:CALLABLE`, `package.module:CALLABLE`, or the callable.
        device: `auto` (cuda or cpu), `cpu`, `cuda`, `cuda:N` or `mps`.
        threads: default all cores. Another number may round otherwise.
        bootstrap: samples of the bootstrap; 0 for none.
        seed: of the bootstrap.
        force: overwrite a file of predictions.
        say: takes a message for people.
        processes: which share the images, from `wsurgery.processes.joined`.

    Returns:
        What `eval --json` prints: `labels` (name → `auc`, 0 to 1 or None, `ci` by DeLong, `bootstrap_ci`, `left_out`),
        `macro_auc`, `macro_ci` by the bootstrap, `macro_delong_ci`, `n` (images), what is taken as `independent` (patients or
        images) and how many `units` of it there are, `split` and what the bootstrap did. In any but the first process,
        nothing.

    Raises:
        UsageError: an option that cannot be, no such data or split, or the file of predictions exists.
        WsurgeryError: checkpoint, data and network do not fit together.
    """
    require_at_least(0, bootstrap=bootstrap, seed=seed)
    require_at_least(1, threads=threads)
    checkpoint = unedited(checkpoint)
    with threads_used(threads):
        where = choose_device(device, processes)
        if not isinstance(data, (Dataset, Images)):
            data = Images(
                data,
                split=split,
                image_size=image_size,
                skip_bad=skip_bad,
                bad_list=bad_list,
                say=say,
                processes=processes,
            )
        found, size = predictions_of(
            label(checkpoint), network_of(checkpoint, arch, model), data, where, say, processes
        )
        if not processes.is_first:
            return {}
        result = {**evaluate_predictions(found, resamples=bootstrap, seed=seed), "split": split, "image_size": size}
        if predictions is not None:
            write_predictions(Path(predictions), found, force=force)
    return result
