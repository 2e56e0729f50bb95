"""What a network keeps and does not train: statistics, and what it computes from its settings, frequencies, masks, ranges."""

import re
from collections.abc import Sequence

BATCH_NORM_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_NAMES = re.compile(r"\w*inv_freq|\w+_mask|tril|masked_bias|relative_coords_table|(?:in|out)put_(?:min|max)")
_SPECTRAL = re.compile(r"weight_[uv]|_[uv]")  # the vectors of a spectral norm


def is_buffer(part: str, shape: Sequence[int]) -> bool:
    """Whether a floating-point tensor is no parameter, but what its module computes.

    Args:
        part: its name in its module, what is after the last full stop.
        shape: its own.
    """
    causal = part == "bias" and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]  # GPT-2, GPT-NeoX
    return bool(_NAMES.fullmatch(part)) or causal or (len(shape) == 1 and bool(_SPECTRAL.fullmatch(part)))
