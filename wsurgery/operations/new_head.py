"""A fresh classifier for another number of classes."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from wsurgery.anatomy import HEAD, role_map
from wsurgery.anatomy.architecture import CLASSIFIERS, is_last, last_weights
from wsurgery.anatomy.roles import LAYERS
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.spool import spooled
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.operations.arrays import Array, Compute, Map
from wsurgery.operations.layers import placed
from wsurgery.operations.names import frozen_after
from wsurgery.operations.random_init import random_init
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.tensor_edit import Result, TensorEdit

_INSTEAD = (
    "make a network that has one with wsurgery init ARCH --num-classes {}, or init --model FILE.py:CALLABLE, and transfuse this "
    "one into it"
)


def new_head(checkpoint: Checkpoint, *, num_classes: int, random: RandomStream) -> Result:
    """Replace the classifier, weight and bias, by a fresh one; copy everything else.

    The classifier is each weight (classes, …) of a linear layer or convolution in the block `head`, and the bias
    (classes,) beside it. Both are uniform in ±1/√fan_in, torch's default for linear layers. Several (a distilled
    transformer's two, Inception's auxiliary one) are all replaced. Attention pooling is none. What is tied to one, and stands
    outside the head (an embedding), keeps the old values under its own name.

    Args:
        checkpoint: the network. `num_classes` in its history, or else the weight that is called as classifiers are, or else
            the head's last, which feeds no other of it, tells which tensors have one row a class.
        num_classes: rows of the new tensors; the old number redraws them.
        random: the draws of this edit.

    Raises:
        UsageError: the network has no head, by its tensors or by the classes that are recorded.
        WsurgeryError: no weight of the head has a row for each of the recorded classes, or which of several it is, is not known.
    """
    history = History.of(checkpoint)
    aliases = history.aliases(checkpoint.tensors)
    tied = {alias: replace(checkpoint.tensors[name], name=alias) for alias, name in aliases.items()}
    blocks = placed(checkpoint, tied)
    tensors = {name: tensor for name, tensor in (checkpoint.tensors | tied).items() if name in blocks}
    roles = role_map(tensors)
    layers = {name: x.shape for name, x in tensors.items() if roles[name] in LAYERS}
    weights = [tensors[name] for name in last_weights(layers, blocks)]
    classes = (history.architecture or {}).get("num_classes")
    if not weights or classes == 0:
        raise UsageError(
            f"{checkpoint.label} has no head to replace: {_INSTEAD.format(num_classes)} "
            f"(its blocks are {', '.join(_distinct(blocks))})"
        )
    if classes is None:
        named = [tensor for tensor in weights if tensor.name.rpartition(".")[0].rpartition(".")[2] in CLASSIFIERS]
        classes = (named or weights)[-1].shape[0]
    classifiers = {tensor.name.rpartition(".")[0]: tensor for tensor in weights if tensor.shape[0] == classes}
    if not classifiers:
        raise WsurgeryError(
            f"{checkpoint.label} records {printable(str(classes))} classes, and no weight of its head has as many rows: "
            f"{printable(weights[-1].name)} is {weights[-1].shape}"
        )
    for tensor in classifiers.values():
        taker = next((each for each in weights if each is not tensor and each.shape[1] == tensor.shape[0]), None)
        if taker and not is_last(tensor.name):
            raise WsurgeryError(
                f"{checkpoint.label}: {printable(tensor.name)} {tensor.shape} may be the classifier, or feed "
                f"{printable(taker.name)} {taker.shape}: {_INSTEAD.format(num_classes)}, with --except for the classifier"
            )
    beside: dict[str, TensorInfo] = {}  # what is replaced → the weight of its layer
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        weight = classifiers.get(module)
        if weight and (tensor is weight or (part == "bias" and tensor.shape == (classes,))):
            beside[name] = weight
    old, new = _names(checkpoint, aliases, {*beside}, blocks)
    if any(old[name] for name in new):
        checkpoint = spooled(checkpoint)  # one tensor is read twice
    edits = []
    for name, tensor in checkpoint.tensors.items():
        if old[name]:
            edits.append(TensorEdit(replace(tensor, name=old[name][0]), checkpoint, tensor))
        if name in new:
            fresh = replace(tensor, name=new[name][0], shape=(num_classes, *tensor.shape[1:])).placed(tensor.start)
            weight = next(beside[each] for each in new[name] if each in beside)
            draw = _draw(fresh, weight, replace(random, tensor=fresh.name))
            edits.append(TensorEdit(fresh, checkpoint, tensor, draw))
    ties = {alias: first for first, *more in filter(None, [*old.values(), *new.values()]) for alias in more}
    history = replace(history, others={k: v for k, v in history.others.items() if k not in aliases} | ties)
    if apart := {name: old[name][0] for name in new if old[name]}:
        history = replace(history, freeze=frozen_after(history.freeze, {name: name for name in old} | apart))
    says = [f"{printable(alias)} is no longer tied to {printable(new[name][0])}" for name in new for alias in old[name]]
    others = [tensor for tensor in weights if tensor.shape[0] != classes]
    if others:
        kept = ", ".join(f"{printable(tensor.name)} {tensor.shape}" for tensor in others)
        says.append(f"replaced {', '.join(map(printable, classifiers))}, and kept the other outputs: {kept}")
    return Result(edits, history.with_architecture(num_classes=num_classes), says=says)


def _names(
    checkpoint: Checkpoint, aliases: Mapping[str, str], replaced: set[str], blocks: Mapping[str, str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Say under which names each tensor stays, and under which it is new: what is replaced, or tied to that in the head."""
    old = {name: [name] for name in checkpoint.tensors}
    for alias, name in aliases.items():
        old[name].append(alias)
    new = {}
    for name, names in old.items():
        if not replaced.isdisjoint(names):
            new[name] = [each for each in names if each in replaced or blocks.get(each) == HEAD]
            old[name] = [each for each in names if each not in new[name]]
    return old, new


def _draw(fresh: TensorInfo, weight: TensorInfo, random: RandomStream) -> Compute:
    fan_in = weight.elements // weight.shape[0] if weight.shape[0] else 0

    def draw(x: Array, run: Map) -> Array:
        return random_init(np.empty(fresh.shape, x.dtype), role="linear", fan_in=fan_in, random=random, run=run)

    return draw


def _distinct(blocks: dict[str, str]) -> list[str]:
    return list(dict.fromkeys(blocks.values()))
