"""Image files: which are read, how one is opened, and how it becomes a square of 8 bits a channel."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from wsurgery.data.archive import MAX_PIXELS, ArchiveReader, split_path
from wsurgery.data.brightness import levels_of, to_8_bits
from wsurgery.data.dicom import is_dicom, read_dicom
from wsurgery.data.rendering import Rendering
from wsurgery.errors import WsurgeryError, printable
from wsurgery.untrusted import open_regular

# Formats of pixels. Others that Pillow knows start programs (EPS), or are none that images for a network come in.
FORMATS = ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000"]

# What the system says of a name where no image is. All else it says, of a right or a server or too many open files, may pass.
_ITS_OWN = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
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
# TIFF's tags. The photometric interpretation is 0 where the least value is white.
_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 0x0102, 0x0103, 0x0106, 0x011C, 0x0153
_UNPACKED, _APART, _SIGNED = 1, 2, 2  # values of the second, the fourth and the last


def shorter_side(path: Path) -> int:
    """The shorter side of an image, in pixels.

    Raises:
        As `open_picture`.
    """
    inside = split_path(path)
    if inside:
        with ArchiveReader() as archives:
            height, width, *_ = archives.read(*inside).shape
            return int(min(height, width))
    with open_picture(path, Rendering().window) as image:
        return min(image.size)


@contextmanager
def open_picture(path: Path, window: str) -> Iterator[Image.Image]:
    """Open an image file, whose pixels are read only when they are asked for, but for DICOM. Of several frames: the first.

    Args:
        path: the file.
        window: as of `Rendering`, for DICOM, which has 8 bits a channel then.

    Raises:
        WsurgeryError: it is missing, no picture, too large or damaged; so it is too if what is done with it fails.
        OSError: it cannot be read for a reason that is not its own, such as a right that is missing or a server that is away.
        MemoryError: there is too little memory for it now.
        ModuleNotFoundError: it is DICOM, and pydicom is not installed.
    """
    try:
        with open_regular(path, buffering=-1) as stream:
            if is_dicom(stream):
                yield read_dicom(path, stream, window)
                return
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise WsurgeryError(
                        f"{printable(str(path))} has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}: "
                        "scale it down first"
                    )
                yield image
    except (WsurgeryError, ModuleNotFoundError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise WsurgeryError(
            f"{printable(str(path))} cannot be read as an image: it is none of {', '.join(FORMATS)}, DICOM"
        ) from None
    except Exception as error:  # of Pillow's and pydicom's decoders: there is no end of them
        if isinstance(error, OSError) and error.errno and error.errno not in _ITS_OWN:
            error.filename = error.filename or str(path)
            raise
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> WsurgeryError:
    """What is wrong with an image, in one line."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return WsurgeryError(f"{printable(str(path))} cannot be read as an image: {printable(' '.join(reason.split()))}")


def read_square(path: Path, image_size: int, rendering: Rendering) -> bytes:
    """The pixels of an image file as a square: see `to_square`.

    Raises:
        As `open_picture`; and it has more than 16 bits a channel, or is of a kind that Pillow misreads.
    """
    with open_picture(path, rendering.window) as image:
        if image.mode.startswith(("I", "F")) and _type_of(image) is None:
            raise WsurgeryError(
                f"{printable(str(path))} has more than 16 bits a channel: convert it to 16 or 8 bits first"
            )
        if misread := _misread(image):
            raise WsurgeryError(f"{printable(str(path))} {misread}")
        return to_square(image, image_size, rendering)


def _misread(image: Image.Image) -> str | None:
    """Say of a picture that Pillow opens and has other values of than the file what it is, and what to do."""
    if isinstance(image, PngImageFile):
        if image.tile and image.tile[0][3] == "LA;16B":  # the upper 8 bits of a grey are left
            return "is grey of 16 bits with opacity, which is not read: save it without opacity"
    elif isinstance(image, TiffImageFile):
        tags = image.tag_v2
        bits, signed = max(_all(tags.get(_BITS, 1))), _SIGNED in _all(tags.get(_SAMPLE_FORMAT, 1))
        unpacked = tags.get(_COMPRESSION, _UNPACKED) == _UNPACKED
        if bits > 8 and len(image.getbands()) > 1 and tags.get(_PLANES) == _APART and unpacked:
            return f"has colours of {bits} bits in planes of their own, which are not read: save it with PlanarConfiguration 1"
        if signed and bits <= 8:
            return "has signed values of 8 bits, which are not read: save them as unsigned, or of 16 bits"
        if signed and not unpacked and tags.prefix == b"MM":
            return "has signed values, big-endian and compressed, which are not read: save it uncompressed or little-endian"
    return None


def _all(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _type_of(image: Image.Image) -> tuple[type[np.integer], int] | None:
    """The type and the bits of a picture of more than 8 bits, None where there is none of 16 bits that holds it."""
    if image.format == "TIFF" and image.mode.startswith("I"):
        bits = int(image.getexif().get(_BITS) or 32)
        return (np.int16 if image.mode == "I" else np.uint16, bits) if bits <= 16 else None
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    return (np.uint16, 16) if deep else None


def _to_8_bits(image: Image.Image, window: str) -> Image.Image:
    found = _type_of(image)
    if found is None:
        return image
    kind, bits = found
    pixels = np.asarray(image).astype(kind)
    least = 0 if kind is np.uint16 else -(1 << bits - 1)
    inverted = image.format == "TIFF" and image.getexif().get(_PHOTOMETRIC) == 0
    values = levels_of(pixels.dtype).astype(np.float64)
    possible = (least, least + (1 << bits) - 1)
    return Image.fromarray(to_8_bits(pixels, values, window, possible=possible, inverted=inverted))


def to_square(image: Image.Image, image_size: int, rendering: Rendering) -> bytes:
    """The pixels of a picture as a square, (image_size, image_size, 3), RGB.

    Upright as Exif says; grey, palette and CMYK in RGB; opacity is dropped, the colours under it stay.

    A JPEG is scaled down by the decoder itself as long as twice the wanted size is left, as in Pillow's `thumbnail`: a
    photograph is decoded in a third of the time.
    """
    orientation = None
    if image.format == "TIFF":
        image.load()  # which turns it
    else:
        with suppress(Exception):  # Exif may be broken where the image is not
            orientation = image.getexif().get(_ORIENTATION)
    image, fit = _to_8_bits(image, rendering.window), rendering.fit
    drafted = image.draft(None, (2 * image_size, 2 * image_size))
    _, _, width, height = drafted[1] if drafted else (0, 0, *image.size)  # not whole numbers in a draft
    size = (image_size, image_size)
    left, top, right, bottom = 0.0, 0.0, width, height
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        right, bottom = left + side, top + side
    elif fit == "pad":
        longer = max(width, height)
        size = (max(1, round(width / longer * image_size)), max(1, round(height / longer * image_size)))
    scaled = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, (left, top, right, bottom))
    if orientation in _UPRIGHT:
        scaled = scaled.transpose(_UPRIGHT[orientation])
    if fit == "pad":
        square = Image.new("RGB", (image_size, image_size))
        square.paste(scaled, (round((image_size - scaled.width) / 2), round((image_size - scaled.height) / 2)))
        scaled = square
    return scaled.tobytes()
