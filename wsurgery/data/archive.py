"""Images inside an .npz archive, as MedMNIST's come: `FILE.npz/ARRAY/INDEX` is the path of one."""

import re
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from wsurgery.errors import WsurgeryError, printable

_INSIDE = re.compile(r"(.+\.npz)/(\w+)/(\d+)")


def split_path(path: Path) -> tuple[Path, str, int] | None:
    """The archive, the array and the index of an image in an archive, None for the path of any other."""
    match = _INSIDE.fullmatch(str(path))
    return (Path(match[1]), match[2], int(match[3])) if match else None


def array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Read the shape and dtype that an .npy begins with.

    Raises:
        ValueError: it is none, or not in C order.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if fortran:
        raise ValueError("an array is in Fortran order")
    return shape, dtype


class ArchiveReader:
    """Context manager that reads images of archives. In the arrays' order it unpacks each byte once, and keeps none."""

    def __init__(self) -> None:
        self.files = ExitStack()
        self.archive: Path | None = None
        self.array = ""
        self.index = 0
        self.stream: IO[bytes]
        self.shape: tuple[int, ...] = ()

    def read(self, archive: Path, array: str, index: int) -> NDArray[np.uint8]:
        """Image `index` of an array: uint8, (h, w) or (h, w, 3).

        Raises:
            WsurgeryError: the archive is broken, or holds no such image.
        """
        try:
            if (archive, array) != (self.archive, self.array) or index < self.index:
                self._open(archive, array)
            if index >= self.shape[0]:
                raise ValueError(f"{array} has {self.shape[0]} images, and not one of index {index}")
            size = int(np.prod(self.shape[1:]))
            while self.index < index:
                self._take(size)
            return np.frombuffer(self._take(size), np.uint8).reshape(self.shape[1:])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            self.archive = None
            reason = (isinstance(error, OSError) and error.strerror) or str(error)
            raise WsurgeryError(f"{printable(str(archive))} cannot be read as an archive of images: {reason}") from None

    def __enter__(self) -> "ArchiveReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.files.close()

    def _open(self, archive: Path, array: str) -> None:
        self.files.close()
        members = self.files.enter_context(zipfile.ZipFile(archive))
        self.stream = self.files.enter_context(members.open(f"{array}.npy"))
        self.archive, self.array, self.index = archive, array, 0
        self.shape, dtype = array_header(self.stream)
        if dtype != np.uint8 or not (len(self.shape) == 3 or (len(self.shape) == 4 and self.shape[3] == 3)):
            raise ValueError(f"{array} is {dtype} {self.shape}, not uint8 (n, h, w) or (n, h, w, 3)")

    def _take(self, size: int) -> bytes:
        data = self.stream.read(size)
        if len(data) < size:
            raise EOFError(f"{self.array} ends early")
        self.index += 1
        return data
