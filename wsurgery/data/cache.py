"""The cache folder, and images decoded once into one array on disk."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.checkpoint.writer import AtomicFile, write_all
from wsurgery.data.manifest import Manifest
from wsurgery.errors import WsurgeryError, printable
from wsurgery.progress import Progress

AHEAD = 256  # images in memory between decoding and writing
REVISION = 1  # to be raised when the same images come out as other pixels


def cache_folder() -> Path:
    """`$WSURGERY_CACHE`, or else wsurgery in `$XDG_CACHE_HOME`, or else in ~/.cache."""
    if folder := os.environ.get("WSURGERY_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wsurgery"


def decode(manifest: Manifest, image_size: int, *, threads: int | None = None) -> NDArray[np.uint8]:
    """The images of a manifest, scaled so that the shorter side fits, and cut to the centred square.

    They are decoded at the first call only, by `threads` threads (default: all cores), and then mapped from a file in
    the cache folder. An image whose size or time of change differs is another image.

    Args:
        manifest: n rows.
        image_size: pixels a side.

    Returns:
        uint8 (n, image_size, image_size, 3), RGB, mapped from the file. Writing to it changes the memory only.

    Raises:
        WsurgeryError: an image is missing or cannot be read. It names the file.
    """
    paths = [manifest.root / path for path in manifest.paths]
    file = cache_folder() / "images" / f"{_key(paths, image_size)}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _write(file, paths, image_size, threads or len(os.sched_getaffinity(0)))
    # Copy on write, not read-only: torch warns of arrays that cannot be written to.
    images: NDArray[np.uint8] = np.load(file, mmap_mode="c")
    return images


def native_size(manifest: Manifest) -> int:
    """The shorter side of a manifest's first image, in pixels."""
    path = manifest.root / manifest.paths[0]
    try:
        with Image.open(path) as image:
            return min(image.size)
    except OSError as error:
        raise _unreadable(path, error) from None


def _key(paths: list[Path], image_size: int) -> str:
    facts: list[object] = [REVISION, image_size]
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from None
        facts.append([os.path.abspath(path), status.st_size, status.st_mtime_ns])
    return bytes_digest(json.dumps(facts).encode())[:32]


def _write(file: Path, paths: list[Path], image_size: int, threads: int) -> None:
    # Written in order through a stream: a memory map that meets a full disk kills the process.
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(paths), image_size, image_size, 3)}
    with (
        AtomicFile(file, force=True) as stream,
        Progress(len(paths), "decoding images") as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        todo = iter(paths)
        while batch := list(islice(todo, AHEAD)):
            decoded: Iterator[bytes] = pool.map(partial(_decode_image, image_size=image_size), batch)
            write_all(stream, b"".join(decoded))
            progress.advance(len(batch))


def _decode_image(path: Path, image_size: int) -> bytes:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise WsurgeryError(
                    f"{printable(str(path))} has more than 8 bits a channel: convert it to 8 bits first"
                )
            square = ImageOps.fit(image.convert("RGB"), (image_size, image_size), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        raise _unreadable(path, error) from None
    return square.tobytes()


def _unreadable(path: Path, error: Exception) -> WsurgeryError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return WsurgeryError(f"{printable(str(path))} cannot be read as an image: {printable(reason)}")
