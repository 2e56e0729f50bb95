"""Where a checkpoint is written to: an unbuffered stream, or an object in a store."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import BinaryIO, TypeAlias


class RemoteOutput(ABC):
    """Context manager that writes an object in a store, which appears when it is left without an error."""

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
