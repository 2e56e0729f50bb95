"""What `meanvar`, `shuffle` and `sample` have in common: all but the operation."""

from wsurgery.commands._shared import BatchNorm, Part, SurgeryOutput, write_surgery


def resample(
    name: str, source: str | None, batch_norm: BatchNorm, seed: int, part: Part, output: SurgeryOutput
) -> None:
    """Run one of the operations that draw a tensor anew from itself."""
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.operations.edits import resample as resample_edits

    with open_checkpoint(source) as checkpoint:
        history = History.of(checkpoint)
        edits = resample_edits(
            checkpoint,
            name,
            batch_norm=batch_norm.value,
            selection=part.selection,
            seed=seed,
            occurrence=history.count(name),
        )
        arguments = ["--bn", batch_norm.value, *part.arguments]
        record = make_record(name, arguments, seed=seed, inputs=[describe_input(checkpoint, history, flows=True)])
        write_surgery(edits, history, record, output, name_from=checkpoint)
