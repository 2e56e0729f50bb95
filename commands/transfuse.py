"""`wsurgery transfuse`."""

from contextlib import ExitStack
from enum import Enum
from typing import Annotated

import typer

from wsurgery.commands._shared import BatchNorm, Part, Seed, SurgeryOutput, command, write_surgery
from wsurgery.errors import UsageError, WsurgeryError


class Rest(str, Enum):
    """What stands above the pretrained part when there is no --into."""

    random = "random"
    meanvar = "meanvar"
    shuffle = "shuffle"
    sample = "sample"


@command
def transfuse(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The pretrained checkpoint.")],
    into: Annotated[
        str | None,
        typer.Option(
            metavar="IN", help="The network that receives: a file, or - for standard input. Default: what is piped in."
        ),
    ] = None,
    rest: Annotated[
        Rest | None, typer.Option(help="Without --into: what SOURCE's other tensors become. Default: random.")
    ] = None,
    bn: Annotated[
        BatchNorm, typer.Option(help="Batch norm under --rest meanvar, shuffle and sample.")
    ] = BatchNorm.identity,
    seed: Seed = 0,
    *,
    part: Part,
    output: SurgeryOutput,
) -> None:
    """Keep pretrained weights up to a block (or in any other part); take the rest from --into, or draw it fresh.

    Example: wsurgery transfuse resnet50.safetensors --upto block2

    Example: wsurgery init resnet50 --num-classes 5 | wsurgery transfuse resnet50.safetensors --upto block2 > init.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint, stdin_is_piped
    from wsurgery.checkpoint.provenance import History, describe_input, make_record
    from wsurgery.checkpoint.spool import seekable
    from wsurgery.operations.edits import transfuse_into, transfuse_rest

    if not part.arguments:
        raise UsageError("which part? Name the last pretrained block with --upto, or use another selector")
    if into and rest:
        raise UsageError("--into gives the other tensors and --rest draws them: choose one")
    implied = into is None and rest is None and source != "-" and stdin_is_piped()
    if implied:
        into = "-"
    with ExitStack() as stack:
        donor = stack.enter_context(open_checkpoint(source))
        donor_history = History.of(donor)
        arguments = part.arguments
        if into:
            try:
                receiver = stack.enter_context(open_checkpoint(into))
            except WsurgeryError as error:
                hint = "; to draw the other tensors fresh instead, say --rest random" if implied else ""
                raise type(error)(f"{error}{hint}") from None
            flows, history = receiver, History.of(receiver)
            inputs = [
                describe_input(receiver, history, flows=True),
                describe_input(donor, donor_history, flows=False),
            ]
            if list(donor.tensors) != list(receiver.tensors):
                donor = stack.enter_context(seekable(donor))
            edits = transfuse_into(donor, receiver, selection=part.selection)
            record = make_record("transfuse", arguments, seed=None, inputs=inputs)
        else:
            flows, history, rest = donor, donor_history, rest or Rest.random
            edits = transfuse_rest(
                donor,
                selection=part.selection,
                rest=rest.value,
                batch_norm=bn.value,
                seed=seed,
                occurrence=history.count("transfuse"),
            )
            arguments += ["--rest", rest.value] + (["--bn", bn.value] if rest is not Rest.random else [])
            inputs = [describe_input(donor, history, flows=True)]
            record = make_record("transfuse", arguments, seed=seed, inputs=inputs)
        write_surgery(edits, history, record, output, name_from=donor, flows=flows)
