"""`wsurgery prune`."""

from typing import Annotated, Literal

from wsurgery.plugin import Checkpoint, Option, RandomStream, Result, Selection, edit


@edit()
def prune(
    checkpoint: Checkpoint,
    *,
    sparsity: Annotated[float, Option(metavar="S", min=0, max=1, help="Share of zeros; those that are there count.")],
    scope: Annotated[
        Literal["tensor", "all"],
        Option(help="S is that of each tensor, or of all together: the input is read twice more."),
    ] = "tensor",
    by: Annotated[Literal["magnitude", "random"], Option(help="Which go: the least, or any.")] = "magnitude",
    selection: Selection,
    random: RandomStream,
) -> Result:
    """Set weights to zero: exactly a share of them, the smallest ones or random ones. `train --keep-zeros` keeps them so.

    Pruned are the weights of convolutions and linear layers, the first among them, but not the head's, as where lottery
    tickets are drawn in deep networks; norms and biases never. --only or --role chooses others.

    Example: wsurgery prune run/last.safetensors --sparsity 0.8 --scope all > ticket.safetensors
    """
    from wsurgery.operations.prune import prune_edits

    together, by_magnitude = scope == "all", by == "magnitude"
    return prune_edits(
        checkpoint, sparsity, together=together, by_magnitude=by_magnitude, selection=selection, random=random
    )
