"""`wsurgery train`."""

import os
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from wsurgery.commands._images import SkipBad, say_skipped
from wsurgery.commands._shared import Data, Device, Seed, Threads, command, say
from wsurgery.errors import UsageError


class Preset(str, Enum):
    """The paper's two ways to train."""

    retina = "retina"
    chexpert = "chexpert"


@command
def train(
    init: Annotated[
        str,
        typer.Argument(metavar="INIT", help="The checkpoint to start from: a file, a folder of shards, a URL, or -."),
    ],
    data: Data,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="The run's folder.")],
    preset: Annotated[Preset | None, typer.Option(help="The paper's settings; flags below override them.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Length in steps.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Length in passes over the data. Default: 10.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step. Default: 32.")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate. Default: 0.001.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="A timm optimiser: adam (default), momentum, adamw, ...")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Weight decay. Default: 0.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Pixels a side. Default: the images' own.")] = None,
    subset: Annotated[int | None, typer.Option(min=1, help="Train on N images, in whole patients.")] = None,
    eval_every: Annotated[
        int | None, typer.Option(min=1, metavar="STEPS", help="Evaluate this often. Default: once an epoch.")
    ] = None,
    eval_split: Annotated[str, typer.Option(help="The split to evaluate on.")] = "valid",
    skip_bad: SkipBad = False,
    until_auc: Annotated[float | None, typer.Option(min=0, max=1, help="Stop at this macro AUC.")] = None,
    arch: Annotated[str | None, typer.Option(help="The timm model, if INIT does not say it.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    seed: Seed = 0,
) -> None:
    """Train a checkpoint as a multi-label classifier. Run again on the same RUN, it goes on where it was.

    Tensors that freeze-spec named stay as they are, bit for bit.

    Example: wsurgery train init.safetensors --data synthetic:fundus?n=2000 --steps 200 --eval-every 20 -o run/
    """
    import torch

    from wsurgery.data.dataset import load_dataset
    from wsurgery.training.loop import train as run_training
    from wsurgery.training.predict import choose_device
    from wsurgery.training.settings import PRESETS, Settings

    if steps is not None and epochs is not None:
        raise UsageError("--steps and --epochs both give the length: choose one")
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    given: dict[str, Any] = {
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "image_size": image_size,
        "subset": subset,
        "eval_every": eval_every,
        "until_auc": until_auc,
    }
    chosen = {key: value for key, value in given.items() if value is not None}
    if steps is not None:
        chosen["epochs"] = None
    settings = replace(PRESETS[preset.value] if preset else Settings(), **chosen, seed=seed)
    arguments = ["--preset", preset.value] if preset else []
    arguments += ["--eval-split", eval_split] if eval_split != "valid" else []
    arguments += ["--arch", arch] if arch else []
    arguments += ["--skip-bad"] if skip_bad else []
    arguments += [
        word for key, value in given.items() if value is not None for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    training = load_dataset(
        data, split="train", image_size=settings.image_size, subset=settings.subset, skip_bad=skip_bad
    )
    validation = load_dataset(data, split=eval_split, image_size=settings.image_size, skip_bad=skip_bad)
    for split, dataset in (("train", training), (eval_split, validation)):
        say_skipped(split, dataset.skipped)
    metrics = run_training(
        init,
        output,
        training,
        validation,
        settings,
        data=data,
        arguments=arguments,
        device=choose_device(device),
        arch=arch,
        report=_say_entry,
    )
    best = metrics["best"]
    score = "no AUC" if best["macro_auc"] is None else f"macro AUC {best['macro_auc']:.4f}"
    say(f"{output}: {metrics['steps']} steps, best {score} at step {best['step']}")


def _say_entry(entry: dict[str, Any]) -> None:
    if "macro_auc" in entry:
        loss = f"  loss {entry['loss']:.4f}" if "loss" in entry else ""
        speed = f"  {entry['images_per_second']:.0f} images/s" if "loss" in entry else ""
        score = "–" if entry["macro_auc"] is None else f"{entry['macro_auc']:.4f}"
        say(f"step {entry['step']}{loss}  macro AUC {score}{speed}")
