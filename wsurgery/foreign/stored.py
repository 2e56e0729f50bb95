"""Tensors as a pickle describes them: where their elements stand, and what kind they are."""

from dataclasses import dataclass

from wsurgery.checkpoint.dtypes import BITS
from wsurgery.checkpoint.header import TensorInfo
from wsurgery.errors import WsurgeryError, printable
from wsurgery.foreign.opcodes import Ignored, Span

MAX_DIMENSIONS = 64  # numpy's limit
# Bytes that a tensor may take beyond its storage: `expand` repeats elements at no cost in the file.
_MAX_EXPANDED = 64 << 20
# Bits of an element, of those as well that safetensors has not.
WIDTHS = {**BITS, "complex128": 128, "qint8": 8, "quint8": 8, "qint32": 32, "quint4x2": 8, "quint2x4": 8}


@dataclass(frozen=True)
class Storage:
    """A run of elements in a file, which one or more tensors view."""

    key: str
    dtype: str
    elements: int

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.elements * WIDTHS[self.dtype] // 8


@dataclass(frozen=True, eq=False)
class Inline(Storage):
    """A run of elements that stands in the pickle itself, of one array."""

    content: bytes | bytearray | Span

    def read(self) -> bytearray:
        """Return the bytes.

        Raises:
            WsurgeryError: they are not as many as the array's shape says.
        """
        data = self.content.read() if isinstance(self.content, Span) else bytearray(self.content)
        if len(data) != self.nbytes:
            raise WsurgeryError(f"has a broken array: {len(data)} bytes, not {self.nbytes}")
        return data


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as the pickle describes it, unchecked and unread.

    `offset` and `stride` count elements of `dtype`; `flipped` are the bits of each that are the other way round in the storage.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    flipped: int = 0

    def info(self, name: str) -> TensorInfo:
        """Check the numbers and describe the tensor under a name.

        Raises:
            WsurgeryError: it is malformed, or reaches outside its storage.
        """
        numbers = (self.offset, *self.shape, *self.stride)
        if (
            not all(type(number) is int and 0 <= number < 2**63 for number in numbers)
            or len(self.shape) != len(self.stride)
            or len(self.shape) > MAX_DIMENSIONS
            or not isinstance(self.storage, Storage)
            or not isinstance(self.dtype, str)
            or self.dtype not in BITS
        ):
            raise WsurgeryError(
                f"has a broken tensor: {printable(name)} has no valid storage, dtype, shape, stride and offset"
            )
        info = TensorInfo(name, self.dtype, self.shape, 0, 0).placed(0)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        width = BITS[self.dtype] // 8
        if info.elements and (last + 1) * width > self.storage.nbytes:
            raise WsurgeryError(
                f"has a broken tensor: {printable(name)} reaches element {last} of a storage of "
                f"{self.storage.nbytes // width}"
            )
        if info.nbytes > self.storage.nbytes + _MAX_EXPANDED:
            raise WsurgeryError(
                f"has a tensor, {printable(name)}, of {info.nbytes} bytes that repeats a storage of "
                f"{self.storage.nbytes}: save it with .contiguous() if it is meant to be so large"
            )
        return info


class Unheld(Ignored):
    """A tensor of a kind that safetensors has not: `name` is the kind, `sparse`, a dtype or a class."""

    __slots__ = ()
