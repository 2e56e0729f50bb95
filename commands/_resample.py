"""What `meanvar`, `shuffle` and `sample` have in common: all but the operation."""

from dataclasses import dataclass
from typing import Annotated

import typer

from wsurgery.commands._shared import BatchNorm, Part, Seed, SurgeryOutput, write_surgery


@dataclass(frozen=True)
class Resampling(Part):
    """The part to resample, and how."""

    bn: Annotated[
        BatchNorm, typer.Option(help="Batch norm: the identity, resampled by mean and variance, or kept.")
    ] = BatchNorm.identity
    seed: Seed = 0


def resample(name: str, source: str | None, how: Resampling, output: SurgeryOutput) -> None:
    """Run one of the operations that draw a tensor anew from itself."""
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.edits import resample as resample_edits

    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        edits = resample_edits(
            checkpoint,
            name,
            batch_norm=how.bn.value,
            selection=how.selection,
            seed=how.seed,
            occurrence=history.count(name),
        )
        arguments = ["--bn", how.bn.value, *how.arguments]
        record = make_record(name, arguments, seed=how.seed, inputs=[describe_input(checkpoint, history, flows=True)])
        write_surgery(edits, history, record, output, name_from=checkpoint)
