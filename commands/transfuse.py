"""`wsurgery transfuse`."""

from dataclasses import replace
from typing import Annotated, Literal

from wsurgery.plugin import (
    Argument,
    BatchNorm,
    Checkpoint,
    Option,
    Piped,
    RandomStream,
    Result,
    Selection,
    edit,
)


@edit(
    flows="into",
    in_order=("source",),
    needs_part="which part? Name the last pretrained block with --upto, or use another selector",
)
def transfuse(
    source: Annotated[Checkpoint, Argument(metavar="SOURCE", help="The pretrained checkpoint.")],
    into: Annotated[
        Checkpoint | None,
        Option(
            metavar="IN", help="The network that receives: a file, or - for standard input. Default: what is piped in."
        ),
        Piped(
            unless="rest",
            hint="to draw the other tensors fresh instead, say --rest random",
            clash="--into gives the other tensors and --rest draws them: choose one",
        ),
    ] = None,
    *,
    selection: Selection,
    rest: Annotated[
        Literal["random", "meanvar", "shuffle", "sample"] | None,
        Option(help="Without --into: what SOURCE's other tensors become. Default: random."),
    ] = None,
    bn: Annotated[BatchNorm, Option(help="Batch norm under --rest meanvar, shuffle and sample.")] = "identity",
    random: RandomStream,
) -> Result:
    """Keep pretrained weights up to a block (or in any other part); take the rest from --into, or draw it fresh.

    Fresh tensors are drawn by role, as timm draws its ResNets. For another network's own initialisation take them from
    --into: wsurgery init ARCH | wsurgery transfuse SOURCE --upto BLOCK.

    Example: wsurgery transfuse resnet50.safetensors --upto block2

    Example: wsurgery init resnet50 --num-classes 5 | wsurgery transfuse resnet50.safetensors --upto block2 > init.safetensors
    """
    from wsurgery.operations.transfusion import transfuse_into, transfuse_rest

    if into:
        result = transfuse_into(source, into, selection=selection)
        return replace(result, recorded={"seed": None, "rest": None, "bn": None})
    rest = rest or "random"
    edits = transfuse_rest(source, selection=selection, rest=rest, batch_norm=bn, random=random)
    return Result(edits, recorded={"rest": rest, "bn": None if rest == "random" else bn})
