"""Zip archives and numpy's arrays as they are found: what they say of themselves is checked before memory is taken by it."""

import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from wsurgery.errors import WsurgeryError, printable
from wsurgery.untrusted import open_regular

_BLOCK = 1 << 20  # bytes read at a time
_FREE = 1 << 27  # bytes that a member may unpack to, however small it is
_RATIO = 100  # and how often its packed bytes, beyond
_ENCRYPTED = 1
_MAX_HEADER = 10_000  # bytes of an array's header: numpy's limit, too
_MAX_DIMENSIONS = 64  # numpy's limit


@contextmanager
def one_line_errors(label: str) -> Iterator[None]:
    """Turn whatever a broken file makes zipfile, zlib and numpy raise, which is nearly anything, into one line."""
    try:
        yield
    except WsurgeryError as error:
        raise type(error)(f"{label} {error}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened at all; without a name, its own numbers led nowhere
        what = printable(f"{type(error).__name__}: {error}")
        raise WsurgeryError(f"{label} is damaged or not what it seems ({what}): download it again") from None


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a regular file as a zip archive."""
    with open_regular(path, buffering=-1) as stream, zipfile.ZipFile(stream) as archive:
        yield archive


def open_member(archive: zipfile.ZipFile, name: str, limit: float = math.inf) -> IO[bytes]:
    """Open a member of at most `limit` bytes, whose declared size is held against what is in the archive.

    Raises:
        WsurgeryError: it is encrypted, packed in another way than stored or deflated, or far larger than what is there.
        KeyError: there is none of that name.
        Exception: it is damaged: nearly any.
    """
    info = archive.getinfo(name)
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WsurgeryError(
            f"has a member {printable(name)} that is encrypted or packed in an unusual way: pack it anew"
        )
    stream = archive.fp
    assert stream is not None
    there = min(info.compress_size, stream.seek(0, io.SEEK_END))
    most = there if info.compress_type == zipfile.ZIP_STORED else max(_FREE, _RATIO * there)
    if info.file_size > min(limit, most):
        raise WsurgeryError(
            f"has a broken member {printable(name)} of {info.file_size} bytes, packed into {info.compress_size}"
        )
    return archive.open(info)


def read_exactly(stream: Any, n: int) -> bytearray:
    """Read n bytes.

    Raises:
        EOFError: there are fewer.
    """
    buffer = bytearray(n)
    view, done = memoryview(buffer), 0
    while done < n:
        got = stream.readinto(view[done : done + _BLOCK])
        if not got:
            raise EOFError(f"{done} of {n} bytes")
        done += got
    return buffer


@dataclass(frozen=True)
class ArrayHeader:
    """What an .npy file says of its array, checked.

    Attributes:
        length: bytes of the header, before those of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_array_header(stream: Any) -> ArrayHeader:
    """Read the header that an .npy begins with, and no byte beyond.

    Raises:
        WsurgeryError: it is none, or its array is of Python's objects or of several fields.
        EOFError: it ends early.
    """
    start = bytes(stream.read(8))
    if not start.startswith(b"\x93NUMPY") or start[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise WsurgeryError("is no .npy file of numpy's")
    width = 2 if start[6] == 1 else 4
    size = bytes(read_exactly(stream, width))
    length = int.from_bytes(size, "little")
    if length > _MAX_HEADER:
        raise WsurgeryError(f"has an array's header of {length} bytes: more than {_MAX_HEADER} have none")
    text = io.BytesIO(size + read_exactly(stream, length))
    read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's parser of a header that is none
            shape, fortran, dtype = read(text, max_header_size=_MAX_HEADER)
    except Exception as error:  # there is no end of them
        raise WsurgeryError(f"has a broken array's header: {printable(str(error) or type(error).__name__)}") from None
    if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        raise WsurgeryError(f"has an array of the impossible shape {printable(str(shape))}")
    if dtype.hasobject or dtype.kind == "V" or math.prod(shape) * max(1, dtype.itemsize) >= 2**63:
        raise WsurgeryError(f"has an array of {printable(str(dtype))}, {printable(str(shape))}: only numbers are read")
    return ArrayHeader(shape, dtype, fortran, len(start) + width + length)


@contextmanager
def open_array(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[ArrayHeader, IO[bytes]]]:
    """Open a member of an .npz archive: its header, and the stream behind it.

    Raises:
        WsurgeryError: it is no array, or has fewer bytes than its shape says.
        KeyError: there is none.
    """
    with open_member(archive, name) as stream:
        header = read_array_header(stream)
        there = archive.getinfo(name).file_size - header.length
        if header.nbytes > there:
            raise WsurgeryError(f"has an array of {header.nbytes} bytes in {there}: it ends early")
        yield header, stream


def read_array(archive: zipfile.ZipFile, name: str) -> "np.ndarray[Any, np.dtype[Any]]":
    """Read an array of an .npz archive.

    Raises:
        As `open_array`.
    """
    with open_array(archive, name) as (header, stream):
        data = read_exactly(stream, header.nbytes)
    return np.ndarray(header.shape, header.dtype, data, order="F" if header.fortran else "C")
