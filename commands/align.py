"""`wsurgery align`."""

from typing import Annotated

from wsurgery.plugin import Argument, Checkpoint, Option, Result, edit


@edit()
def align(
    a: Annotated[Checkpoint, Argument(metavar="A", help="The network that is permuted, or - for standard input.")],
    *,
    to: Annotated[Checkpoint, Option(metavar="B", help="A network of the same architecture.")],
) -> Result:
    """Permute the hidden units of A so that its weights come close to those of B, which changes no output of the network.

    It is weight matching (Ainsworth, Hayase and Srinivasa 2023, arXiv 2209.04836): one group of units after another is
    assigned to that of B, until nothing changes. That is a local optimum, never further from B than A was, and the whole way
    back where A is a permutation of B. Batch norm's running statistics go along, and do not count in the distance.

    Networks are those of wsurgery permute. Needs SciPy: pip install 'wsurgery[train]'.

    Example: wsurgery align a.safetensors --to b.safetensors | wsurgery lerp - b.safetensors --t 0.5 > halfway.safetensors
    """
    from scipy.optimize import linear_sum_assignment

    from wsurgery.operations.alignment import align

    return align(a, to, assign=linear_sum_assignment)
