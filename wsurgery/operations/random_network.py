"""A fresh network, one tensor after another."""

import math
from dataclasses import replace
from functools import partial

from wsurgery.anatomy import role_map
from wsurgery.checkpoint import TensorInfo
from wsurgery.operations.architectures import Layout
from wsurgery.operations.arrays import Array, Map
from wsurgery.operations.planning import Made
from wsurgery.operations.random_init import random_init
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.tensor_edit import TensorEdit


def random_network(layout: Layout, random: RandomStream) -> list[TensorEdit]:
    """Draw a network with the distributions that timm draws its tensors from; seed and tensor name decide the numbers.

    Args:
        layout: the tensors.
        random: the draws of this edit.
    """
    tensors = [
        TensorInfo(name, "I64" if name.endswith("num_batches_tracked") else "F32", shape, 0, 0).placed(0)
        for name, shape in layout.shapes.items()
    ]
    zeros = Made("a fresh network", tensors, lambda tensor: bytearray(tensor.nbytes))
    roles = role_map(zeros.tensors)
    edits = []
    for name, tensor in zeros.tensors.items():
        # These networks count fan_out over all groups, however few channels each has.
        role = "conv" if roles[name] == "depthwise" else roles[name]
        fan_in = math.prod(layout.shapes.get(f"{name.rpartition('.')[0]}.weight", ())[1:])
        draw = partial(_drawn, role=role, fan_in=fan_in, random=replace(random, tensor=name))
        edits.append(TensorEdit(tensor, zeros, tensor, None if name in layout.zeros else draw))
    return edits


def _drawn(x: Array, run: Map, *, role: str, fan_in: int, random: RandomStream) -> Array:
    return random_init(x, role=role, fan_in=fan_in, random=random, run=run)
