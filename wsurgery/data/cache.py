"""The cache folder, and images decoded once into one array on disk."""

import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.checkpoint.writer import AtomicFile, write_all
from wsurgery.cores import cores
from wsurgery.data.archive import MAX_PIXELS, ArchiveReader, split_path
from wsurgery.data.manifest import Manifest
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.progress import Progress
from wsurgery.untrusted import open_own, open_regular, parse_json, read_regular, refuse_link

AHEAD = 256  # images in memory between decoding and writing
AHEAD_BYTES = 1 << 26  # and bytes of those that come from archives as they are
# Formats of pixels. Others that Pillow knows start programs (EPS), or are none that images for a network come in.
FORMATS = ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000"]
MAX_BAD = 1 << 26  # bytes of the list of images that cannot be read
REVISION = 3  # to be raised when the same images come out as other pixels

_ORIENTATION = 0x0112  # Exif's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def cache_folder() -> Path:
    """`$WSURGERY_CACHE`, or else wsurgery in `$XDG_CACHE_HOME`, or else in ~/.cache."""
    if folder := os.environ.get("WSURGERY_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsurgery"


def decode(manifest: Manifest, image_size: int, *, threads: int | None = None) -> NDArray[np.uint8]:
    """The images of a manifest, scaled so that the shorter side fits, and cut to the centred square.

    They are decoded at the first call only, by `threads` threads (default: all cores), and then mapped from a file in
    the cache folder. A call that was cut off, however it ended, is taken up where it was. An image whose size or time of
    change differs is another image.

    Args:
        manifest: n rows.
        image_size: pixels a side.

    Returns:
        uint8 (n, image_size, image_size, 3), RGB, mapped from the file. Writing to it changes the memory only.

    Raises:
        WsurgeryError: an image is missing or cannot be read. It names the file.
    """
    return _decode(manifest, image_size, threads, skip_bad=False)[0]


def decode_readable(
    manifest: Manifest, image_size: int, *, threads: int | None = None
) -> tuple[NDArray[np.uint8], Manifest, list[str]]:
    """Like `decode`, without the images that are missing or cannot be read.

    Returns:
        The m images, uint8 (m, image_size, image_size, 3); their m rows; what is wrong with each of the others.

    Raises:
        WsurgeryError: no image can be read.
    """
    images, bad = _decode(manifest, image_size, threads, skip_bad=True)
    rest = manifest.take([row for row in range(len(manifest)) if row not in bad]) if bad else manifest
    return images, rest, list(bad.values())


def native_size(manifest: Manifest, *, skip_bad: bool = False) -> int:
    """The shorter side, in pixels, of a manifest's first image, or the first that can be read."""
    for path in manifest.paths:
        try:
            return _shorter_side(manifest.root / path)
        except WsurgeryError:
            if not skip_bad:
                raise
    raise WsurgeryError(f"none of the images in {printable(str(manifest.root))} can be read")


def _shorter_side(path: Path) -> int:
    inside = split_path(path)
    if inside:
        with ArchiveReader() as archives:
            height, width, *_ = archives.read(*inside).shape
            return int(min(height, width))
    with _open_image(path) as image:
        return min(image.size)


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file, whose pixels are read only when they are asked for.

    Raises:
        WsurgeryError: it is missing, no picture, too large or damaged; so it is too if what is done with it fails.
    """
    try:
        with open_regular(path, buffering=-1) as stream, Image.open(stream, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise WsurgeryError(
                    f"{printable(str(path))} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: scale "
                    "it down first"
                )
            yield image
    except WsurgeryError:
        raise
    except UnidentifiedImageError:
        raise WsurgeryError(
            f"{printable(str(path))} cannot be read as an image: it is none of {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # of Pillow's decoders: there is no end of them
        raise _unreadable(path, error) from None


def _decode(
    manifest: Manifest, image_size: int, threads: int | None, *, skip_bad: bool
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """The images that can be read, and what is wrong with the others, by row."""
    if image_size**2 > MAX_PIXELS:
        raise UsageError(f"images of {image_size} x {image_size} pixels are more than {MAX_PIXELS:,}")
    paths = [manifest.root / path for path in manifest.paths]
    file = cache_folder() / "images" / f"{_key(paths, image_size, skip_bad=skip_bad)}.rgb"
    bad = _read_bad(file, len(paths))
    if bad is None or not _is_whole(file, len(paths) - len(bad), image_size):
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, paths, image_size, threads or cores(), skip_bad=skip_bad)
        bad = _read_bad(file, len(paths)) or {}
    if bad and not skip_bad:
        raise WsurgeryError(next(iter(bad.values())))
    shape = (len(paths) - len(bad), image_size, image_size, 3)
    if not shape[0]:
        raise WsurgeryError(f"none of the images in {printable(str(manifest.root))} can be read")
    # Copy on write, not read-only: torch warns of arrays that cannot be written to.
    return np.memmap(file, np.uint8, mode="c", shape=shape), bad


def _is_whole(file: Path, n: int, image_size: int) -> bool:
    """Whether a file holds n images: it may have been cut, or be somebody's."""
    try:
        with open_regular(file) as stream:
            return os.fstat(stream.fileno()).st_size == n * image_size * image_size * 3
    except FileNotFoundError:
        return False


def _key(paths: list[Path], image_size: int, *, skip_bad: bool) -> str:
    facts: list[object] = [REVISION, image_size]
    archives: dict[Path, tuple[int, int]] = {}
    for path in paths:
        inside = split_path(path)
        try:
            if inside is None:
                size, changed = _size_and_change(path)
            else:
                archive = inside[0]
                size, changed = archives.get(archive) or archives.setdefault(archive, _size_and_change(archive))
        except (OSError, ValueError) as error:  # of a name that no file can have
            if not skip_bad:
                raise _unreadable(path, error) from None
            size, changed = -1, -1
        facts.append([os.path.abspath(path), size, changed])
    return bytes_digest(json.dumps(facts).encode())[:32]


def _size_and_change(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _write(file: Path, paths: list[Path], image_size: int, threads: int, *, skip_bad: bool) -> None:
    """Decode all images, in order, into `file`.part, which gets its name when it is complete.

    Its length says how far an earlier call came. Rows that cannot be read are not in it, but in `file`.bad.
    """
    part, lock = file.with_suffix(".part"), file.with_suffix(".lock")
    refuse_link(lock)
    with FileLock(lock):  # another process may be at it, and then has done it
        bad = _read_bad(file, len(paths))
        if bad is None:  # where the others stand is not known
            for name in (_bad_file(file), part):
                name.unlink(missing_ok=True)
        if bad is None or not _is_whole(file, len(paths) - len(bad), image_size):
            _decode_into(part, file, paths, image_size, threads, skip_bad=skip_bad)
    with suppress(OSError):  # on Windows while another process waits for it
        lock.unlink()  # whoever waits for it, or makes it anew, finds the file


def _decode_into(part: Path, file: Path, paths: list[Path], image_size: int, threads: int, *, skip_bad: bool) -> None:
    bytes_an_image = image_size * image_size * 3
    # Through a stream: a memory map that meets a full disk kills the process.
    refuse_link(_bad_file(file))
    with open_own(part, "ab") as stream:
        bad = _read_bad(file, len(paths)) or {}
        n_good = os.fstat(stream.fileno()).st_size // bytes_an_image
        if n_good > len(paths) - len(bad):  # it is not ours
            n_good = 0
        stream.truncate(n_good * bytes_an_image)
        if bad and not skip_bad:
            raise WsurgeryError(next(iter(bad.values())))
        first = n_good
        for row in sorted(bad):
            first += row <= first
        try:
            with (
                warnings.catch_warnings(),
                Progress(len(paths), "decoding images") as progress,
                ArchiveReader() as archives,
                ThreadPoolExecutor(threads) as pool,
            ):
                warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata that we do not read
                progress.advance(first)
                decode_one = partial(_decode_image, image_size=image_size)
                done = first
                for batch in _batches(paths[first:], archives):
                    good: list[bytes] = []
                    for row, pixels in enumerate(pool.map(decode_one, batch), done):
                        if isinstance(pixels, bytes):
                            good.append(pixels)
                        elif skip_bad:
                            bad[row] = str(pixels)
                        else:
                            raise pixels
                    if bad:
                        with AtomicFile(_bad_file(file), force=True) as stream_of_bad:
                            write_all(stream_of_bad, json.dumps(bad).encode())
                    done += len(batch)
                    write_all(stream, b"".join(good))
                    progress.advance(len(batch))
            os.fsync(stream.fileno())
        except OSError as error:
            error.filename = error.filename or str(part)  # a failed write knows no name
            raise
    part.replace(file)  # closed before: Windows does not rename what is open


def _bad_file(file: Path) -> Path:
    return file.with_suffix(".bad")


def _read_bad(file: Path, n: int) -> dict[int, str] | None:
    """What is wrong with the rows that are left out of n, None where it cannot be told."""
    try:
        bad = parse_json(read_regular(_bad_file(file), MAX_BAD), dict[str, str], str(_bad_file(file)))
        rows = {int(row): printable(reason, 1000) for row, reason in bad.items() if row.isascii() and len(row) < 19}
    except FileNotFoundError:
        return {}
    except (WsurgeryError, ValueError):
        return None
    return rows if len(rows) == len(bad) and all(0 <= row < n for row in rows) else None


def _batches(paths: list[Path], archives: ArchiveReader) -> Iterator[list["Path | NDArray[np.uint8] | WsurgeryError"]]:
    """What `_decode_image` needs of some paths at a time: that of a file, or pixels from an archive, read in order."""
    batch: list[Path | NDArray[np.uint8] | WsurgeryError] = []
    held = 0
    for path in paths:
        inside = split_path(path)
        try:
            batch.append(archives.read(*inside) if inside else path)
        except WsurgeryError as error:
            batch.append(error)
        held += batch[-1].nbytes if isinstance(batch[-1], np.ndarray) else 0
        if len(batch) == AHEAD or held > AHEAD_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _decode_image(loaded: Path | NDArray[np.uint8] | WsurgeryError, *, image_size: int) -> bytes | WsurgeryError:
    """The pixels of a square, or what is wrong with the image."""
    if isinstance(loaded, WsurgeryError):
        return loaded
    if not isinstance(loaded, Path):
        return _square(Image.fromarray(loaded), image_size)
    try:
        with _open_image(loaded) as image:
            if image.mode.startswith(("I", "F")):
                return WsurgeryError(
                    f"{printable(str(loaded))} has more than 8 bits a channel: convert it to 8 bits first"
                )
            return _square(image, image_size)
    except WsurgeryError as error:
        return error


def _square(image: Image.Image, image_size: int) -> bytes:
    """Upright as Exif says; grey, palette and CMYK in RGB; opacity is dropped, the colours under it stay.

    A JPEG is scaled down by the decoder itself as long as twice the wanted size is left, as in Pillow's `thumbnail`: a
    photograph is decoded in a third of the time.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:
        orientation = None  # Exif may be broken where the image is not
    drafted = image.draft(None, (2 * image_size, 2 * image_size))
    _, _, width, height = drafted[1] if drafted else (0, 0, *image.size)  # not whole numbers in a draft
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = image.convert("RGB").resize(
        (image_size, image_size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )
    return (square.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else square).tobytes()


def _unreadable(path: Path, error: Exception) -> WsurgeryError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return WsurgeryError(f"{printable(str(path))} cannot be read as an image: {printable(reason)}")
