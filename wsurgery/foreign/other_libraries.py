"""Weights of Keras (HDF5) and ONNX, through h5py and onnx: names as found, kernels as (out, in, kh, kw)."""

import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from wsurgery.archives import one_line_errors
from wsurgery.checkpoint.dtypes import dtype_name
from wsurgery.checkpoint.header import TensorInfo
from wsurgery.errors import WsurgeryError, printable

HDF5_MAGIC = b"\x89HDF"
_FREE, _RATIO = 1 << 27, 100  # bytes that an array may unpack to, and how often its packed bytes, beyond
_OPTIMIZERS = ("optimizer_weights/", "optimizer/")
_ROOTS = ("model_weights/", "_layer_checkpoint_dependencies/")
# A kernel's name ends so; by its dimensions, the order in which they become torch's.
_KERNELS: dict[str, dict[int, tuple[int, ...]]] = {
    "depthwise_kernel": {3: (1, 2, 0), 4: (2, 3, 0, 1)},  # (kh, kw, in, times) → (in · times, 1, kh, kw)
    "kernel": {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1), 5: (4, 3, 0, 1, 2)},
}
# Keras 3 numbers a layer's arrays, under the name of its class: `layers/depthwise_conv2d_1/vars/0`.
_NUMBERED = re.compile(r"(?:.*/)?(dense|(?:depthwise_|separable_)?conv([123])d(?:_transpose)?)(?:_\d+)?/vars/(\d+)")
_DEPTHWISE = ("DepthwiseConv1D", "DepthwiseConv2D")
_MAX_CONFIG = 10_000_000  # characters

Opened = tuple[dict[str, TensorInfo], Callable[[str], memoryview]]


@contextmanager
def open_hdf5(path: Path, label: str) -> Iterator[Opened]:
    """Open what Keras wrote: `model.save("x.h5")`, `save_weights`; also its `.weights.h5`.

    Yields:
        The tensors by name in the file's order, and what reads one.

    Raises:
        WsurgeryError: it is damaged, has no arrays of numbers, or one that is elsewhere or far larger than the file.
        ModuleNotFoundError: h5py is not there.
    """
    import h5py

    with one_line_errors(label):
        file = h5py.File(path, "r")
    with file:
        found: dict[str, Any] = {}
        with one_line_errors(label):
            file.visititems(lambda name, it: found.update({name: it}) if isinstance(it, h5py.Dataset) else None)
            kept = {
                name: it for name, it in found.items() if not name.startswith(_OPTIMIZERS) and it.dtype.kind in "fiubc"
            }
            sets = {_without_root(name): it for name, it in kept.items()}
            depthwise = _depthwise_layers(file.attrs.get("model_config"))
            layouts = {name: _layout(_kernel(name, it.ndim, depthwise), it.shape) for name, it in sets.items()}
            tensors = {name: _described(name, it.dtype, layouts[name][1]) for name, it in sets.items()}
            for name, it in sets.items():
                most = max(_FREE, _RATIO * it.id.get_storage_size())
                if it.external or it.is_virtual or tensors[name].nbytes > most:
                    raise WsurgeryError(f"has an array {printable(name)} that is not in the file itself")
        if not tensors:
            raise WsurgeryError(f"{label} holds no arrays of numbers")

        def read(name: str) -> memoryview:
            with one_line_errors(f"{label}: {printable(name)}"):
                axes, shape = layouts[name]
                return _bytes_of(sets[name][()].transpose(axes).reshape(shape))

        yield tensors, read


@contextmanager
def open_onnx(path: Path, label: str) -> Iterator[Opened]:
    """Open the initialisers of an ONNX file, which is read whole.

    Yields:
        As `open_hdf5`.

    Raises:
        WsurgeryError: it is damaged, has no initialisers, or one that is sparse or in another file.
        ModuleNotFoundError: onnx is not there.
    """
    import onnx

    with one_line_errors(label):
        graph = onnx.load(str(path), load_external_data=False).graph
        for sparse in graph.sparse_initializer:
            name = printable(sparse.values.name)
            raise WsurgeryError(f"keeps {name} sparse: save the network with a dense initialiser in its place")
        held = {each.name: each for each in graph.initializer}
        for name, each in held.items():
            if each.data_location == onnx.TensorProto.EXTERNAL:
                raise WsurgeryError(f"keeps {printable(name)} in another file: save it whole with onnx.save")
        arrays = {name: onnx.numpy_helper.to_array(each) for name, each in held.items()}
        tensors = {name: _described(name, x.dtype, x.shape) for name, x in arrays.items()}
    if not tensors:
        raise WsurgeryError(f"{label} has no initialisers")
    yield tensors, lambda name: _bytes_of(arrays[name])


def _without_root(name: str) -> str:
    return next((name[len(root) :] for root in _ROOTS if name.startswith(root)), name)


def _depthwise_layers(config: Any) -> set[str]:
    """Name the depthwise convolutions of a model's JSON: Keras 3 calls their kernels in an .h5 as any others."""
    text = config.decode() if isinstance(config, bytes) else config
    if not isinstance(text, str) or len(text) > _MAX_CONFIG:
        return set()
    found, waiting = set(), [json.loads(text)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            inner = one.get("config")
            if one.get("class_name") in _DEPTHWISE and isinstance(inner, dict):
                found.add(str(inner.get("name")))
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return found


def _kernel(name: str, dimensions: int, depthwise: Collection[str]) -> str:
    """Say which kind of kernel an array is, a key of `_KERNELS`; empty for what is none."""
    if match := _NUMBERED.fullmatch(name):
        layer, spatial, number = match.groups()
        if dimensions != int(spatial or 0) + 2:
            return ""
        if number == "0":
            return "depthwise_kernel" if layer.startswith(("depthwise", "separable")) else "kernel"
        return "kernel" if number == "1" and layer.startswith("separable") else ""
    module, _, last = name.removesuffix(":0").rpartition("/")
    if last == "kernel" and module.rpartition("/")[2] in depthwise:
        return "depthwise_kernel"
    return next((ending for ending in _KERNELS if last.endswith(ending)), "")


def _layout(kernel: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the order of an array's dimensions as torch has them, and the shape then."""
    axes = _KERNELS.get(kernel, {}).get(len(shape), tuple(range(len(shape))))
    turned = tuple(shape[axis] for axis in axes)
    if kernel == "depthwise_kernel" and len(shape) in _KERNELS[kernel]:
        turned = (turned[0] * turned[1], 1, *turned[2:])
    return axes, turned


def _described(name: str, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> TensorInfo:
    try:
        return TensorInfo(name, dtype_name(dtype.newbyteorder("<")), tuple(shape), 0, 0).placed(0)
    except TypeError as error:
        raise WsurgeryError(f"has an array {printable(name)} that cannot be written: {error}") from None


def _bytes_of(x: "np.ndarray[Any, np.dtype[Any]]") -> memoryview:
    x = np.ascontiguousarray(x.astype(x.dtype.newbyteorder("<"), copy=False))
    return x.reshape(-1).view(np.uint8).data
