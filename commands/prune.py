"""`wsurgery prune`."""

from typing import Annotated, Literal

from wsurgery.plugin import Checkpoint, Option, RandomStream, Result, Selection, UsageError, edit


@edit()
def prune(
    checkpoint: Checkpoint,
    *,
    sparsity: Annotated[
        float | None, Option(metavar="S", min=0, max=1, help="Share of zeros; those that are there count.")
    ] = None,
    zeros_of: Annotated[Checkpoint | None, Option(metavar="FILE", help="Zeros where this checkpoint has them.")] = None,
    scope: Annotated[
        Literal["tensor", "all"],
        Option(help="S is that of each tensor, or of all together: the input is read two or three times more."),
    ] = "tensor",
    by: Annotated[Literal["magnitude", "random"], Option(help="Which go: the least, or any.")] = "magnitude",
    selection: Selection,
    random: RandomStream,
) -> Result:
    """Set weights to zero: exactly a share of them, the smallest ones or random ones, or those that are zero in another.

    `train --keep-zeros` keeps them so.

    Pruned are the weights of convolutions and linear layers, the first among them, but not the head's, as where lottery
    tickets are drawn in deep networks; norms and biases never. --only or --role chooses others.

    A lottery ticket is what a trained network leaves of its beginning (Frankle and Carbin 2019, arXiv 1803.03635): its own
    zeros, put on that.

    Example: wsurgery prune run/last.safetensors --sparsity 0.8 --scope all > pruned.safetensors

    Example: wsurgery prune run/init.safetensors --zeros-of pruned.safetensors > ticket.safetensors
    """
    from wsurgery.operations.prune import prune_edits
    from wsurgery.operations.prune import zeros_of as with_zeros_of

    if (sparsity is None) == (zeros_of is None):
        raise UsageError("say which weights go: --sparsity S or --zeros-of FILE, one of them")
    if zeros_of is not None:
        if scope != "tensor" or by != "magnitude":
            raise UsageError("--zeros-of says which weights go: leave out --scope and --by")
        return with_zeros_of(checkpoint, zeros_of, selection=selection)
    assert sparsity is not None
    together, by_magnitude = scope == "all", by == "magnitude"
    return prune_edits(
        checkpoint, sparsity, together=together, by_magnitude=by_magnitude, selection=selection, random=random
    )
