"""What a network's record says of its training, and the data that it meets now."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wsurgery.checkpoint.trained import TrainedOn
from wsurgery.data.dataset import Dataset
from wsurgery.data.rendering import Rendering
from wsurgery.errors import WsurgeryError, printable

Say = Callable[[str], None]


def record_of(network: nn.Module) -> TrainedOn | None:
    """Return what a network was trained on, where its checkpoint said it; see `wsurgery.models.load_checkpoint`."""
    found = getattr(network, "trained_on", None)
    return found if isinstance(found, TrainedOn) else None


def rendering_of(trained: TrainedOn | None) -> Rendering | None:
    """Return how the images were rendered that a network was trained on."""
    return Rendering(trained.fit, trained.window) if trained else None


def say_other_images(source: str, trained: TrainedOn | None, dataset: Dataset, say: Say) -> None:
    """Say that a network meets images of another size, or made otherwise, than those that it was trained on, if it does."""
    if trained is None:
        return
    size, now = dataset.images.shape[1], dataset.rendering
    differ = [(f"of {trained.image_size} pixels a side", f"of {size}")] if size != trained.image_size else []
    differ += [("fit=" + trained.fit, "fit=" + now.fit)] if now.fit != trained.fit else []
    differ += [("window=" + trained.window, "window=" + now.window)] if now.window != trained.window else []
    if differ:
        before, after = (", ".join(words) for words in zip(*differ, strict=True))
        say(f"{printable(source)} was trained on images {printable(before)}, and meets images {printable(after)}")


def in_order_of(source: str, trained: TrainedOn | None, dataset: Dataset, say: Say) -> Dataset:
    """Return a data set with its labels in the order of the outputs of a network that is to be trained on.

    Where labels of other names take the place of as many that the network was trained on, it is said.

    Args:
        source: what messages call the network.
        trained: what it was trained on; None: its outputs are for the labels as they come.
        dataset: n images with their labels.
        say: takes a message for people.
    """
    if trained is None or len(trained.labels) != len(dataset.label_names) or trained.labels == dataset.label_names:
        return dataset
    own, names = trained.labels, dataset.label_names
    if set(own) != set(names):
        called, there = (printable(", ".join(some), 200) for some in (own, names))
        say(f"{printable(source)} was trained on {called}; its outputs are for {there} now, in this order")
        return dataset
    return replace(dataset, labels=dataset.labels[:, [names.index(name) for name in own]], label_names=own)


def match_labels(
    source: str, trained: TrainedOn | None, dataset: Dataset, logits: NDArray[np.float32], say: Say
) -> tuple[Dataset, NDArray[np.float32]]:
    """Match a network's outputs with the labels of a data set, by their names.

    Labels that the network does not know are left out, which is said. Where no name is the same, but the number is, outputs
    and labels are matched by their order, which is said, too.

    Args:
        source: what messages call the network.
        trained: what it was trained on; None: its outputs are taken for the labels in order.
        dataset: n images with their labels.
        logits: (n, k), in the order of the network's outputs.

    Returns:
        The data set with the labels that are matched, and the logits in their order.

    Raises:
        WsurgeryError: some of the network's labels are there, and not all.
    """
    if trained is None or len(trained.labels) != logits.shape[1]:
        return dataset, logits
    own, names = trained.labels, dataset.label_names
    if own == names:
        return dataset, logits
    known = [i for i, name in enumerate(names) if name in own]
    called, there = (printable(", ".join(some), 200) for some in (own, names))
    if len(known) < len(own):
        if known or len(names) != len(own):
            raise WsurgeryError(
                f"{printable(source)} was trained on the labels {called}, and the data have {there}: name its labels with "
                "?labels=, or rename the columns"
            )
        say(f"{printable(source)} was trained on {called}; the labels {there} are taken for these, in this order")
        return dataset, logits
    if len(known) < len(names):
        left = ", ".join(name for name in names if name not in own)
        say(f"{printable(source)} knows nothing of {printable(left, 200)}: left out")
    matched = replace(dataset, labels=dataset.labels[:, known], label_names=tuple(names[i] for i in known))
    return matched, logits[:, [own.index(names[i]) for i in known]]
