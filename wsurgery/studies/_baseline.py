"""The baseline beside a network: of which images it learns, and once for all networks that share them."""

from pathlib import Path
from typing import Any

from wsurgery.checkpoint.opening import is_run
from wsurgery.checkpoint.trained import TrainedOn
from wsurgery.data.dataset import Dataset
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.statistics.auc import auc_per_label
from wsurgery.studies._given import Say, Source, label
from wsurgery.studies._images import Images
from wsurgery.training.baseline import against, fit_baseline
from wsurgery.training.baseline_names import Name
from wsurgery.training.predictions import Predictions
from wsurgery.training.run_folder import read_config

_TRAIN, _VALID = "train", "valid"


def require_train(data: Dataset | Images, name: str) -> None:
    """Require images to learn from, before a network is run for nothing.

    Raises:
        UsageError: there are none.
    """
    if isinstance(data, Dataset):
        raise UsageError(f"baseline={name!r} learns from another split: give the data, or studies.Images(data)")
    if _TRAIN not in data.splits:
        there = printable(", ".join(sorted(data.splits)), 200)
        raise UsageError(f"--baseline {name} learns from the split train, and the data have {there}")


def beside(
    name: Name, found: Predictions, source: Source, trained: TrainedOn | None, data: Dataset | Images, say: Say
) -> dict[str, Any]:
    """Return what `eval --json` holds of a baseline beside a network; it is fitted once for all that share images and labels.

    Args:
        name: of the baseline.
        found: the network's predictions.
        source: the network: of a run with a subset, the baseline learns from that.
        trained: what its record says.
        data: the evaluated images, and the others of their data.
        say: takes a message for people.

    Raises:
        UsageError: the training images lack a class.
        WsurgeryError: no label has both classes in the evaluated images.
    """
    assert isinstance(data, Images), "as require_train has it"
    evaluated, subset = data.at(trained), _subset_of(source)
    aucs = auc_per_label(found.labels, found.scores, found.names)
    labels = tuple(known for known in found.names[: found.count] if aucs[known] is not None)
    if not labels:
        raise WsurgeryError(
            f"--baseline {name}: no label has both classes in the {len(found.paths):,} images: leave it out"
        )
    key = name, labels, subset, evaluated.images.shape[1], evaluated.rendering
    if key not in data.baselines:
        training = data.other(_TRAIN, evaluated, subset=subset)
        validation = data.other(_VALID, evaluated) if _VALID in data.splits else None
        data.baselines[key] = fit_baseline(name, labels, training, validation, evaluated)
    fitted = data.baselines[key]
    if trained is not None and trained.digest and trained.digest != fitted.digest:
        who = printable(label(source))
        say(
            f"{who} was trained on other rows than the baseline, which learned from {fitted.images:,} of the split train"
        )
    return against(found, fitted)


def _subset_of(source: Source) -> int | None:
    """Return of how many images a run's subset was; None for all, and where no run's folder says it."""
    if not isinstance(source, (str, Path)) or "://" in str(source):
        return None
    path = Path(source)
    run = next((folder for folder in (path, path.parent) if is_run(folder)), None)
    try:
        subset = read_config(run / "config.json")["settings"].get("subset") if run else None
    except FileNotFoundError:
        return None
    if subset is not None and type(subset) is not int:
        raise WsurgeryError(f"{printable(str(run))}/config.json is damaged: its subset is no number of images")
    return subset
