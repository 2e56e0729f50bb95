"""Reading a checkpoint as a stream: its header first, then one tensor at a time."""

import contextlib
import errno
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

from wsurgery.checkpoint.header import (
    LENGTH_BYTES,
    MAX_HEADER,
    PREFIX_BYTES,
    Header,
    TensorInfo,
    header_length,
    other_format,
    parse_header,
    require_length,
)
from wsurgery.checkpoint.sink import GatheringWriter, RemoteOutput, Sink, write_all
from wsurgery.checkpoint.unchanged import FileState, file_state, require_unchanged
from wsurgery.errors import WsurgeryError, printable
from wsurgery.untrusted import open_regular

if TYPE_CHECKING:
    import numpy as np

_BLOCK = 1 << 20  # bytes moved at a time
_NOT_SUPPORTED = {errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF}
_HUGE = 4 << 20  # bytes from which a buffer is worth huge pages
_TRUSTED = 64 << 20  # bytes allocated on the word of a stream's header; more only as they arrive
SMALL = 1 << 16  # bytes: tensors up to this size are read and written many at a time
_WINDOW = 4 * SMALL  # bytes of them in memory


class Checkpoint:
    """An open safetensors file or stream.

    A file is read at any place; standard input only forwards, in file order. `read` and `copy_to` may be called from several
    threads. Use as a context manager.

    Attributes:
        label: what messages call it, `standard input` or the file's name.
        header: tensors in file order, and `__metadata__`.
        header_bytes: the header as it stands in the file, length included.
        path: the file or the folder of shards, or None for standard input and for a URL.
        name: the last part of the path or URL, None for standard input.
        url: where a remote one was read, without secrets; else None.
        address: by which a remote one was named, secrets and all; else None.
        seekable: whether tensors can be read in any order.
        file_state: of the file when it was opened, None if it is none.
    """

    url: str | None = None
    address: str | None = None
    file_state: FileState | None = None
    _users = 1  # whoever opened it, and each that did again: the last one's `rest` closes it

    def __init__(self, stream: BinaryIO, path: Path | None, *, label: str | None = None) -> None:
        self.stream, self.path = stream, path
        self.name = path.name if path else None
        self.label = label or (printable(str(path)) if path else "standard input")
        self.file_state = None if label else file_state(stream.fileno())
        self.seekable = self.file_state is not None if path else label is not None  # not so for a named pipe
        self._reading = Lock()  # a file has one position
        self._position = 0  # in the data: how far a stream has been read
        self._window, self._window_start = memoryview(b""), 0  # bytes of small tensors that were read together
        try:
            prefix = _read_up_to(stream, LENGTH_BYTES)
            size = stream.seek(0, os.SEEK_END) if self.seekable else None
            if size is not None:
                stream.seek(len(prefix))
            length = header_length(prefix)
            if length > MAX_HEADER:
                require_length(prefix + _read_up_to(stream, PREFIX_BYTES - LENGTH_BYTES))
            if size is not None and LENGTH_BYTES + length > size:
                if what := other_format(prefix):
                    raise WsurgeryError(f"is {what}")
                raise WsurgeryError(f"ends inside its header: {size} bytes")
            text = _read_up_to(stream, length)
            if not text.startswith(b"{") and (what := other_format(prefix + text[:PREFIX_BYTES])):
                raise WsurgeryError(f"is {what}")  # gzip's first bytes may be a likely length
            if len(text) < length:
                raise WsurgeryError(f"ends inside its header, after {LENGTH_BYTES + len(text)} bytes")
            self.header_bytes = prefix + text
            self.header: Header = parse_header(text)
            self._data_bytes = self.header.data_bytes
            if size is not None and size - len(self.header_bytes) != self._data_bytes:
                have, want = size - len(self.header_bytes), self._data_bytes
                raise WsurgeryError(f"holds {have} bytes of tensors where its header describes {want}")
        except WsurgeryError as error:
            stream.close()
            hint = " (did the command before it fail?)" if not (path or label) and "is empty" in str(error) else ""
            raise type(error)(f"{self.label} {error}{hint}") from None

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Tensors by name, in file order."""
        return self.header.tensors

    def read(self, tensor: TensorInfo) -> bytearray | mmap.mmap:
        """Read one tensor's bytes.

        Raises:
            WsurgeryError: the input ends early.
        """
        with self._reading:
            return self._bytes(tensor)

    def _bytes(self, tensor: TensorInfo) -> bytearray | mmap.mmap:
        if self._is_small(tensor):
            return bytearray(self._small(tensor))
        known = self.seekable or tensor.nbytes <= _TRUSTED
        buffer = _allocate(tensor.nbytes) if known else bytearray(_TRUSTED)
        self._seek(tensor.start, tensor)
        fetched = self._fetched(tensor.start, tensor.nbytes)
        done = len(fetched)
        buffer[:done] = fetched
        while done < tensor.nbytes:
            if done == len(buffer):  # a stream has kept its word so far
                assert isinstance(buffer, bytearray)
                buffer.extend(bytes(min(done, tensor.nbytes - done)))
            with memoryview(buffer) as view:
                n = self.stream.readinto(view[done : done + _BLOCK])  # type: ignore[attr-defined]
            if not n:
                raise self._ends_early(tensor)
            done += n
            self._position += n
        return buffer

    def read_array(self, name: str) -> "np.ndarray":
        """Read one tensor as an array of its shape and own dtype."""
        import numpy as np

        from wsurgery.checkpoint.dtypes import numpy_dtype

        tensor = self.tensors[name]
        return np.frombuffer(self.read(tensor), numpy_dtype(tensor.dtype)).reshape(tensor.shape)

    def pieces(self, tensor: TensorInfo, *, skip: int = 0) -> Iterator[memoryview]:
        """Read one tensor's bytes in pieces of at most 1 MiB; each is valid until the next is asked for.

        `skip` leaves out as many of the first bytes.
        """
        if self._is_small(tensor):
            if skip < tensor.nbytes:
                yield self._small(tensor)[skip:]
            return
        start, left = tensor.start + skip, tensor.nbytes - skip
        self._seek(start, tensor)
        buffer = memoryview(bytearray(min(_BLOCK, left)))
        if fetched := self._fetched(start, left):
            left -= len(fetched)
            yield fetched
        while left:
            n = self.stream.readinto(buffer[: min(left, _BLOCK)])  # type: ignore[attr-defined]
            if not n:
                raise self._ends_early(tensor)
            left -= n
            self._position += n
            yield buffer[:n]

    def copy_to(self, tensor: TensorInfo, target: Sink) -> None:
        """Copy one tensor's bytes to an unbuffered stream, inside the kernel where it can.

        Raises:
            WsurgeryError: the input ends early.
        """
        with self._reading:
            self._copy_to(tensor, target)

    def _copy_to(self, tensor: TensorInfo, target: Sink) -> None:
        done = 0
        if self._is_small(tensor):
            write_all(target, self._small(tensor))
            return
        if sys.platform == "linux" and not isinstance(target, RemoteOutput):
            if self.seekable and self.url is None:
                start = len(self.header_bytes) + tensor.start
                for move in (_copy_file_range, _sendfile):
                    done += move(self.stream.fileno(), target.fileno(), start + done, tensor.nbytes - done)
            elif not self.seekable:
                self._seek(tensor.start, tensor)
                fetched = self._fetched(tensor.start, tensor.nbytes)
                write_all(target, fetched)
                moved = _splice(self.stream.fileno(), target.fileno(), tensor.nbytes - len(fetched))
                self._position += moved
                done = len(fetched) + moved
        for piece in self.pieces(tensor, skip=done):
            while piece:
                piece = piece[target.write(piece) :]

    def copy_whole_to(self, target: Sink) -> None:
        """Copy the checkpoint to an unbuffered stream, as one file with the same metadata.

        Raises:
            WsurgeryError: the input ends early.
        """
        if isinstance(target, RemoteOutput):
            target.copied = self.path
        gathered = GatheringWriter(target)
        gathered.write(self._whole_header)
        for tensor in self.tensors.values():
            if tensor.nbytes <= SMALL:
                gathered.write(memoryview(self.read(tensor)))
            else:
                gathered.flush()
                self.copy_to(tensor, target)
        gathered.flush()

    @property
    def _whole_header(self) -> bytes:
        """The header of one file that holds all of it."""
        return self.header_bytes

    def finish(self) -> None:
        """Read a stream to its end.

        Raises:
            WsurgeryError: it ends early or goes on after the last tensor, or a file was written to meanwhile.
        """
        if not self.stream.closed and self.file_state is not None:
            require_unchanged(self.label, self.stream.fileno(), self.file_state)
        if self.seekable:
            return
        self._discard(self._data_bytes)
        if self.stream.read(1):
            raise WsurgeryError(f"{self.label} goes on after its last tensor")

    def _seek(self, start: int, tensor: TensorInfo) -> None:
        """Go to a byte of the data, inside of `tensor`; what a stream has there already is left in the window."""
        if self.seekable:
            self.stream.seek(len(self.header_bytes) + start)
            if self.url is not None:
                self.stream.expect(len(self.header_bytes) + tensor.end)  # type: ignore[attr-defined]
            self._position = start
            return
        window_end = self._window_start + len(self._window)
        if start < self._position and not (self._window_start <= start and window_end == self._position):
            raise RuntimeError(f"{tensor.name} was asked for after the stream had passed it")
        if start > self._position:
            self._discard(start)

    def _discard(self, start: int) -> None:
        """Read a stream on to a byte of the data."""
        buffer = memoryview(bytearray(min(_BLOCK, start - self._position)))
        while self._position < start:
            n = self.stream.readinto(buffer[: start - self._position])  # type: ignore[attr-defined]
            if not n:
                raise self._ends_early(next(t for t in self.tensors.values() if t.end > self._position))
            self._position += n

    def _is_small(self, tensor: TensorInfo) -> bool:
        """Whether a tensor is read together with those after it; the stream of a URL has its own way to do that."""
        return tensor.nbytes <= SMALL and self.url is None

    def _small(self, tensor: TensorInfo) -> memoryview:
        """Read a small tensor, and with it what follows, up to the window's size."""
        start, have = tensor.start - self._window_start, len(self._window)
        if start < 0 or start + tensor.nbytes > have:
            self._seek(tensor.start, tensor)
            kept = self._window[start:] if not self.seekable and 0 <= start < have else memoryview(b"")
            buffer = memoryview(bytearray(min(_WINDOW, self._data_bytes - tensor.start)))
            buffer[: len(kept)] = kept
            n = len(kept)
            while n < tensor.nbytes:
                m = self.stream.readinto(buffer[n:])  # type: ignore[attr-defined]
                if not m:
                    raise self._ends_early(tensor)
                n += m
                self._position += m
            self._window, self._window_start, start = buffer[:n], tensor.start, 0
        return self._window[start : start + tensor.nbytes]

    def _fetched(self, start: int, most: int) -> memoryview:
        """Return what a stream has in the window already from `start` on."""
        at = start - self._window_start if not self.seekable and start < self._position else len(self._window)
        return self._window[at : at + most]

    def _ends_early(self, tensor: TensorInfo) -> WsurgeryError:
        return WsurgeryError(f"{self.label} ends early, inside {printable(tensor.name)}")

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self.stream.close()
        self._window, self._window_start = memoryview(b""), 0

    def rest(self) -> None:
        """Close a file until `reopen`, when all who opened it have said so. What cannot be opened again stays open."""
        with self._reading:
            self._users = max(self._users - 1, 0)
            if not self._users:
                self._rest()

    def reopen(self) -> None:
        """Open a file again that was closed, and keep it open until a `rest` of one's own.

        Raises:
            WsurgeryError: it is not the file any more that it was.
        """
        with self._reading:
            self._reopen()
            self._users += 1

    def _rest(self) -> None:
        if self.path is not None and self.seekable:
            self.close()

    def _reopen(self) -> None:
        if not self.stream.closed or self.path is None:
            return
        self.stream = open_regular(self.path)
        if file_state(self.stream.fileno()) != self.file_state:
            self.stream.close()
            raise WsurgeryError(f"{self.label} has changed since it was opened: open it again")

    @property
    def files(self) -> dict[Path, FileState | None]:
        """The files that hold it, and their states when they were opened; none for a stream or a URL."""
        return {self.path: self.file_state} if self.path is not None and self.seekable else {}


def _allocate(n: int) -> bytearray | mmap.mmap:
    """Return a buffer of `n` bytes; a large one in huge pages, for which Linux is asked 512 times less often."""
    if sys.platform != "win32" and n >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        buffer = mmap.mmap(-1, n, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
        with contextlib.suppress(OSError):  # a kernel without them
            buffer.madvise(mmap.MADV_HUGEPAGE)
        return buffer
    return bytearray(n)


if sys.platform == "linux":  # elsewhere these are missing, or sendfile writes to sockets only

    def _copy_file_range(source: int, target: int, offset: int, count: int) -> int:
        return _in_kernel(lambda at, n: os.copy_file_range(source, target, n, at), offset, count)

    def _sendfile(source: int, target: int, offset: int, count: int) -> int:
        return _in_kernel(lambda at, n: os.sendfile(target, source, at, n), offset, count)

    def _splice(source: int, target: int, count: int) -> int:
        """Move bytes out of a pipe, or into one."""
        return _in_kernel(lambda at, n: os.splice(source, target, n), 0, count)

    def _in_kernel(move: Callable[[int, int], int], offset: int, count: int) -> int:
        """Move up to `count` bytes; return how many went before the kernel said that these files cannot be so copied."""
        done = 0
        try:
            while done < count and (n := move(offset + done, count - done)):
                done += n
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
        except AttributeError:  # a Python that was built without it
            pass
        return done


def _read_up_to(stream: BinaryIO, n: int) -> bytes:
    parts = []
    while n and (part := stream.read(min(n, _BLOCK))):
        parts.append(part)
        n -= len(part)
    return b"".join(parts)
