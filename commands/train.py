"""`wsurgery train`."""

import re
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.commands._images import SkipBad, say_skipped
from wsurgery.commands._shared import Data, Device, ModelOption, NetworkThreads, Seed, command, say
from wsurgery.errors import UsageError, printable
from wsurgery.progress import wants_progress

if TYPE_CHECKING:
    from wsurgery.data.dataset import Dataset
    from wsurgery.training.settings import Settings


class Preset(str, Enum):
    """The paper's two ways to train."""

    retina = "retina"
    chexpert = "chexpert"


class Flip(str, Enum):
    """Which sides of an image are exchanged, for half of the images."""

    none = "none"
    horizontal = "horizontal"
    vertical = "vertical"
    both = "both"


class Logger(str, Enum):
    """Where a run's log goes, too."""

    tensorboard = "tensorboard"
    wandb = "wandb"


class Precision(str, Enum):
    """The arithmetic of a step."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(frozen=True)
class Flags:
    """The values that override a preset's."""

    steps: Annotated[int | None, typer.Option(min=1, help="Length in steps.")] = None
    epochs: Annotated[int | None, typer.Option(min=1, help="Length in passes over the data. Default: 10.")] = None
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images a step, of each process. Default: 32, of all together.")
    ] = None
    global_batch: Annotated[int | None, typer.Option(min=1, help="Images a step, of all processes together.")] = None
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate. Default: 0.001.")] = None
    optimizer: Annotated[str | None, typer.Option(help="A timm optimiser: adam (default), momentum, adamw, ...")] = None
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
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side. Default: the images' own.")] = None
    subset: Annotated[int | None, typer.Option(min=1, help="Train on N images, in whole patients.")] = None
    eval_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Evaluate this often. Default: once an epoch.")
    ] = None
    until_auc: Annotated[float | None, typer.Option(min=0, max=1, help="Stop at this macro AUC.")] = None
    patience: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N evaluations without a better macro AUC.")
    ] = None
    compile: Annotated[bool, typer.Option("--compile", help="Use torch.compile: slow to start, then faster.")] = False
    sync_bn: Annotated[
        bool, typer.Option("--sync-bn", help="CUDA: batch norm over all processes' images. Default: over each one's.")
    ] = False


@command
def train(
    init: Annotated[
        str,
        typer.Argument(metavar="INIT", help="The checkpoint to start from: a file, a folder of shards, a URL, or -."),
    ],
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="The run's folder.")],
    flags: Flags,
    preset: Annotated[Preset | None, typer.Option(help="The paper's settings; flags above override them.")] = None,
    eval_split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "valid",
    skip_bad: SkipBad = False,
    arch: Annotated[str | None, typer.Option(help="The timm model, if INIT does not say it.")] = None,
    model: ModelOption = None,
    log_to: Annotated[
        list[Logger] | None,
        typer.Option(help="Send the log there, too; repeatable. Needs pip install 'wsurgery[tensorboard]' or [wandb]."),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="bf16 needs a processor that has it. Default: bf16 on CUDA, else fp32.")
    ] = Precision.auto,
    device: Device = "auto",
    threads: NetworkThreads = None,
    seed: Seed = 0,
) -> None:
    """Train a checkpoint as a multi-label classifier. Run again on the same RUN, it goes on where it was.

    Tensors that freeze-spec named stay as they are, bit for bit. Ctrl-C and SIGTERM end it after the current step, saved.

    Started by torchrun, each process takes its share of every batch, and without batch norm the result is one process's.
    Batch norm takes the moments of each process's share, and the first process's running statistics are saved.

    Example: wsurgery train init.safetensors --data synthetic:fundus?n=2000 --steps 200 --eval-every 20 -o run/

    Example: torchrun --nproc-per-node 4 -m wsurgery train init.safetensors --data manifest.csv --global-batch 64 -o run/
    """
    import torch

    from wsurgery.cores import cores
    from wsurgery.data.dataset import load_dataset
    from wsurgery.devices import choose_device, choose_precision, memory_errors
    from wsurgery.processes import joined
    from wsurgery.training.display import logged, watched
    from wsurgery.training.interruption import signals_noted
    from wsurgery.training.loop import train as run_training
    from wsurgery.training.settings import PRESETS, Settings

    for one, other, what in (("steps", "epochs", "length"), ("batch_size", "global_batch", "batch")):
        if getattr(flags, one) is not None and getattr(flags, other) is not None:
            raise UsageError(f"--{_dashed(one)} and --{_dashed(other)} both give the {what}: choose one")
    torch.set_num_threads(threads or cores())
    with joined() as processes:
        where = choose_device(device, processes)
        if flags.sync_bn and where.type != "cuda":
            raise UsageError("--sync-bn: torch has it for CUDA devices only; leave it out")
        if flags.batch_size is not None:
            flags = replace(flags, batch_size=flags.batch_size * processes.count)
        elif flags.global_batch is not None:
            flags = replace(flags, batch_size=flags.global_batch, global_batch=None)
        settings = _settings(PRESETS[preset.value] if preset else Settings(), flags)
        settings = replace(settings, precision=choose_precision(precision.value, where), seed=seed)
        arguments = ["--preset", preset.value] if preset else []
        arguments += ["--eval-split", eval_split] if eval_split != "valid" else []
        arguments += ["--arch", arch] if arch else []
        arguments += ["--skip-bad"] if skip_bad else []
        arguments += _words(flags)
        arguments += ["--precision", settings.precision] if settings.precision != "fp32" else []

        def load() -> "tuple[Dataset, Dataset]":
            size = settings.image_size
            training = load_dataset(data, split="train", image_size=size, subset=settings.subset, skip_bad=skip_bad)
            return training, load_dataset(data, split=eval_split, image_size=size, skip_bad=skip_bad)

        training, validation = processes.in_turn(load)
        if processes.is_first:
            for split, dataset in (("train", training), (eval_split, validation)):
                say_skipped(split, dataset.skipped)
            if training.patients == training.paths:
                say("data has no patients: the split cannot be checked by patient")
        steps = settings.length(len(training.images)).steps
        remedy = f"use a smaller --batch-size (now {settings.batch_size // processes.count}) or --image-size"
        with ExitStack() as reports, memory_errors(where, remedy), signals_noted() as signalled:
            if processes.is_first:
                loggers = [logger.value for logger in log_to or ()]
                log = reports.enter_context(logged(loggers, output, asdict(settings)))
                show = reports.enter_context(watched(steps, say, live=wants_progress()))

            def report(entry: dict[str, Any]) -> None:
                log(entry)
                show(entry)

            metrics = run_training(
                init,
                output,
                training,
                validation,
                settings,
                data=data,
                arguments=arguments,
                device=where,
                arch=arch,
                model=model,
                report=report,
                processes=processes,
                signalled=signalled,
            )
        if not processes.is_first:
            return
    best = metrics["best"]
    score = "no AUC" if best["macro_auc"] is None else f"macro AUC {best['macro_auc']:.4f}"
    say(f"{output}: {metrics['steps']} steps, best {score} at step {best['step']}")


def _settings(preset: "Settings", flags: Flags) -> "Settings":
    given: dict[str, Any] = {key: value for key, value in asdict(flags).items() if value is not None}
    given.pop("global_batch", None)
    if "steps" in given:
        given["epochs"] = None
    if "decay_epochs" in given:
        given["decay_epochs"] = _epochs(given["decay_epochs"])
    augmentation: dict[str, Any] = {key: given.pop(key) for key in ("crop", "hue", "contrast") if key in given}
    if flip := given.pop("flip", None):
        augmentation["flip_horizontal"] = flip in (Flip.horizontal, Flip.both)
        augmentation["flip_vertical"] = flip in (Flip.vertical, Flip.both)
    return replace(preset, **given, augmentation=replace(preset.augmentation, **augmentation))


def _epochs(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise UsageError(f"--decay-epochs {printable(text)}: write it as 30,60,90, or none")
    return tuple(map(int, text.split(",")))


def _words(flags: Flags) -> list[str]:
    """The flags as one process takes them, for the record: --batch-size is that of all processes."""
    words: list[str] = []
    for key, value in asdict(flags).items():
        if value is True:
            words.append(f"--{_dashed(key)}")
        elif value is not None and value is not False:
            words += [f"--{_dashed(key)}", value.value if isinstance(value, Enum) else str(value)]
    return words


def _dashed(name: str) -> str:
    return name.replace("_", "-")
