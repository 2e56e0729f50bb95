"""Digests: of a file's bytes, and of a checkpoint's content."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from wsurgery.checkpoint.unchanged import FileState, file_state, require_unchanged
from wsurgery.errors import printable
from wsurgery.untrusted import open_regular

if TYPE_CHECKING:
    from wsurgery.checkpoint.header import TensorInfo
    from wsurgery.checkpoint.reader import Checkpoint

_BLOCK = 2 << 20  # bytes; a memory map would show up as the process's own memory


class Digest(Protocol):
    """A digest that is not known yet."""

    def start(self) -> None: ...  # noqa: D102

    def result(self) -> str: ...  # noqa: D102


class FilesDigest:
    """The digest of a file, or of several together, computed in the background while their bytes are being copied.

    Args:
        files: their names, and the states in which they must be; None for any.
    """

    def __init__(self, files: Mapping[Path, FileState | None]) -> None:
        self.files = files
        self._thread: Thread | None = None
        self._outcome: str | Exception = ""

    def start(self) -> None:
        """Begin, unless that is done."""
        if self._thread is None:
            self._thread = Thread(target=self._run, daemon=True)  # a command that fails does not wait for it
            self._thread.start()

    def result(self) -> str:
        """Return 64 hexadecimal digits: BLAKE3 of the one file's bytes, or of all files' digests after one another.

        Raises:
            OSError: a file cannot be read.
            WsurgeryError: one is not as it was, or changes.
        """
        self.start()
        assert self._thread is not None
        self._thread.join()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def _run(self) -> None:
        try:
            digests = [file_digest(file, state) for file, state in self.files.items()]
            self._outcome = digests[0] if len(digests) == 1 else bytes_digest("".join(digests).encode())
        except Exception as error:  # told to whoever asks for the result
            self._outcome = error


def file_digest(path: Path, state: FileState | None = None) -> str:
    """BLAKE3 of a file's bytes, on all cores, as 64 hexadecimal digits.

    Raises:
        WsurgeryError: it is not in this state, or changes while it is read.
    """
    from blake3 import blake3

    return _of_file(path, blake3(max_threads=blake3.AUTO), state)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, which the Hugging Face hub shows, as 64 hexadecimal digits."""
    return _of_file(path, hashlib.sha256())


def bytes_digest(data: bytes) -> str:
    """BLAKE3 of bytes in memory, as 64 hexadecimal digits."""
    from blake3 import blake3

    return blake3(data).hexdigest()


def tensor_digests(checkpoint: "Checkpoint") -> dict[str, str]:
    """BLAKE3 of the bytes of each tensor, as 64 hexadecimal digits by name, in one pass over a file or a stream.

    Raises:
        WsurgeryError: the input ends early.
    """
    from blake3 import blake3

    digests = {}
    for name, tensor in checkpoint.tensors.items():
        hasher = blake3(max_threads=blake3.AUTO if tensor.nbytes > _BLOCK else 1)
        for piece in checkpoint.pieces(tensor):
            hasher.update(piece)
        digests[name] = hasher.hexdigest()
    return digests


def content_digest(tensors: "dict[str, TensorInfo]", digests: dict[str, str]) -> str:
    """BLAKE3 of what a checkpoint holds, whatever the order of its tensors, its metadata and its shards.

    Hashed are, for each tensor by name: the name in UTF-8, the dtype, the shape (`2,3`) and the 32 bytes of its digest,
    each behind its length in 8 bytes, little-endian.

    Args:
        tensors: name → dtype and shape.
        digests: what `tensor_digests` gives for them.
    """
    from blake3 import blake3

    hasher = blake3()
    for name in sorted(tensors):
        shape = ",".join(map(str, tensors[name].shape))
        for field in (name.encode(), tensors[name].dtype.encode(), shape.encode(), bytes.fromhex(digests[name])):
            hasher.update(len(field).to_bytes(8, "little") + field)
    return hasher.hexdigest()


def _of_file(path: Path, hasher: Any, state: FileState | None = None) -> str:
    buffer = memoryview(bytearray(_BLOCK))
    with open_regular(path) as stream:
        state = state or file_state(stream.fileno())
        while n := stream.readinto(buffer):  # type: ignore[attr-defined]
            hasher.update(buffer[:n])
        require_unchanged(printable(str(path)), stream.fileno(), state)
    digest: str = hasher.hexdigest()
    return digest
