"""What a network was trained on, as the record of its training says it, so that what comes after takes its settings."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, convert, to_builtins

KEY = "trained_on"  # of a record
_Size = Annotated[int, Meta(ge=1, lt=1 << 31)]
_Channels = Meta(min_length=1, max_length=64)


class TrainedOn(Struct, frozen=True, kw_only=True):
    """The data and the settings of a training.

    Attributes:
        image_size: side of the images in pixels.
        channels: that the network takes.
        mean: per channel, in [0, 1], that is subtracted.
        std: per channel, by which the rest is divided.
        labels: what its outputs stand for, in order.
        fit: how images became squares, as `fit=` of a data set says it.
        window: which of their values were black and white, as `window=` says it.
        loss: `bce`, a sigmoid a label, or `softmax`, over classes that exclude each other.
        split: that it learned from.
        eval_split: by which the best step was chosen.
        digest: of the rows that it learned from, as `Dataset.digest`.
    """

    image_size: _Size
    channels: _Size
    mean: Annotated[tuple[float, ...], _Channels]
    std: Annotated[tuple[Annotated[float, Meta(gt=0)], ...], _Channels]
    labels: tuple[str, ...]
    fit: str = "crop"
    window: str = "auto"
    loss: Literal["bce", "softmax"] = "bce"
    split: str = "train"
    eval_split: str = "valid"
    digest: str = ""

    def recorded(self) -> dict[str, Any]:
        """Return it as an entry of a record."""
        return {KEY: to_builtins(self)}


def trained_on(log: Sequence[Mapping[str, Any]]) -> TrainedOn | None:
    """Return what a history's log says of the last training; None where there was none, or its record is older than this.

    The record was held against its type when the history was read. A new head forgets labels and loss.
    """
    new_head = False
    for record in reversed(log):
        if record["command"] == "train":
            if KEY not in record:
                return None
            return convert({**record[KEY], **({"labels": [], "loss": "bce"} if new_head else {})}, TrainedOn)
        new_head |= record["command"] == "new-head"
    return None
