"""The way back: a checkpoint as torch.save or numpy.savez would write it, without torch and one tensor at a time."""

import io
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from wsurgery.checkpoint.dtypes import numpy_dtype
from wsurgery.checkpoint.header import TensorInfo
from wsurgery.checkpoint.writer import AtomicFile
from wsurgery.errors import WsurgeryError, printable
from wsurgery.foreign.pickles import DTYPES, STORAGES
from wsurgery.operations.planning import Planned
from wsurgery.operations.rewrite import arrays

_FOLDER = "archive"
_CLASSES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def export(planned: Planned, path: Path, *, force: bool = False, threads: int | None = None) -> None:
    """Write what edits make as a `.npz`, or else as a file of torch.save, which `torch.load(weights_only=True)` reads.

    Tied tensors share a storage in the one, and stand twice in the other. The history has no place in either. The file
    appears whole or not at all.

    Raises:
        WsurgeryError: a tensor has a type that the format has not.
        UsageError: the output exists and `force` is off.
    """
    aliases: dict[str, list[str]] = {}
    for alias, kept in planned.history.aliases(planned.tensors).items():
        aliases.setdefault(kept, []).append(alias)
    numpys = path.suffix == ".npz"
    for tensor in planned.tensors.values():
        _require_known(tensor, numpys=numpys)
    with AtomicFile(path, force=force) as stream, _archive(stream) as archive:
        if not numpys:
            _write(archive, f"{_FOLDER}/data.pkl", _pickled(planned.tensors, aliases))
            _write(archive, f"{_FOLDER}/byteorder", b"little")
        for i, (name, x) in enumerate(arrays(planned, threads)):
            if not numpys:
                _write(archive, f"{_FOLDER}/data/{i}", x.reshape(-1).view(np.uint8).data)
                continue
            for each in (name, *aliases.get(name, ())):
                with _member(archive, f"{each}.npy", x.nbytes) as member:
                    np.lib.format.write_array(member, x, allow_pickle=False)
        if not numpys:
            _write(archive, f"{_FOLDER}/version", b"3\n")


def _require_known(tensor: TensorInfo, *, numpys: bool) -> None:
    if not numpys and tensor.dtype in {**_CLASSES, **_NAMES}:
        return
    try:
        if numpys and numpy_dtype(tensor.dtype).kind in "fiubc":
            return
    except TypeError:  # a part of a byte
        pass
    other = "numpy" if numpys else "torch"
    raise WsurgeryError(f"{printable(tensor.name)} is {tensor.dtype}, which {other} has not: wsurgery cast it first")


@contextmanager
def _archive(stream: BinaryIO) -> Iterator[zipfile.ZipFile]:
    buffered = io.BufferedWriter(cast(io.RawIOBase, stream), 1 << 20)
    try:
        with zipfile.ZipFile(buffered, "w", zipfile.ZIP_STORED) as archive:
            yield archive
    finally:
        buffered.detach()


def _member(archive: zipfile.ZipFile, name: str, size: int) -> Any:
    info = zipfile.ZipInfo(name)  # of 1980: the same input gives the same bytes
    return archive.open(info, "w", force_zip64=size >= 1 << 30)


def _write(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    with _member(archive, name, len(data)) as member:
        member.write(data)


def _pickled(tensors: dict[str, TensorInfo], aliases: dict[str, list[str]]) -> bytes:
    parts = [b"\x80\x02", _ORDERED_DICT, b"("]
    for key, (name, tensor) in enumerate(tensors.items()):
        described = _described(tensor, str(key))
        for each in (name, *aliases.get(name, ())):
            parts += [_plain(each), described]
    return b"".join([*parts, b"u."])


def _described(tensor: TensorInfo, key: str) -> bytes:
    """Pickle the call that makes a tensor of its storage: protocol 2, as torch writes it."""
    typed = tensor.dtype in _CLASSES
    kind = f"torch\n{_CLASSES[tensor.dtype]}" if typed else "torch.storage\nUntypedStorage"
    elements = tensor.elements if typed else tensor.nbytes
    storage = b"".join(
        (b"(", _plain("storage"), f"c{kind}\n".encode(), _plain(key), _plain("cpu"), _plain(elements), b"tQ")
    )
    steps = [1]
    for size in reversed(tensor.shape[1:]):
        steps.append(steps[-1] * max(size, 1))
    strides = tuple(reversed(steps[: len(tensor.shape)]))
    numbers = _plain(0) + _plain(tensor.shape) + _plain(strides) + _plain(False) + _ORDERED_DICT
    if typed:
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"tR"
    dtype = f"ctorch\n{_NAMES[tensor.dtype]}\n".encode()
    return b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage + numbers + dtype + b"tR"


def _plain(value: Any) -> bytes:
    return pickle.dumps(value, 2)[2:-1]
