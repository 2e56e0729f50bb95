"""`wsurgery add-noise`."""

import math
from typing import Annotated

import typer

from wsurgery.commands._shared import Input, Part, Seed, SurgeryOutput, command, write_surgery
from wsurgery.errors import UsageError


@command
def add_noise(
    std: Annotated[float, typer.Option(metavar="S", min=0, help="Standard deviation of the noise.")],
    source: Input = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="S counts in standard deviations of each tensor.")
    ] = False,
    seed: Seed = 0,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Add iid Gaussian noise to floating-point tensors.

    Batch norm's running mean and variance are left alone, unless --only or --role chooses them.

    Example: wsurgery add-noise resnet50.safetensors --std 0.1 --relative --seed 1 > noisy.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.small_edits import noise_edits

    if not math.isfinite(std):
        raise UsageError(f"--std {std}: a finite number is needed")
    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        edits = noise_edits(
            checkpoint,
            std=std,
            relative=relative,
            selection=part.selection,
            seed=seed,
            occurrence=history.count("add-noise"),
        )
        arguments = ["--std", str(std), *part.arguments, *(["--relative"] if relative else [])]
        inputs = [describe_input(checkpoint, history, flows=True)]
        record = make_record("add-noise", arguments, seed=seed, inputs=inputs)
        write_surgery(edits, history, record, output, name_from=checkpoint)
