"""What a tensor does, from its name, its shape, its dtype and its siblings."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol

BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
ROLES = ("conv", "depthwise", "linear", "batch_norm", "norm", "embedding", "bias", "integer", "other")
_INCLUDES = {"conv": {"conv", "depthwise"}, "norm": {"norm", "batch_norm"}}
_EMBEDDING = re.compile(r"(?:pos|position|token|embed|rel_pos|relative|bias_table|rpe|latent|query|probe|register)")


class Described(Protocol):
    """A tensor as a header describes it."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102


def role_map(tensors: Mapping[str, Described]) -> dict[str, str]:
    """Give every tensor its role, one of `ROLES`.

    A batch norm is a module with both `running_mean` and `running_var`; all its tensors have the role `batch_norm`.
    A convolution is depthwise when each output channel reads one of several input channels: shape[1] = 1 < shape[0].
    """
    siblings: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        siblings[module][part] = tensor.shape
    return {name: _role(name, tensor, siblings[name.rpartition(".")[0]]) for name, tensor in tensors.items()}


def matches_role(role: str, wanted: str) -> bool:
    """Whether `role` is `wanted` or a kind of it: a depthwise convolution is a `conv`, a batch norm is a `norm`."""
    return role in _INCLUDES.get(wanted, {wanted})


def _role(name: str, tensor: Described, siblings: Mapping[str, tuple[int, ...]]) -> str:
    part, shape = name.rpartition(".")[2], tensor.shape
    if part in BATCH_NORM_PARTS and "running_mean" in siblings and "running_var" in siblings:
        return "batch_norm"
    if not tensor.dtype.startswith(("F", "BF", "C")):
        return "integer"
    if part == "weight" and len(shape) in (3, 4, 5):
        return "depthwise" if shape[1] == 1 < shape[0] else "conv"
    if part == "weight" and len(shape) == 2:
        return "embedding" if _EMBEDDING.search(name) and "bias" not in siblings else "linear"
    if part == "weight" and len(shape) == 1:
        return "norm"
    if part == "bias" and len(shape) == 1 and "weight" in siblings:
        return "norm" if len(siblings["weight"]) == 1 else "bias"
    return "embedding" if _EMBEDDING.search(part) else "other"
