"""Files that torch.save wrote, and pickles of arrays, read without torch, one storage at a time.

Two formats of torch's. Since PyTorch 1.6: a zip archive, `NAME/data.pkl` describes the tensors, `NAME/data/KEY` holds one
storage. Before: five pickles in a row (a magic number, the version, the machine, the tensors, the storages' keys), then the
storages. And one of numpy's arrays in a plain pickle, as detectron2 keeps them.

A file is untrusted input: unpickling can call any function, so only the few names in `_GLOBALS` are known here, none of
which does more than build a container; what else is named is an `Ignored`, and a file that names what is there to run code
is refused. Every number is checked before memory is taken by it.
"""

import math
import mmap
import pickle
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from wsurgery.archives import one_line_errors, open_member, read_exactly
from wsurgery.checkpoint.dtypes import BITS
from wsurgery.checkpoint.header import MAX_HEADER
from wsurgery.errors import WsurgeryError, printable
from wsurgery.foreign.opcodes import Ignored, Span, Unpickler
from wsurgery.foreign.stored import MAX_DIMENSIONS, WIDTHS, Inline, Storage, StoredTensor, Unheld
from wsurgery.untrusted import open_regular

ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:]  # the first pickle without its protocol's number

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8",
}  # fmt: skip
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
_OTHER_STORAGES = {
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8", "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
# The bits that say the sign of an element's imaginary part and, last, of the real one.
_SIGNS = {"F16": (15,), "BF16": (15,), "F32": (31,), "F64": (63,), "C64": (63, 31)}


class TorchFile:
    """An open file of torch.save. Use as a context manager.

    Attributes:
        label: what messages call it.
        content: what was saved: dicts, lists, numbers, strings, and a `StoredTensor` for each tensor.
    """

    def __init__(self, path: Path) -> None:
        self.label = printable(str(path))
        self._stream = open_regular(path, buffering=-1)
        self._last: tuple[Storage, bytearray] | None = None
        try:
            with one_line_errors(self.label):
                start = self._stream.read(32)
                kind = _Zip if start.startswith(ZIP_MAGIC) else _Legacy if is_legacy(start) else _Plain
                self._layout: _Zip | _Legacy | _Plain = kind(self._stream)
        except BaseException:
            self._stream.close()
            raise
        self.content = self._layout.content

    def read(self, tensor: StoredTensor, name: str) -> memoryview:
        """Read a tensor's bytes, contiguous in C order. Its `info` must have been asked for: that is the check.

        Raises:
            WsurgeryError: its storage is missing, has another length, or is damaged.
        """
        shape, width = tensor.shape, BITS[tensor.dtype] // 8
        if 0 in shape:
            return memoryview(b"")
        with one_line_errors(f"{self.label}: {printable(name)}"):
            data = self._storage(tensor.storage)
        # As unsigned integers: bytes are copied, never interpreted. A stride along a single element may be anything.
        strides = [step * width if size > 1 else 0 for size, step in zip(shape, tensor.stride, strict=True)]
        view = np.ndarray(shape, f"u{width}", data, tensor.offset * width, strides)
        if tensor.flipped:
            view = view ^ view.dtype.type(tensor.flipped)
        return np.ascontiguousarray(view).reshape(-1).view(np.uint8).data

    def _storage(self, storage: Storage) -> bytearray:
        """Read a storage; the last one is kept, since tensors that share one mostly follow one another."""
        if self._last is None or self._last[0] != storage:
            self._last = None  # before the next is read: two never stand in memory
            self._last = storage, storage.read() if isinstance(storage, Inline) else self._layout.read(storage)
        return self._last[1]

    def __enter__(self) -> "TorchFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self._last = None
        self._stream.close()


def is_legacy(prefix: bytes) -> bool:
    """Whether a file that starts with these 32 bytes is of torch.save's format of before PyTorch 1.6."""
    return prefix[:1] == b"\x80" and _LEGACY_MAGIC in prefix


class _Zip:
    def __init__(self, stream: BinaryIO) -> None:
        self.archive = zipfile.ZipFile(stream)
        if any(name.rpartition("/")[2] == "constants.pkl" for name in self.archive.namelist()):
            raise WsurgeryError(
                "is a TorchScript archive, which holds code: load it with torch.jit.load and torch.save its state_dict()"
            )
        if "model.weights.h5" in self.archive.namelist():
            raise WsurgeryError("is a .keras archive: unzip it, and convert the model.weights.h5 that is in it")
        pickles = [name for name in self.archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise WsurgeryError(f"is a zip archive with {len(pickles)} data.pkl: not a file of torch.save")
        self.folder = pickles[0].removesuffix("data.pkl")
        if f"{self.folder}byteorder" in self.archive.namelist() and self._member("byteorder", 16) != b"little":
            raise WsurgeryError("was written on a big-endian machine: load it with torch and save it again")
        data = bytes(self._member("data.pkl", MAX_HEADER))
        share = min(1, self.archive.getinfo(pickles[0]).compress_size / max(1, len(data)))
        self.content = Unpickler(data, 0, _find_global, partial(_find_storage, {}), share=share).load()

    def read(self, storage: Storage) -> bytearray:
        data = self._member(f"data/{storage.key}", storage.nbytes)
        if len(data) != storage.nbytes:
            raise WsurgeryError(
                f"has a broken storage {printable(storage.key)}: {len(data)} bytes, not {storage.nbytes}"
            )
        return data

    def _member(self, name: str, limit: int) -> bytearray:
        """Read a member of at most `limit` bytes."""
        try:
            stream = open_member(self.archive, self.folder + name, limit)
        except KeyError:
            raise WsurgeryError(f"misses its member {printable(name)}: download it again") from None
        with stream:
            return read_exactly(stream, self.archive.getinfo(self.folder + name).file_size)


class _Plain:
    """One pickle, of numpy's arrays: each is its own storage."""

    def __init__(self, stream: BinaryIO) -> None:
        self._file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # open as long as an array is to be read
        self.content = Unpickler(self._file, 0, _find_global, partial(_find_storage, {})).load()

    def read(self, storage: Storage) -> bytearray:
        raise WsurgeryError(f"describes a storage {printable(storage.key)} that is not in it")


class _Legacy:
    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        storages: dict[str, Storage] = {}
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
            position, size, found = 0, len(file), []
            for _ in ("magic number", "version", "machine", "tensors", "storages' keys"):
                unpickler = Unpickler(file, position, _find_global, partial(_find_storage, storages))
                found.append(unpickler.load())
                position = unpickler.position
        _, _, machine, self.content, keys = found
        if not machine["little_endian"]:
            raise WsurgeryError("was written on a big-endian machine: load it with torch and save it again")
        self.starts: dict[str, int] = {}
        for key in map(str, keys):
            storage = storages[key]
            stream.seek(position)
            elements = int.from_bytes(read_exactly(stream, 8), "little")
            if elements != storage.elements:
                raise WsurgeryError(
                    f"has a broken storage {printable(key)}: {elements} elements where the tensors say {storage.elements}"
                )
            self.starts[key] = position + 8
            position += 8 + storage.nbytes
        if position > size:
            raise WsurgeryError(f"ends early: {size} bytes of {position}: download it again")

    def read(self, storage: Storage) -> bytearray:
        if storage.key not in self.starts:
            raise WsurgeryError(f"misses its storage {printable(storage.key)}: download it again")
        self.stream.seek(self.starts[storage.key])
        return read_exactly(self.stream, storage.nbytes)


def _find_global(module: str, name: str) -> Any:
    module = {"__builtin__": "builtins"}.get(module, module)
    if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
        return STORAGES[name]
    if module in ("torch", "torch.cuda") and name in _OTHER_STORAGES:
        return _OTHER_STORAGES[name]
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    whole = f"{module}.{name}"
    if whole in _RUNS_CODE or module.partition(".")[0] in _RUNS_CODE:
        raise WsurgeryError(
            f"asks for the Python object {printable(whole)}, which could run code: if you trust it, load "
            "it with torch in a sandbox and save its state_dict() alone"
        )
    if (known := _GLOBALS.get(whole)) is not None:
        return known
    kind = whole.removeprefix("torch._utils._rebuild_")  # sparse_tensor, nested_tensor, …
    return Ignored(whole) if kind == whole else partial(_unheld, kind.removesuffix("_tensor"))


def _find_storage(storages: dict[str, Storage], identifier: Any) -> Any:
    if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
        return identifier[1]  # a class, and its source, which old versions kept beside it
    if not isinstance(identifier, tuple) or not 5 <= len(identifier) <= 6:
        raise WsurgeryError("describes a storage that torch.save does not write")
    kind, dtype, key, _, elements, *view = identifier
    if (
        kind != "storage"
        or not isinstance(dtype, str)
        or dtype not in WIDTHS
        or not isinstance(key, str)
        or type(elements) is not int
        or elements < 0
    ):
        raise WsurgeryError("describes a storage that torch.save does not write")
    if any(view):
        raise WsurgeryError("has a storage inside a storage: load it with a PyTorch of before 1.6 and save it again")
    storage = Storage(key, dtype, elements)
    if storages.setdefault(key, storage) != storage:
        raise WsurgeryError(f"describes its storage {printable(key)} in two ways")
    return storage


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> StoredTensor | Unheld:
    _, _, metadata, *_ = *rest, None, None, None  # requires_grad, hooks
    return _viewed(storage, offset, shape, stride, storage.dtype, metadata)


def _tensor_v3(storage: Storage, offset: int, shape: Any, stride: Any, *rest: Any) -> StoredTensor | Unheld:
    _, _, dtype, metadata, *_ = *rest, None  # requires_grad, hooks
    return _viewed(storage, offset, shape, stride, dtype, metadata)


def _viewed(storage: Storage, offset: int, shape: Any, stride: Any, dtype: Any, metadata: Any) -> StoredTensor | Unheld:
    """Make a tensor of a storage, which is negated or conjugated where its view says so."""
    if isinstance(dtype, Ignored) or dtype not in BITS:
        return Unheld(dtype.name.removeprefix("torch.") if isinstance(dtype, Ignored) else str(dtype))
    marks = metadata if isinstance(metadata, dict) else {}
    signs, flipped = _SIGNS.get(dtype, ()), 0
    if marks.get("neg"):
        if not signs:
            return Unheld(f"negated {dtype}")
        flipped = sum(1 << bit for bit in signs)
    if marks.get("conj") and len(signs) > 1:
        flipped ^= 1 << signs[0]
    return StoredTensor(storage, offset, _few(shape), _few(stride), dtype, flipped)


def _unheld(kind: str, *_: object) -> Unheld:
    return Unheld(kind)


def _few(sizes: Any) -> tuple[Any, ...]:
    return tuple(sizes[: MAX_DIMENSIONS + 1])  # one more: too many stay too many


def _parameter(data: StoredTensor, *_: object) -> StoredTensor:
    return data


def _tensor_with_attributes(rebuild: Any, kind: Any, arguments: Any, _: object) -> Any:
    if isinstance(rebuild, (Ignored, partial)):
        return Unheld(kind.name if isinstance(kind, Ignored) else "a subclass")
    if rebuild not in (_tensor, _tensor_v3, _parameter) or not isinstance(arguments, tuple) or len(arguments) > 16:
        raise WsurgeryError("has a tensor of a subclass that torch.save does not write so")
    return rebuild(*arguments)


class Array(Ignored):
    """A numpy array. Attributes: `tensor`, what it is; None of one that is not of numbers, or not little-endian."""

    __slots__ = ("tensor",)

    def __init__(self, shape: Any = (), dtype: Any = None, data: Any = None, *, fortran: bool = False) -> None:
        super().__init__("numpy.ndarray")
        self.tensor: StoredTensor | None = None
        if isinstance(data, str):
            data = data.encode("latin1")  # Python 2's
        name = dtype.dtype if isinstance(dtype, _Dtype) else ""
        if not name or not isinstance(shape, tuple) or not isinstance(data, (bytes, bytearray, Span)):
            return
        shape = _few(shape)
        if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
            return
        sizes = shape if fortran else shape[::-1]
        steps = [math.prod(sizes[:i]) for i in range(len(sizes))]
        storage = Inline(f"array {id(self)}", name, math.prod(shape), data)
        self.tensor = StoredTensor(storage, 0, shape, tuple(steps if fortran else steps[::-1]), name)

    def build(self, state: Any) -> None:
        """Take what numpy pickles of an array: version, shape, dtype, whether in Fortran's order, bytes."""
        if isinstance(state, tuple) and len(state) == 5:
            self.__init__(state[1], state[2], state[4], fortran=state[3] is True)  # type: ignore[misc]


class _Dtype(Ignored):
    """A numpy dtype. Attributes: `dtype`, its name in a header; empty of one that is none."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any = None, *_: object) -> None:
        super().__init__("numpy.dtype")
        self.dtype = _NUMPY_DTYPES.get(code, "") if isinstance(code, str) else ""

    def build(self, state: Any) -> None:
        """Take what numpy pickles of a dtype: the version, the order of bytes, and what only others have."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.dtype = ""


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: object) -> Array:
    return Array(shape, dtype, data, fortran=order == "F")


def _encoded(text: Any = b"", *_: object) -> Any:
    """Return Python 3's bytes in a pickle for Python 2."""
    return text.encode("latin1") if isinstance(text, str) else text


_NUMPY_DTYPES = {
    "f2": "F16", "f4": "F32", "f8": "F64", "i1": "I8", "i2": "I16", "i4": "I32", "i8": "I64", "u1": "U8", "u2": "U16",
    "u4": "U32", "u8": "U64", "b1": "BOOL", "c8": "C64",
}  # fmt: skip
# What is named to run code, and by no checkpoint: modules, and functions in others.
_RUNS_CODE = {
    "os", "posix", "nt", "subprocess", "commands", "popen2", "sys", "shutil", "socket", "runpy", "pty", "ctypes", "importlib",
    "webbrowser", "code", "codeop", "pdb", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.execfile",
    "builtins.open", "builtins.__import__", "io.open", "io.FileIO", "pickle.loads", "_pickle.loads", "torch.load",
    "torch.hub.load", "numpy.load",
}  # fmt: skip
_GLOBALS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_qtensor": lambda storage, *_: Unheld(storage.dtype),
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_with_attributes,
    "torch.Size": tuple,
    "collections.OrderedDict": dict,
    "collections.Counter": dict,
    "collections.defaultdict": lambda *_: {},  # its items come after it
    **{f"builtins.{kind.__name__}": kind for kind in (dict, list, set, frozenset)},
    "numpy.dtype": lambda *arguments: _Dtype(*arguments),
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: Array() for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of_buffer for core in ("core", "_core")},
    **dict.fromkeys(("_codecs.encode", "builtins.bytes", "builtins.bytearray"), _encoded),
}
