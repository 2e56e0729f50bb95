"""`wsurgery train`."""

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._images import BadList, SkipBad
from wsurgery.commands._shared import Data, Device, ModelOption, NetworkThreads, Seed, command, say
from wsurgery.progress import wants_progress
from wsurgery.training.flags import Flags


class Preset(str, Enum):
    """The paper's two ways to train."""

    retina = "retina"
    chexpert = "chexpert"


class Logger(str, Enum):
    """Where a run's log goes, too."""

    tensorboard = "tensorboard"
    wandb = "wandb"


class Precision(str, Enum):
    """The arithmetic of a step."""

    auto = "auto"
    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


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
    anew: Annotated[
        bool, typer.Option("--anew", help="Replace a run in RUN that has other settings, weights or data.")
    ] = False,
    bad_list: BadList = None,
    arch: Annotated[str | None, typer.Option(help="The timm model, if INIT does not say it.")] = None,
    model: ModelOption = None,
    log_to: Annotated[
        list[Logger] | None,
        typer.Option(help="Send the log there, too; repeatable. Needs pip install 'wsurgery[tensorboard]' or [wandb]."),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="fp32 is exact; tf32 and bf16 need a GPU that has them, bf16 some CPUs have. Default: bf16 on CUDA, else fp32."
        ),
    ] = Precision.auto,
    device: Device = "auto",
    threads: NetworkThreads = None,
    seed: Seed = 0,
) -> None:
    """Train a checkpoint as a multi-label classifier. Run again on the same RUN, it goes on where it was.

    Tensors that freeze-spec named stay as they are, bit for bit. Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and
    SIGUSR2 end it after the current step, saved. While it trains, no other run may use RUN.

    Started by torchrun or srun, on a file system that they share, each process takes its share of every batch,
    and without batch norm the result is one process's. Batch norm takes the moments of each process's share, and
    the first process's running statistics are saved.

    Example: wsurgery train init.safetensors --data synthetic:fundus?n=2000 --steps 200 --eval-every 20 -o run/

    Example: torchrun --nproc-per-node 4 -m wsurgery train init.safetensors --data manifest.csv --global-batch 64 -o run/
    """
    from wsurgery import studies
    from wsurgery.processes import joined
    from wsurgery.training.display import watched

    with joined() as processes:
        folder, metrics = studies.train(
            init,
            data=data,
            output=output,
            preset=preset and preset.value,
            eval_split=eval_split,
            skip_bad=skip_bad,
            anew=anew,
            bad_list=bad_list,
            arch=arch,
            log_to=[logger.value for logger in log_to or ()],
            precision=precision.value,
            model=model,
            device=device,
            threads=threads,
            seed=seed,
            say=say,
            watch=lambda steps, training: watched(steps, training, say, live=wants_progress()),
            processes=processes,
            **asdict(flags),
        )
        if not processes.is_first:
            return
    best = metrics["best"]
    score = "no AUC" if best["macro_auc"] is None else f"macro AUC {best['macro_auc']:.4f}"
    say(f"{folder}: {metrics['steps']} steps, best {score} at step {best['step']}")
