"""Images inside an .npz archive, as MedMNIST's come: `FILE.npz/ARRAY/INDEX` is the path of one."""

import math
import re
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from wsurgery.archives import ArrayHeader, one_line_errors, open_archive, open_array, read_exactly
from wsurgery.errors import WsurgeryError, printable

MAX_PIXELS = 100_000_000  # of one picture: a photograph of a retina has 20 million

_INSIDE = re.compile(r"(.+\.npz)/(\w+)/(\d{1,18})")


def split_path(path: Path) -> tuple[Path, str, int] | None:
    """The archive, the array and the index of an image in an archive, None for the path of any other."""
    match = _INSIDE.fullmatch(str(path))
    return (Path(match[1]), match[2], int(match[3])) if match else None


def check_images(header: ArrayHeader) -> None:
    """Refuse what is no array of images: uint8, (n, h, w) or (n, h, w, 3).

    Raises:
        WsurgeryError: it is none, or one whose images have no pixels, or too many.
    """
    shape = header.shape
    if header.dtype != np.uint8 or header.fortran or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 3)):
        order = " in Fortran order" if header.fortran else ""
        raise WsurgeryError(f"it is {header.dtype} {shape}{order}, not uint8 (n, h, w) or (n, h, w, 3)")
    if not 0 < math.prod(shape[1:3]) <= MAX_PIXELS:
        raise WsurgeryError(f"images of {shape[2]} x {shape[1]} pixels are not read: at most {MAX_PIXELS:,}")


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
            with one_line_errors(f"{printable(str(archive))} cannot be read as an archive of images: {array}"):
                if (archive, array) != (self.archive, self.array) or index < self.index:
                    self._open(archive, array)
                if index >= self.shape[0]:
                    raise WsurgeryError(f"has {self.shape[0]} images, and not one of index {index}")
                size = math.prod(self.shape[1:])
                while self.index < index:
                    self._take(size)
                return np.frombuffer(self._take(size), np.uint8).reshape(self.shape[1:])
        except OSError as error:
            self.archive = None
            raise WsurgeryError(f"{printable(str(archive))} cannot be read: {error.strerror}") from None
        except WsurgeryError:
            self.archive = None
            raise

    def __enter__(self) -> "ArchiveReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.files.close()

    def _open(self, archive: Path, array: str) -> None:
        self.files.close()
        self.archive = None  # until all of it is open
        opened = self.files.enter_context(open_archive(archive))
        header, self.stream = self.files.enter_context(open_array(opened, f"{array}.npy"))
        check_images(header)
        self.archive, self.array, self.index, self.shape = archive, array, 0, header.shape

    def _take(self, size: int) -> bytearray:
        data = read_exactly(self.stream, size)
        self.index += 1
        return data
