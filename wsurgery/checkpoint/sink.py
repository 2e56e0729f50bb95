"""Where a checkpoint is written to: an unbuffered stream, or an object in a store."""

import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeAlias

from wsurgery.errors import UsageError, printable

_GATHERED = 1 << 18  # bytes of small pieces that are written together


class AppearedError(UsageError):
    """Somebody else wrote what was not there when this writer looked, and it was not to be replaced."""

    def __init__(self, label: str) -> None:
        super().__init__(f"{printable(label)} appeared meanwhile: add --force to overwrite it")


class RemoteOutput(ABC):
    """Context manager that writes an object in a store, which appears when it is left without an error.

    Attributes:
        copied: the file that it is a copy of, if it is one.
    """

    copied: Path | None = None

    def __enter__(self) -> "RemoteOutput":
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have it appear, or take it back."""

    @abstractmethod
    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take in bytes, and return how many: all."""

    @abstractmethod
    def write_again(self, data: bytes) -> None:
        """Replace what was written first by as many other bytes."""

    @abstractmethod
    def settle(self) -> None:
        """Send all that was written, so that it can appear within a moment."""


Sink: TypeAlias = BinaryIO | RemoteOutput


def write_all(stream: Sink, data: bytes | bytearray | memoryview) -> None:
    """Write every byte of `data` to an unbuffered stream."""
    view = memoryview(data).cast("B")
    while view:
        view = view[stream.write(view) :]


def goes_back(stream: Sink) -> bool:
    """Whether what was written first can be written again, once all else is: of a file and an upload, not of a pipe."""
    if isinstance(stream, RemoteOutput):
        return True
    return stat.S_ISREG(os.fstat(stream.fileno()).st_mode) and stream.fileno() != 1


def write_again(stream: Sink, data: bytes) -> None:
    """Replace what was written first by as many other bytes."""
    if isinstance(stream, RemoteOutput):
        stream.write_again(data)
    else:
        stream.seek(0)
        write_all(stream, data)


def settle(stream: Sink) -> None:
    """Have all that was written where it will be, so that it can appear within a moment.

    Raises:
        OSError: it cannot be.
    """
    if isinstance(stream, RemoteOutput):
        stream.settle()
    else:
        os.fsync(stream.fileno())


class GatheringWriter:
    """Writes to an unbuffered stream, small pieces many at a time; `flush` writes what is left."""

    def __init__(self, stream: Sink) -> None:
        self._stream, self._gathered = stream, bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write every byte of `data`, now or with what follows."""
        if len(self._gathered) + len(data) > _GATHERED:
            self.flush()
        if len(data) > _GATHERED:
            write_all(self._stream, data)
        else:
            self._gathered += data

    def flush(self) -> None:
        """Write what has been gathered."""
        write_all(self._stream, self._gathered)
        self._gathered = bytearray()


class HeldBack:
    """Writes to an unbuffered stream all but the last byte, which `release` writes.

    Until then who reads a pipe knows that something is missing.
    """

    def __init__(self, stream: Sink) -> None:
        self._stream, self._last = stream, b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write every byte of `data` but the last."""
        if view := memoryview(data).cast("B"):
            self.release()
            write_all(self._stream, view[:-1])
            self._last = bytes(view[-1:])

    def release(self) -> None:
        """Write what is held."""
        last, self._last = self._last, b""
        write_all(self._stream, last)
