"""DICOM files, through pydicom: a picture of 8 bits a channel, or what it is that is not one."""

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from wsurgery.data.archive import MAX_PIXELS
from wsurgery.data.brightness import Floats, Own, levels_of, to_8_bits
from wsurgery.errors import UsageError, WsurgeryError, printable

if TYPE_CHECKING:
    from pydicom import Dataset

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
GREYS = ("MONOCHROME1", "MONOCHROME2")
_MAX_FILE = 8 * MAX_PIXELS  # bytes
_FREE = 1 << 26  # bytes that stand beside the pixels
_MAX_RLE = 1 << 25  # bytes of pixels: two bytes of a file can stand for 128
_GROUPS = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_MACROS = "PixelValueTransformationSequence", "FrameVOILUTSequence"
_SCAN = 0xDA  # the marker behind which the first scan begins
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_HEADER = (
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    *(f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)  # fmt: skip


def is_dicom(stream: BinaryIO) -> bool:
    """Whether a file, which stands at its beginning, has DICOM's mark."""
    head = stream.read(132)
    stream.seek(0)
    return head[128:] == b"DICM"


def read_dicom(path: Path, stream: BinaryIO, window: str) -> Image.Image:
    """Read a file's picture.

    Args:
        path: for messages.
        stream: the file, at its beginning.
        window: as of `wsurgery.data.rendering.Rendering`; it is of values as the rescale slope and intercept, or the
            modality's table, make them. Greys of MONOCHROME1 are inverted afterwards; colours have none.

    Returns:
        Of mode L or RGB.

    Raises:
        WsurgeryError: it has several frames, too many pixels, bits or colours that are not read, or a transfer syntax that
            pydicom does not decode.
        UsageError: it is compressed in a way that pydicom decodes only with another library, which is not installed.
        Exception: of pydicom's, for a file that is broken: any.
        ModuleNotFoundError: pydicom is not installed.
    """
    import pydicom
    from pydicom.pixels import apply_color_lut, pixel_array

    name = printable(str(path))
    size = os.fstat(stream.fileno()).st_size
    if size > _MAX_FILE:
        raise WsurgeryError(f"{name} has {size:,} bytes, more than {_MAX_FILE:,}")
    _require_decoder(name, path)
    header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=[*_HEADER])
    bytes_unpacked = _check(name, header)
    if size > 2 * bytes_unpacked + _FREE:
        raise WsurgeryError(f"{name} has {size:,} bytes for a picture of {bytes_unpacked:,}")
    stream.seek(0)
    dataset = pydicom.dcmread(stream, specific_tags=[*_HEADER, *_GROUPS, "PixelData"])
    _take_out_of_groups(dataset)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_frame(name, dataset, bytes_unpacked)
    pixels = pixel_array(dataset)
    if pixels.shape[:2] != (header.Rows, header.Columns):
        raise WsurgeryError(f"{name} has pixels of shape {pixels.shape}, and says that it has others")
    kind = header.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(pixels, dataset)
        shift = 8 * (colours.itemsize - 1)
        return Image.fromarray((colours >> shift).astype(np.uint8))
    if kind in COLOURS:
        return Image.fromarray(pixels.astype(np.uint8, copy=False))
    return Image.fromarray(_greys(pixels, dataset, window))


def _take_out_of_groups(dataset: "Dataset") -> None:
    """Put what an enhanced file says of its one frame where other files say it (PS3.3, C.7.6.16)."""
    for groups in _GROUPS:
        for group in (dataset.get(groups) or [])[:1]:
            for macro in _MACROS:
                for item in (group.get(macro) or [])[:1]:
                    for element in item:
                        if element.keyword in _HEADER:
                            dataset[element.tag] = element


def _require_decoder(name: str, path: Path) -> None:
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels import get_decoder
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax is None:
        raise WsurgeryError(f"{name} does not say its transfer syntax")
    said = printable(syntax.name)
    if syntax == DeflatedExplicitVRLittleEndian:  # what it unpacks to has no bound
        raise WsurgeryError(f"{name} has the transfer syntax {said}, which is not read: save it as Explicit VR")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise WsurgeryError(f"{name} has the transfer syntax {said}, which pydicom cannot decode") from None
    if not decoder.is_available:
        raise UsageError(f"{name} has the transfer syntax {said}: to decode it, pip install 'pylibjpeg[all]'")


def _check(name: str, header: "Dataset") -> int:
    """Refuse what is no one picture of few enough pixels; return the bytes of its pixels."""
    rows, columns = (int(header.get(key) or 0) for key in ("Rows", "Columns"))
    if not (rows > 0 and columns > 0):
        raise WsurgeryError(f"{name} is a DICOM file without a picture")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise WsurgeryError(f"{name} has {frames:,} frames: write each to a file of its own")
    if rows * columns > MAX_PIXELS:
        raise WsurgeryError(f"{name} has {columns} x {rows} pixels, more than {MAX_PIXELS:,}: scale it down first")
    kind = str(header.get("PhotometricInterpretation"))
    if kind not in (*GREYS, *COLOURS, "PALETTE COLOR"):
        raise WsurgeryError(f"{name} has the photometric interpretation {printable(kind)}, which is not read")
    bits, samples = (int(header.get(key) or 0) for key in ("BitsAllocated", "SamplesPerPixel"))
    if bits not in ((8,) if kind in COLOURS else (8, 16)):
        raise WsurgeryError(f"{name} has {bits} bits a channel in {kind}, which are not read")
    if samples != (3 if kind in COLOURS else 1):
        raise WsurgeryError(f"{name} has {samples} channels in {kind}")
    return rows * columns * samples * bits // 8


def _check_frame(name: str, dataset: "Dataset", bytes_unpacked: int) -> None:
    """Refuse a compressed picture that says another size of itself: what decodes it would go by that."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        if bytes_unpacked > _MAX_RLE:
            raise WsurgeryError(f"{name} is compressed as RLE, and has {bytes_unpacked:,} bytes: at most {_MAX_RLE:,}")
        return
    size: tuple[int, int] | None = None
    if frame.startswith(b"\xff\xd8"):  # Pillow opens JPEG of 8 bits alone, and no JPEG-LS
        size = _jpeg_size(frame)
    else:
        with suppress(UnidentifiedImageError), Image.open(io.BytesIO(frame), formats=["JPEG2000"]) as inner:
            size = inner.size
    if size != (dataset.Columns, dataset.Rows):
        said = "no size" if size is None else f"{size[0]} x {size[1]} pixels"
        raise WsurgeryError(f"{name} says {dataset.Columns} x {dataset.Rows} pixels, and what is in it {said}")


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Return the columns and rows that stand in the one frame header of a JPEG of any process (T.81, B.2.2; T.87, C.2.2)."""
    found, at = None, 2
    while frame[at : at + 1] == b"\xff":
        at += 1
        marker = frame[at] if at < len(frame) else _SCAN
        if marker == 0xFF:  # a fill byte
            continue
        if marker == _SCAN:
            break
        if marker in _FRAME_HEADERS:
            if found is not None:
                return None
            found = int.from_bytes(frame[at + 6 : at + 8], "big"), int.from_bytes(frame[at + 4 : at + 6], "big")
        at += 1 + max(2, int.from_bytes(frame[at + 1 : at + 3], "big"))
    return found


def _greys(pixels: NDArray[np.integer], dataset: "Dataset", window: str) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_modality_lut

    for key in ("RescaleSlope", "RescaleIntercept"):
        if key in dataset and _is_empty(dataset, key):
            delattr(dataset, key)
    levels = levels_of(pixels.dtype)
    values = np.asarray(apply_modality_lut(levels, dataset), np.float64)
    if not np.isfinite(values).all():
        raise ValueError("its rescale slope or intercept is no finite number")
    half = 1 << int(dataset.get("BitsStored") or dataset.BitsAllocated) - 1
    least, greatest = (-half, half - 1) if pixels.dtype.kind == "i" else (0, 2 * half - 1)
    possible = values[(levels >= least) & (levels <= greatest)]
    padding, limit = (dataset.get(f"PixelPadding{what}") for what in ("Value", "RangeLimit"))
    return to_8_bits(
        pixels,
        values,
        window,
        possible=(float(possible.min()), float(possible.max())),
        own=_own_window(dataset),
        padding=None if padding is None else (int(padding), int(padding if limit is None else limit)),
        inverted=dataset.PhotometricInterpretation == "MONOCHROME1",
    )


def _is_empty(dataset: "Dataset", key: str) -> bool:
    """Whether an element is not there, or there without a value."""
    return dataset.get(key) in (None, "")


def _own_window(dataset: "Dataset") -> Own | None:
    """The file's first window, or its table of values of interest, which goes before; None where it has neither.

    A width that DICOM does not allow is no window.
    """
    from pydicom import Dataset
    from pydicom.pixels import apply_voi, apply_windowing

    if tables := dataset.get("VOILUTSequence"):
        count, first, bits = (int(number) for number in tables[0].LUTDescriptor)
        last = first + (count or 1 << 16) - 1

        def by_table(values: Floats) -> Floats:
            inside = np.clip(np.rint(values), first, last).astype(np.int64)
            return np.asarray(apply_voi(inside, dataset), np.float64) * (255 / ((1 << bits) - 1))

        return by_table
    if _is_empty(dataset, "WindowCenter") or _is_empty(dataset, "WindowWidth"):
        return None
    width = float(np.atleast_1d(dataset.WindowWidth)[0])
    if width <= 0 or (width < 1 and (dataset.get("VOILUTFunction") or "LINEAR").upper() == "LINEAR"):
        return None  # PS3.3, C.11.2.1.2.1 and C.11.2.1.3: there is no such window
    # Of a picture of 8 bits that is not rescaled, so that 0 to 255 come out.
    plain = Dataset()
    plain.PhotometricInterpretation, plain.BitsStored, plain.PixelRepresentation = "MONOCHROME2", 8, 0
    for key in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if not _is_empty(dataset, key):
            plain[key] = dataset[key]

    def by_window(values: Floats) -> Floats:
        return np.asarray(apply_windowing(values, plain), np.float64)

    return by_window
