"""Matrices of lower rank: the truncated singular value decomposition (Eckart and Young 1936)."""

from functools import partial

import numpy as np

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.cast import overflow_count, round_once
from wsurgery.operations.layers import layer_weights
from wsurgery.operations.linear_algebra import as_matrix, one_blas_thread
from wsurgery.operations.overflows import Overflows
from wsurgery.operations.tensor_edit import Result, TensorEdit


def low_rank_edits(checkpoint: Checkpoint, *, rank: int | None, energy: float | None, selection: Selection) -> Result:
    """Cut the selected weights of convolutions and linear layers down to a rank, or to a share of their squared norm.

    Args:
        checkpoint: open.
        rank, energy: as of `low_rank`.
        selection: of its tensors.

    Raises:
        UsageError: the part has no such weight.
    """
    chosen = layer_weights(checkpoint, selection, head=True)
    overflows = Overflows()

    def cut(x: Array, run: Map, *, name: str) -> Array:
        computed = low_rank(x, rank=rank, energy=energy)
        result = round_once(computed, x.dtype)
        overflows.note(name, overflow_count(computed, result), x.dtype)
        return result

    edits = []
    for name, tensor in checkpoint.tensors.items():
        is_matrix = name in chosen and len(tensor.shape) > 1 and tensor.elements
        edits.append(TensorEdit(tensor, checkpoint, tensor, partial(cut, name=name) if is_matrix else None))
    return Result(edits, warns=overflows.warnings)


def low_rank(x: Array, *, rank: int | None = None, energy: float | None = None) -> Array:
    """Return the nearest matrix of lower rank, in the Frobenius norm.

    What is narrower than float64 is decomposed by the eigenvectors of its Gram matrix in float64: singular values that this
    does not tell apart are smaller than the input's own rounding. float64 itself is decomposed directly.

    Args:
        x: floating point, (out, …), at least one element; taken as the matrix (out, everything else).
        rank: of the result, at least 1. A matrix that has no higher one comes back as it is.
        energy: in place of `rank`: the least rank that keeps this share of the squared norm, 0 to 1.

    Returns:
        Same shape, float64 (or `x` itself).

    Raises:
        WsurgeryError: it holds NaN, infinity, or numbers near the end of float64.
    """
    if rank is not None and rank >= min(len(x), x.size // len(x)):
        return x
    matrix = as_matrix(x)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    with one_blas_thread():
        if x.dtype == np.float64:
            left, singular, _ = np.linalg.svd(wide, full_matrices=False)
            squares = (singular / (singular[0] or 1)) ** 2
        else:
            squares, left = np.linalg.eigh(wide @ wide.T)
            squares, left = squares[::-1].clip(0), left[:, ::-1]
        if rank is None:
            kept = squares.cumsum()
            rank = min(int(np.searchsorted(kept, (energy or 0) * kept[-1])) + 1, len(kept))
        basis = np.ascontiguousarray(left[:, :rank])
        result = basis @ (basis.T @ wide)
    shaped: Array = (result if wide is matrix else result.T).reshape(x.shape)
    return shaped
