"""The images of a study, and what networks say of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from wsurgery.checkpoint.trained import TrainedOn
from wsurgery.data.dataset import Dataset, load_dataset, report_skipped
from wsurgery.data.rendering import Rendering
from wsurgery.data.sources import open_data, said_rendering
from wsurgery.errors import UsageError
from wsurgery.processes import ALONE, Processes
from wsurgery.studies._given import Say, warn
from wsurgery.training.baseline import Baseline
from wsurgery.training.predict import predict
from wsurgery.training.predictions import Predictions, from_logits
from wsurgery.training.recorded import match_labels, record_of, rendering_of, say_other_images


def load_once(load: Callable[[], Dataset], processes: Processes) -> Dataset:
    """Load images in the first process, which lists, reads and decodes them; the others map the file that it left in the cache.

    Where they do not see that file, for their machine has a cache of its own, they do as the first one did.

    Args:
        load: what loads them.
        processes: all of them.

    Raises:
        As `load`, in the first process; in the others SystemExit.
    """
    mine: list[Dataset] = []

    def work() -> tuple[Dataset, str | None, tuple[int, ...]]:
        mine.append(load())
        images = mine[0].images
        file = str(images.filename) if isinstance(images, np.memmap) and not images.offset else None
        return replace(mine[0], images=images[:0].copy()), file, images.shape

    if processes.count == 1:
        return load()
    listed, file, shape = processes.in_first(work)
    if mine:
        return mine[0]
    if file is None or not Path(file).is_file() or Path(file).stat().st_size != math.prod(shape):
        return load()
    return replace(listed, images=np.memmap(file, np.uint8, mode="r", shape=shape))


def load_images(
    data: str | Path | Dataset,
    *,
    split: str = "test",
    image_size: int | None = None,
    skip_bad: bool = False,
    bad_list: str | Path | None = None,
    trained: TrainedOn | None = None,
    say: Say = warn,
    processes: Processes = ALONE,
) -> Dataset:
    """Load the images of a split, as `evaluate` does for a network trained so; what is loaded already is returned as it is.

    Raises:
        UsageError: no such data or split.
        WsurgeryError: a broken manifest or image.
    """
    if isinstance(data, Dataset):
        return data
    spec, skip_bad = str(data), skip_bad or bad_list is not None
    size, rendering = image_size or (trained.image_size if trained else None), rendering_of(trained)
    load = partial(load_dataset, spec, split=split, image_size=size, skip_bad=skip_bad, trained=rendering)
    dataset = load_once(load, processes)
    if processes.is_first:
        report_skipped({split: dataset.skipped}, say, bad_list)
    return dataset


class Images:
    """The images of a split, decoded once for each size and fit that networks were trained with.

    Its arguments are those of `load_images`.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        split: str = "test",
        image_size: int | None = None,
        skip_bad: bool = False,
        bad_list: str | Path | None = None,
        say: Say = warn,
        processes: Processes = ALONE,
    ) -> None:
        self._load = partial(
            load_images, data, split=split, image_size=image_size, skip_bad=skip_bad, bad_list=bad_list, say=say,
            processes=processes,
        )  # fmt: skip
        self._data, self._skip_bad, self._say = str(data), skip_bad or bad_list is not None, say
        self.split = split
        self._loaded: dict[object, Dataset] = {}
        self.baselines: dict[object, Baseline] = {}  # what was fitted to their other splits

    def at(self, trained: TrainedOn | None) -> Dataset:
        """Return them as they were given, or else as they were for a training; without either as they are."""
        key = trained and (trained.image_size, trained.fit, trained.window)
        if key not in self._loaded:
            self._loaded[key] = self._load(trained=trained)
        return self._loaded[key]

    @cached_property
    def splits(self) -> set[str]:
        """Which splits the data have."""
        return set(open_data(self._data).splits)

    def other(self, split: str, like: Dataset, *, subset: int | None = None) -> Dataset:
        """Load another split, or whole patients of it, with images of the size and rendering of `like`, in this process."""
        dataset = load_dataset(
            self._data, split=split, image_size=like.images.shape[1], subset=subset, skip_bad=self._skip_bad,
            trained=like.rendering,
        )  # fmt: skip
        report_skipped({split: dataset.skipped}, self._say)
        return dataset


def predictions_of(
    source: str, network: nn.Module, data: Dataset | Images, where: torch.device, say: Say, processes: Processes
) -> tuple[Predictions, int]:
    """Return what a network says of images, with the labels matched by name, and the images' size."""
    trained = record_of(network)
    dataset = data.at(trained) if isinstance(data, Images) else data
    say = say if processes.is_first else lambda line: None
    say_other_images(source, trained, dataset, say)
    logits = predict(network, dataset, device=where, processes=processes)
    dataset, logits = match_labels(source, trained, dataset, logits, say)
    exclusive = trained is not None and trained.loss == "softmax"
    return from_logits(source, dataset, logits, exclusive=exclusive), dataset.images.shape[1]


def common_images(data: str, image_size: int | None, *networks: nn.Module) -> tuple[int | None, Rendering | None]:
    """Return the size and the rendering of the images that networks were trained on; None where no record says it.

    Raises:
        UsageError: they were trained on different ones, and none is chosen.
    """
    known = [trained for network in networks if (trained := record_of(network))]
    sizes, fits = {trained.image_size for trained in known}, {trained.fit for trained in known}
    if image_size is None and len(sizes) > 1:
        raise UsageError(
            f"A and B were trained on images of different sizes ({' and '.join(map(str, sorted(sizes)))} pixels a side): "
            "choose one with --image-size"
        )
    if len(fits) > 1 and "fit" not in said_rendering(data):
        raise UsageError(
            f"A and B were trained with fit={' and fit='.join(sorted(fits))}: choose one, as in SPEC?fit=crop"
        )
    return image_size or (sizes.pop() if sizes else None), rendering_of(known[0]) if known else None
