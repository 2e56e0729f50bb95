"""A fresh network, written one tensor after another."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from wsurgery.anatomy import role_map
from wsurgery.checkpoint import TensorInfo, open_output
from wsurgery.checkpoint.dtypes import numpy_dtype
from wsurgery.checkpoint.header import format_header
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.writer import write_all
from wsurgery.cores import cores
from wsurgery.operations.architectures import Layout
from wsurgery.operations.random_init import random_init
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.rewrite import Array


def write_random_network(
    layout: Layout, history: History, path: Path | None, *, seed: int, force: bool = False, threads: int | None = None
) -> None:
    """Write a fresh network to a file, atomically, or (None) to standard output, one tensor after another.

    Its tensors have the distributions that timm draws them from; the numbers depend on seed and tensor name alone.

    Args:
        layout: the tensors.
        history: what the file says of itself.
        path: the file.
        seed: of the draws.
        force: whether an existing file is replaced.
        threads: default all cores; they do not change the result.

    Raises:
        UsageError: the file exists and `force` is off.
    """
    tensors = [
        TensorInfo(name, "I64" if name.endswith("num_batches_tracked") else "F32", shape, 0, 0).placed(0)
        for name, shape in layout.shapes.items()
    ]
    roles = role_map({tensor.name: tensor for tensor in tensors})
    with open_output(path, force=force) as stream, ThreadPoolExecutor(threads or cores()) as pool:
        write_all(stream, format_header(tensors, history.metadata()))
        for tensor in tensors:
            x: Array = np.zeros(tensor.shape, numpy_dtype(tensor.dtype))
            if tensor.name not in layout.zeros:
                # These networks count fan_out over all groups, however few channels each has.
                role = "conv" if roles[tensor.name] == "depthwise" else roles[tensor.name]
                fan_in = math.prod(layout.shapes.get(f"{tensor.name.rpartition('.')[0]}.weight", ())[1:])
                random = RandomStream(seed, "init", 0, tensor.name)
                x = random_init(x, role=role, fan_in=fan_in, random=random, run=pool.map)
            write_all(stream, x.reshape(-1).view(np.uint8).data)
