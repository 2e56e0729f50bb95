"""Batch norm as the identity: the paper's BN Identity Init (appendix F.1)."""

import numpy as np

from wsurgery.operations.arrays import Array

_IDENTITY = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


def batch_norm_identity(x: Array, *, part: str) -> Array:
    """Return the identity's value of one of batch norm's five tensors.

    Args:
        x: the tensor, for its shape and dtype.
        part: `weight` (γ = 1), `bias` (β = 0), `running_mean` (μ = 0), `running_var` (σ² = 1), `num_batches_tracked` (0).
    """
    return np.full(x.shape, _IDENTITY[part], x.dtype)
