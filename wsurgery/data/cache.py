"""The cache folder, and images decoded once into one array on disk."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.checkpoint.sink import write_all
from wsurgery.checkpoint.writer import AtomicFile
from wsurgery.cores import workers
from wsurgery.data.archive import MAX_PIXELS, ArchiveReader, split_path
from wsurgery.data.manifest import Manifest
from wsurgery.data.pictures import read_square, shorter_side, to_square, unreadable
from wsurgery.data.rendering import Rendering
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.locks import locked
from wsurgery.progress import Progress
from wsurgery.untrusted import open_own, open_regular, parse_json, read_regular, refuse_link

AHEAD = 256  # images in memory between decoding and writing
AHEAD_BYTES = 1 << 26  # and bytes of those that come from archives as they are
MAX_BAD = 1 << 26  # bytes of the list of images that cannot be read
REVISION = 6  # to be raised when the same images come out as other pixels

Loaded = Path | NDArray[np.uint8] | WsurgeryError  # a file, pixels from an archive, or what is wrong with them
DecodeOne = Callable[[Loaded], bytes | WsurgeryError]


def cache_folder() -> Path:
    """`$WSURGERY_CACHE`, or else wsurgery in `$XDG_CACHE_HOME`, or else in ~/.cache."""
    if folder := os.environ.get("WSURGERY_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsurgery"


def decode(manifest: Manifest, image_size: int, *, threads: int | None = None) -> NDArray[np.uint8]:
    """The images of a manifest, as squares: see `Rendering`, of which the manifest has one.

    They are decoded at the first call only, by `threads` threads (default: all cores), and then mapped from a file in
    the cache folder. A call that was cut off, however it ended, is taken up where it was. An image whose size or time of
    change differs is another image.

    Args:
        manifest: n rows.
        image_size: pixels a side.

    Returns:
        uint8 (n, image_size, image_size, 3), RGB, mapped from the file. It cannot be written to.

    Raises:
        WsurgeryError: an image is missing or cannot be read. It names the file.
    """
    return _decode(manifest, image_size, threads, skip_bad=False)[0]


def decode_readable(
    manifest: Manifest, image_size: int, *, threads: int | None = None
) -> tuple[NDArray[np.uint8], Manifest, dict[str, str]]:
    """Like `decode`, without the images that are missing or cannot be read.

    Returns:
        The m images, uint8 (m, image_size, image_size, 3); their m rows; and of the others path → what is wrong.

    Raises:
        WsurgeryError: no image can be read.
    """
    images, bad = _decode(manifest, image_size, threads, skip_bad=True)
    rest = manifest.take([row for row in range(len(manifest)) if row not in bad]) if bad else manifest
    return images, rest, {manifest.paths[row]: bad[row] for row in sorted(bad)}


def native_size(manifest: Manifest, *, skip_bad: bool = False) -> int:
    """The shorter side, in pixels, of a manifest's first image, or the first that can be read."""
    for path in manifest.paths:
        try:
            with _decoders_quiet():
                return shorter_side(manifest.root / path)
        except WsurgeryError:
            if not skip_bad:
                raise
    raise WsurgeryError(f"none of the images in {printable(str(manifest.root))} can be read")


@contextmanager
def _decoders_quiet() -> Iterator[None]:
    """Without warnings of metadata that we do not read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
        yield


def _decode(
    manifest: Manifest, image_size: int, threads: int | None, *, skip_bad: bool
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """The images that can be read, and what is wrong with the others, by row."""
    if image_size**2 > MAX_PIXELS:
        raise UsageError(f"images of {image_size} x {image_size} pixels are more than {MAX_PIXELS:,}")
    paths = [manifest.root / path for path in manifest.paths]
    key = _key(paths, image_size, manifest.rendering, skip_bad=skip_bad)
    file = cache_folder() / "images" / f"{key}.rgb"
    bad = _read_bad(file, len(paths))
    if bad is None or not _is_whole(file, len(paths) - len(bad), image_size):
        file.parent.mkdir(parents=True, exist_ok=True)
        decode_one = partial(_decode_image, image_size=image_size, rendering=manifest.rendering)
        _write(file, paths, image_size, workers(threads), decode_one, skip_bad=skip_bad)
        facts = {"folder": os.path.abspath(manifest.root), "images": len(paths), "image_size": image_size}
        refuse_link(file.with_suffix(".json"))
        with AtomicFile(file.with_suffix(".json"), force=True) as stream:  # for wsurgery.data.cached
            write_all(stream, json.dumps({**facts, **asdict(manifest.rendering)}).encode())
        bad = _read_bad(file, len(paths)) or {}
    if bad and not skip_bad:
        raise WsurgeryError(next(iter(bad.values())))
    shape = (len(paths) - len(bad), image_size, image_size, 3)
    if not shape[0]:
        raise WsurgeryError(
            f"none of the images in {printable(str(manifest.root))} can be read, first: {next(iter(bad.values()))}"
        )
    # Not copy on write: for that the kernel may want to have as much memory as the file is long.
    return np.memmap(file, np.uint8, mode="r", shape=shape), bad


def _is_whole(file: Path, n: int, image_size: int) -> bool:
    """Whether a file holds n images: it may have been cut, or be somebody's."""
    try:
        with open_regular(file) as stream:
            return os.fstat(stream.fileno()).st_size == n * image_size * image_size * 3
    except FileNotFoundError:
        return False


def _key(paths: list[Path], image_size: int, rendering: Rendering, *, skip_bad: bool) -> str:
    facts: list[object] = [REVISION, image_size, rendering.fit, rendering.window]
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
                raise unreadable(path, error) from None
            size, changed = -1, -1
        facts.append([os.path.abspath(path), size, changed])
    return bytes_digest(json.dumps(facts).encode())[:32]


def _size_and_change(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _write(
    file: Path, paths: list[Path], image_size: int, threads: int, decode_one: DecodeOne, *, skip_bad: bool
) -> None:
    """Decode all images, in order, into `file`.part, which gets its name when it is complete.

    Its length says how far an earlier call came. Rows that cannot be read are not in it, but in `file`.bad.
    """
    with locked(file.with_suffix(".lock"), wait=True) as alone:  # another process may be at it, and then has done it
        # Where no file can be locked, two may be at it: each with a part of its own, which is not gone on with.
        part = file.with_suffix(".part" if alone else f".{uuid4().hex}.part")
        bad = _read_bad(file, len(paths))
        if bad is None:  # where the others stand is not known
            for name in (_bad_file(file), part):
                name.unlink(missing_ok=True)
        if bad is None or not _is_whole(file, len(paths) - len(bad), image_size):
            try:
                _decode_into(part, file, paths, image_size, threads, decode_one, skip_bad=skip_bad)
            finally:
                if not alone:
                    part.unlink(missing_ok=True)


def _decode_into(
    part: Path,
    file: Path,
    paths: list[Path],
    image_size: int,
    threads: int,
    decode_one: DecodeOne,
    *,
    skip_bad: bool,
) -> None:
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
                _decoders_quiet(),
                Progress(len(paths), "decoding images") as progress,
                ArchiveReader() as archives,
                ThreadPoolExecutor(threads) as pool,
            ):
                progress.advance(first)
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


def _batches(paths: list[Path], archives: ArchiveReader) -> Iterator[list[Loaded]]:
    """What `_decode_image` needs of some paths at a time: that of a file, or pixels from an archive, read in order."""
    batch: list[Loaded] = []
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


def _decode_image(loaded: Loaded, *, image_size: int, rendering: Rendering) -> bytes | WsurgeryError:
    """The pixels of a square, or what is wrong with the image.

    Raises:
        UsageError: it is not the image that something is wrong with.
    """
    if isinstance(loaded, WsurgeryError):
        return loaded
    if not isinstance(loaded, Path):
        return to_square(Image.fromarray(loaded), image_size, rendering)
    try:
        return read_square(loaded, image_size, rendering)
    except UsageError:
        raise
    except WsurgeryError as error:
        return error
