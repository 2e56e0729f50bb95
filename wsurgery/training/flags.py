"""The values that `train` takes, declared once: each an option of the command and a keyword in Python."""

import re
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.errors import UsageError, printable

if TYPE_CHECKING:
    from wsurgery.training.settings import Settings


class Flip(str, Enum):
    """Which sides of an image are exchanged, for half of the images."""

    none = "none"
    horizontal = "horizontal"
    vertical = "vertical"
    both = "both"


class Loss(str, Enum):
    """What a step makes smaller."""

    bce = "bce"
    softmax = "softmax"


@dataclass(frozen=True)
class Flags:
    """The values that override a preset's, as a command line has them and as `wsurgery.train` takes them."""

    steps: Annotated[int | None, typer.Option(min=1, help="Length in steps.")] = None
    epochs: Annotated[int | None, typer.Option(min=1, help="Length in passes over the data. Default: 10.")] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images a step, of each process. Default: 32, of all together.")
    ] = None
    global_batch: Annotated[int | None, typer.Option(min=1, help="Images a step, of all processes together.")] = None
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate. Default: 0.001.")] = None
    lr_scale: Annotated[
        str | None,
        typer.Option(
            metavar="BLOCK=F,...",
            help="Factors of the learning rate, by block or glob of tensor names; the last one counts, 0 freezes.",
        ),
    ] = None
    lr_decay: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="F",
            help="Learning rate by depth: that of each block is F times that of the next one.",
        ),
    ] = None
    loss: Annotated[
        Loss | None,
        typer.Option(help="softmax: of the classes, each image has exactly one. Default: bce, labels by themselves."),
    ] = None
    pos_weight: Annotated[
        str | None,
        typer.Option(
            metavar="auto|L=W,...",
            help="How much a positive of a label counts; auto: negatives / positives of the training split. Default: 1.",
        ),
    ] = None
    optimizer: Annotated[str | None, typer.Option(help="A timm optimiser: adam (default), momentum, adamw, ...")] = None
    keep_zeros: Annotated[
        bool,
        typer.Option(
            "--keep-zeros", help="Weights of convolutions and linear layers that are zero in INIT stay so: see prune."
        ),
    ] = False
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Weight decay. Default: 0.")] = None
    warmup_epochs: Annotated[
        int | None, typer.Option(min=0, help="Epochs in which the learning rate rises from 0. Default: 0.")
    ] = None
    decay_epochs: Annotated[
        str | None, typer.Option(metavar="E,...|none", help="Epochs at which it is divided by 10. Default: none.")
    ] = None
    grad_clip: Annotated[
        float | None, typer.Option(min=0, metavar="NORM", help="Scale gradients down to this norm.")
    ] = None
    ema: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="DECAY", help="Evaluate and save a moving average of the weights."),
    ] = None
    crop: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Crop at most this share of a side. Default: 0.1.")
    ] = None
    flip: Annotated[Flip | None, typer.Option(help="Exchange sides of half of the images. Default: none.")] = None
    hue: Annotated[
        float | None, typer.Option(min=0, max=0.5, help="Turn the hue by at most this part of a turn. Default: 0.02.")
    ] = None
    contrast: Annotated[
        float | None, typer.Option(min=0, max=1, help="Change the contrast by at most this share. Default: 0.2.")
    ] = None
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels a side. Default: those of the first image's shorter side.")
    ] = None
    subset: Annotated[int | None, typer.Option(min=1, help="Train on N images, in whole patients.")] = None
    eval_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Evaluate this often. Default: once an epoch.")
    ] = None
    eval_subset: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Evaluate on at most N images, in whole patients. Default: all."),
    ] = None
    until_auc: Annotated[float | None, typer.Option(min=0, max=1, help="Stop at this macro AUC.")] = None
    patience: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N evaluations without a better macro AUC.")
    ] = None
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile: slow to start, then faster.")] = False
    no_cuda_graph: Annotated[
        bool,
        typer.Option(
            "--no-cuda-graph", help="CUDA: do not record a step as one graph, for a network whose steps differ."
        ),
    ] = False
    sync_bn: Annotated[
        bool, typer.Option("--sync-bn", help="CUDA: batch norm over all processes' images. Default: over each one's.")
    ] = False
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="CUDA: the same bytes each time, in one process on one kind of GPU; slower."
        ),
    ] = False

    def of_all_processes(self, count: int) -> "Flags":
        """Return the flags as one process takes them, where `count` train together: `batch_size` is that of all.

        Raises:
            UsageError: two that exclude each other.
        """
        for one, other, what in (("steps", "epochs", "length"), ("batch_size", "global_batch", "batch")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise UsageError(f"--{_dashed(one)} and --{_dashed(other)} both give the {what}: choose one")
        if self.batch_size is not None:
            return replace(self, batch_size=self.batch_size * count)
        return replace(self, batch_size=self.global_batch, global_batch=None)

    def settings(self, preset: "Settings") -> "Settings":
        """Return a preset with these values in place of its own.

        Raises:
            UsageError: a value that cannot be.
        """
        given: dict[str, Any] = {key: value for key, value in asdict(self).items() if value is not None}
        given.pop("global_batch", None)
        if "steps" in given:
            given["epochs"] = None
        if "decay_epochs" in given:
            given["decay_epochs"] = _epochs(given["decay_epochs"])
        if "lr_scale" in given:
            given["lr_scale"] = _pairs("--lr-scale", given["lr_scale"], "conv1=0.1,block1=0.1")
        if "loss" in given:
            given["loss"] = Loss(given["loss"]).value
        if given.get("pos_weight", "auto") != "auto":
            given["pos_weight"] = _pairs("--pos-weight", given["pos_weight"], "ill=3, or auto")
            if zero := [name for name, weight in given["pos_weight"] if not weight]:
                raise UsageError(f"--pos-weight {printable(zero[0])}=0: a weight is above 0")
        if "pos_weight" in given and given.get("loss", preset.loss) != "bce":
            raise UsageError("--pos-weight is for --loss bce: leave it out")
        augmentation: dict[str, Any] = {key: given.pop(key) for key in ("crop", "hue", "contrast") if key in given}
        if flip := given.pop("flip", None):
            augmentation["flip_horizontal"] = flip in (Flip.horizontal, Flip.both)
            augmentation["flip_vertical"] = flip in (Flip.vertical, Flip.both)
        return replace(preset, **given, augmentation=replace(preset.augmentation, **augmentation))

    def words(self) -> list[str]:
        """Write the flags as they are typed, for the record."""
        words: list[str] = []
        for key, value in asdict(self).items():
            if value is True:
                words.append(f"--{_dashed(key)}")
            elif value is not None and value is not False:
                words += [f"--{_dashed(key)}", value.value if isinstance(value, Enum) else str(value)]
        return words


def _epochs(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UsageError(f"--decay-epochs {printable(text)}: write it as 30,60,90, or none")
    return tuple(sorted(map(int, text.split(","))))  # as timm takes them


def _pairs(option: str, text: str, example: str) -> tuple[tuple[str, float], ...]:
    """Read `NAME=NUMBER,...`, numbers from 0."""
    pairs = []
    for word in text.split(","):
        name, _, number = word.strip().rpartition("=")
        if not name or not re.fullmatch(r"\d{1,15}(\.\d*)?(e-?\d{1,2})?|\.\d+", number):
            raise UsageError(f"{option} {printable(text)}: write it as {example}, with numbers that are not negative")
        pairs.append((name.strip(), float(number)))
    return tuple(pairs)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
