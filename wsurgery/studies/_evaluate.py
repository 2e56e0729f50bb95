"""`wsurgery.evaluate`."""

from functools import partial
from pathlib import Path
from typing import Any, cast

from wsurgery.checkpoint.writer import require_free
from wsurgery.data.dataset import Dataset
from wsurgery.devices import choose_device, on_device, threads_used
from wsurgery.models.own import Model
from wsurgery.processes import ALONE, Processes
from wsurgery.studies._baseline import beside, require_train
from wsurgery.studies._checkpoints import network_of, unedited
from wsurgery.studies._given import Say, Source, label, require_at_least, require_one_of, warn
from wsurgery.studies._images import Images, predictions_of
from wsurgery.training.baseline_names import NAMES, Name
from wsurgery.training.evaluation import evaluate as evaluate_predictions
from wsurgery.training.predictions import write_predictions
from wsurgery.training.recorded import record_of


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
    baseline: str | None = None,
    force: bool = False,
    say: Say = warn,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Evaluate a checkpoint: AUC for each label and their mean, with 95 % confidence intervals.

    Args:
        checkpoint: the network.
        data: a manifest, or `scheme:argument?key=value`; or the images of `load_images`, so that several networks share
            them, or `Images`: then `image_size`, `skip_bad` and `split` are settled.
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
        baseline: `thumbnail` or `histogram`: a logistic regression on those features of the images of the split `train` (of a
            run with `subset`, on its subset), to hold the network's macro AUC against.
        force: overwrite a file of predictions.
        say: takes a message for people.
        processes: which share the images, from `wsurgery.processes.joined`.

    Returns:
        What `eval --json` prints: `labels` (name → `auc`, 0 to 1 or None, `ci` by DeLong, `bootstrap_ci`, `left_out`),
        `macro_auc`, `macro_ci` by the bootstrap, `macro_delong_ci`, `n` (images), what is taken as `independent` (patients or
        images) and how many `units` of it there are, `split` and what the bootstrap did; with a baseline, `baseline`: its
        `name`, `macro_auc`, `macro_delong_ci`, `labels`, `penalty`, `trained_on` (images), and the `difference` of the
        network's macro AUC less its own, with `ci` and `p` of the paired test. In any but the first process, nothing.

    Raises:
        UsageError: an option that cannot be, no such data or split, the file of predictions exists, or there is nothing
            that a baseline could learn from.
        WsurgeryError: checkpoint, data and network do not fit together.
    """
    require_at_least(0, bootstrap=bootstrap, seed=seed)
    require_at_least(1, threads=threads, image_size=image_size)
    require_one_of("--baseline", baseline, [None, *NAMES])
    if predictions is not None:
        require_free(Path(predictions), force=force)
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
        if baseline is not None:
            processes.in_turn(partial(require_train, data, baseline))
        network = network_of(checkpoint, arch, model)
        with on_device(where):
            found, size = predictions_of(label(checkpoint), network, data, where, say, processes)
        if not processes.is_first:
            return {}
        result = evaluate_predictions(found, resamples=bootstrap, seed=seed)
        result |= {"split": data.split or split, "image_size": size}
        if baseline is not None:
            result["baseline"] = beside(cast(Name, baseline), found, checkpoint, record_of(network), data, say)
        if predictions is not None:
            write_predictions(Path(predictions), found, force=force)
    return result
