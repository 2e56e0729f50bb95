"""`wsurgery low-rank`."""

from typing import Annotated

from wsurgery.plugin import Checkpoint, Option, Result, Selection, UsageError, edit


@edit()
def low_rank(
    checkpoint: Checkpoint,
    *,
    rank: Annotated[int | None, Option(metavar="R", min=1, help="The rank of each matrix; lower ones stay.")] = None,
    energy: Annotated[
        float | None,
        Option(
            metavar="E", min=0, max=1, help="Or the least rank that keeps this share of the squared Frobenius norm."
        ),
    ] = None,
    selection: Selection,
) -> Result:
    """Replace each matrix by the nearest one of lower rank: its truncated singular value decomposition.

    The weight of a convolution or linear layer is the matrix (out, in·kh·kw). Other tensors of two dimensions or more are
    cut where --only or --role chooses them. The bytes are the same with any number of threads; LAPACK's last digits are the
    processor's.

    Example: wsurgery low-rank resnet50.safetensors --energy 0.9 > smooth.safetensors
    """
    from wsurgery.operations.low_rank import low_rank_edits

    if (rank is None) == (energy is None):
        raise UsageError("how much is kept? Give one of --rank R and --energy E")
    return low_rank_edits(checkpoint, rank=rank, energy=energy, selection=selection)
