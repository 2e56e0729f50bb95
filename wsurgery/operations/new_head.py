"""A fresh classifier for another number of classes."""

from dataclasses import replace
from typing import Any

import numpy as np

from wsurgery.anatomy import role_map
from wsurgery.anatomy.architecture import last_weights
from wsurgery.anatomy.roles import LAYERS
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array, Compute, Map
from wsurgery.operations.layers import placed
from wsurgery.operations.random_init import random_init
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.tensor_edit import Result, TensorEdit, copy

_CLASSIFIERS = {"classifier", "fc", "head", "last_linear", "logits"}  # who of several outputs has the classes


def new_head(
    checkpoint: Checkpoint, *, architecture: dict[str, Any] | None, num_classes: int, random: RandomStream
) -> Result:
    """Replace the classifier, weight and bias, by a fresh one; copy everything else.

    The classifier is each weight (classes, …) of a linear layer or convolution in the block `head`, and the bias
    (classes,) beside it. Both are uniform in ±1/√fan_in, torch's default for linear layers. Several (a distilled
    transformer's two, Inception's auxiliary one) are all replaced. Attention pooling is none.

    Args:
        checkpoint: the network.
        architecture: as its history records it; `num_classes` there, or else the weight that is called as classifiers are, or
            else the head's last, which feeds no other of it, tells which tensors have one row a class.
        num_classes: rows of the new tensors; the old number redraws them.
        random: the draws of this edit.

    Raises:
        UsageError: the network has no head, by its tensors or by the classes that are recorded.
        WsurgeryError: no weight of the head has a row for each of the recorded classes.
    """
    blocks, roles = placed(checkpoint), role_map(checkpoint.tensors)
    layers = {name: x.shape for name, x in checkpoint.tensors.items() if roles[name] in LAYERS}
    weights = [checkpoint.tensors[name] for name in last_weights(layers, blocks)]
    classes = (architecture or {}).get("num_classes")
    if not weights or classes == 0:
        raise UsageError(
            f"{checkpoint.label} has no head to replace: make a network that has one with wsurgery init ARCH --num-classes "
            f"{num_classes}, or init --model FILE.py:CALLABLE, and transfuse this one into it (its blocks are "
            f"{', '.join(_distinct(blocks))})"
        )
    if classes is None:
        named = [tensor for tensor in weights if tensor.name.rpartition(".")[0].rpartition(".")[2] in _CLASSIFIERS]
        classes = (named or weights)[-1].shape[0]
    classifiers = {tensor.name.rpartition(".")[0]: tensor for tensor in weights if tensor.shape[0] == classes}
    if not classifiers:
        raise WsurgeryError(
            f"{checkpoint.label} records {printable(str(classes))} classes, and no weight of its head has as many rows: "
            f"{printable(weights[-1].name)} is {weights[-1].shape}"
        )
    edits = []
    for tensor in checkpoint.tensors.values():
        module, _, part = tensor.name.rpartition(".")
        weight = classifiers.get(module)
        if weight is None or (tensor is not weight and (part != "bias" or tensor.shape != (classes,))):
            edits.append(copy(tensor, checkpoint))
            continue
        fresh = replace(tensor, shape=(num_classes, *tensor.shape[1:])).placed(tensor.start)
        edits.append(TensorEdit(fresh, checkpoint, tensor, _draw(fresh, weight, replace(random, tensor=tensor.name))))
    others = [tensor for tensor in weights if tensor.shape[0] != classes]
    kept = ", ".join(f"{printable(tensor.name)} {tensor.shape}" for tensor in others)
    says = [f"replaced {', '.join(map(printable, classifiers))}, and kept the other outputs: {kept}"] if others else []
    return Result(edits, says=says)


def _draw(fresh: TensorInfo, weight: TensorInfo, random: RandomStream) -> Compute:
    fan_in = weight.elements // weight.shape[0] if weight.shape[0] else 0

    def draw(x: Array, run: Map) -> Array:
        return random_init(np.empty(fresh.shape, x.dtype), role="linear", fan_in=fan_in, random=random, run=run)

    return draw


def _distinct(blocks: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(blocks.values()))
