"""DICOM files that pydicom writes here, and pydicom's own steps from stored values to greys as the oracle."""

import re
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from wsurgery.data.cache import decode, decode_readable, native_size
from wsurgery.data.manifest import Manifest
from wsurgery.data.rendering import Rendering
from wsurgery.errors import UsageError, WsurgeryError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path / "cache"))


def noise(high=256, shape=(8, 8), dtype=np.uint8):
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def dicom(path, pixels, kind="MONOCHROME2", syntax=ExplicitVRLittleEndian, **values):
    """Write a file; what `values` say of it need not be true."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = kind
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    if syntax.is_encapsulated:
        dataset.PixelData = encapsulate([dataset.PixelData])
    for key, value in values.items():
        setattr(dataset, key, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def manifest_of(path, window="auto"):
    labels = np.ones((1, 1), np.float32)
    return Manifest(path.parent, (path.name,), ("a",), ("x",), labels, ("mild",), rendering=Rendering(window=window))


def shown(path, window="auto", size=8):
    return decode(manifest_of(path, window), size)[0].astype(int)


def grey(path, window="auto"):
    pixels = shown(path, window)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_eight_bits_without_a_window_are_the_files_pixels(tmp_path, syntax):
    dicom(tmp_path / "a.dcm", noise(), syntax=syntax)
    np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), noise())
    dicom(tmp_path / "b", noise(), "MONOCHROME1", syntax)  # the name says nothing
    np.testing.assert_array_equal(grey(tmp_path / "b"), 255 - noise().astype(int))
    assert native_size(manifest_of(tmp_path / "b")) == 8


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (2.5, -1024)])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_the_files_window_is_used_as_pydicom_does(tmp_path, function, slope, intercept, dtype):
    pixels = (noise(4096, dtype=np.int32) - (2048 if dtype is np.int16 else 0)).astype(dtype)
    dataset = dicom(
        tmp_path / "a.dcm", pixels, BitsStored=12, RescaleSlope=slope, RescaleIntercept=intercept,
        WindowCenter=[700, 0], WindowWidth=[1500, 1], VOILUTFunction=function,
    )  # fmt: skip
    windowed = apply_windowing(apply_modality_lut(pixels, dataset), dataset)
    least = -2048 if dtype is np.int16 else 0
    low, high = (value * slope + intercept for value in (least, least + 4095))
    expected = (windowed - low) / (high - low) * 255
    assert abs(grey(tmp_path / "a.dcm") - expected).max() <= 0.5 + 1e-6
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(grey(tmp_path / "b.dcm"), 255 - grey(tmp_path / "a.dcm"))


def test_windows_are_of_rescaled_values(tmp_path):
    pixels = noise(4096, dtype=np.uint16)
    dicom(
        tmp_path / "a.dcm", pixels, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1, WindowWidth=3
    )
    values = pixels * 2.0 - 1000
    p1, p99 = np.percentile(values, (1, 99), method="inverted_cdf")
    for window, (low, high) in {
        "span": (values.min(), values.max()), "full": (-1000, 2 * 4095 - 1000), "percentiles": (p1, p99),
        "-600:1500": (-600, 1500),
    }.items():  # fmt: skip
        expected = np.clip((values - low) / (high - low), 0, 1) * 255
        assert abs(grey(tmp_path / "a.dcm", window) - expected).max() <= 0.5 + 1e-9, window
    dicom(tmp_path / "b.dcm", pixels, BitsStored=12)  # without a window of its own
    np.testing.assert_array_equal(grey(tmp_path / "b.dcm"), grey(tmp_path / "a.dcm", "span"))


def test_a_table_of_values_of_interest_goes_before_a_window(tmp_path):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4, 100, 12])
    item.add_new("LUTData", "US", [0, 1365, 2730, 4095])
    pixels = np.array([[0, 100, 101], [102, 103, 60000], [100, 100, 100]], np.uint16)
    dicom(tmp_path / "a.dcm", pixels, VOILUTSequence=[item], WindowCenter=1, WindowWidth=3)
    expected = [[0, 0, 85], [170, 255, 255], [0, 0, 0]]
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm", size=3)[..., 0], expected)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_not_counted(tmp_path, kind):
    pixels = noise(1000, dtype=np.int16)
    padded = pixels.copy()
    padded[:2] = -2000
    dicom(tmp_path / "a.dcm", padded, kind, PixelPaddingValue=-2000)
    found = grey(tmp_path / "a.dcm")
    rest = pixels[2:].astype(float)
    expected = (rest - rest.min()) / (rest.max() - rest.min()) * 255
    assert not found[:2].any()
    assert abs(found[2:] - (expected if kind == "MONOCHROME2" else 255 - expected)).max() <= 0.5 + 1e-9


def test_colours_are_converted(tmp_path):
    pixels = noise(shape=(8, 8, 3))
    dicom(tmp_path / "rgb.dcm", pixels, "RGB")
    np.testing.assert_array_equal(shown(tmp_path / "rgb.dcm"), pixels)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    dicom(tmp_path / "planes.dcm", pixels, "RGB", PlanarConfiguration=1, PixelData=planes.tobytes())
    np.testing.assert_array_equal(shown(tmp_path / "planes.dcm"), pixels)
    ycc = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    dicom(tmp_path / "ybr.dcm", ycc, "YBR_FULL")
    assert abs(shown(tmp_path / "ybr.dcm") - np.asarray(Image.fromarray(ycc, "YCbCr").convert("RGB"))).max() <= 1


def test_palettes_have_their_colours(tmp_path):
    palette = noise(shape=(3, 256))
    for bits in (8, 16):
        tables = {
            f"{colour}PaletteColorLookupTable{part}": value
            for colour, column in zip(("Red", "Green", "Blue"), palette, strict=True)
            for part, value in (
                ("Descriptor", [256, 0, bits]),
                ("Data", column.tobytes() if bits == 8 else (column.astype("<u2") * 257).tobytes()),
            )
        }
        dicom(tmp_path / f"{bits}.dcm", noise(), "PALETTE COLOR", **tables)
        np.testing.assert_array_equal(shown(tmp_path / f"{bits}.dcm"), palette[:, noise()].transpose(1, 2, 0))


def test_compressed_pictures_are_decoded(tmp_path):
    pixels = noise(4096, dtype=np.uint16)
    plain = dicom(tmp_path / "plain.dcm", pixels, BitsStored=12, WindowCenter=2000, WindowWidth=3000)
    plain.compress(RLELossless)
    plain.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(shown(tmp_path / "rle.dcm"), shown(tmp_path / "plain.dcm"))
    coarse = Image.fromarray(np.kron(noise(), np.ones((8, 8), np.uint8)))
    for name, syntax, format, options in (
        ("jpeg", JPEGBaseline8Bit, "JPEG", {"quality": 95}), ("j2k", JPEG2000Lossless, "JPEG2000", {"no_jp2": True}),
    ):  # fmt: skip
        coarse.save(tmp_path / name, format=format, **options)
        frames = encapsulate([(tmp_path / name).read_bytes()])
        dicom(tmp_path / f"{name}.dcm", np.asarray(coarse), syntax=syntax, PixelData=frames)
        found = shown(tmp_path / f"{name}.dcm", size=64)[..., 0]
        with Image.open(tmp_path / name) as image:
            assert abs(found - np.asarray(image)).max() <= 1


def test_compressed_colours_are_decoded(tmp_path):
    coarse = Image.fromarray(np.kron(noise(shape=(4, 4, 3)), np.ones((16, 16, 1), np.uint8)))
    for kind, syntax, format, options in (
        ("YBR_FULL_422", JPEGBaseline8Bit, "JPEG", {"quality": 95}),
        ("YBR_RCT", JPEG2000Lossless, "JPEG2000", {"no_jp2": True, "mct": 1}),
    ):
        coarse.save(tmp_path / kind, format=format, **options)
        frames = encapsulate([(tmp_path / kind).read_bytes()])
        dicom(tmp_path / f"{kind}.dcm", np.asarray(coarse), kind, syntax, PixelData=frames)
        with Image.open(tmp_path / kind) as image:
            assert abs(shown(tmp_path / f"{kind}.dcm", size=64) - np.asarray(image)).max() <= 2


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
@pytest.mark.parametrize("window", ["auto", "-160:240", "full"])
def test_an_enhanced_file_of_one_frame_is_as_one_that_says_it_itself(tmp_path, groups, window):
    pixels = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    scale, shown_as = {"RescaleSlope": 1, "RescaleIntercept": -1024}, {"WindowCenter": 40, "WindowWidth": 400}
    group = Dataset()
    group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [Dataset()], [Dataset()]
    for item, values in ((group.PixelValueTransformationSequence[0], scale), (group.FrameVOILUTSequence[0], shown_as)):
        for key, value in values.items():
            setattr(item, key, value)
    dicom(tmp_path / "a.dcm", pixels, BitsStored=12, NumberOfFrames=1, **{groups: [group]})
    dicom(tmp_path / "b.dcm", pixels, BitsStored=12, **scale, **shown_as)
    expected = grey(tmp_path / "b.dcm", window)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(grey(tmp_path / "a.dcm", window), expected)


@pytest.mark.parametrize(
    "empty",
    [
        {"WindowCenter": None, "WindowWidth": None},
        {"RescaleSlope": None, "WindowCenter": 5},
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": None, "RescaleIntercept": -1024},
        {"VOILUTFunction": None, "WindowCenter": 128, "WindowWidth": 256},  # of which 0 to 255 come out
        {"PixelPaddingValue": None, "PixelPaddingRangeLimit": None},
    ],
)
def test_what_is_there_and_empty_is_not_there(tmp_path, empty):
    dicom(tmp_path / "a.dcm", noise(), **empty)
    np.testing.assert_array_equal(grey(tmp_path / "a.dcm"), noise())


@pytest.mark.parametrize(
    "window",
    [
        {"WindowWidth": 0},
        {"WindowWidth": [0.8, 400]},
        {"WindowWidth": -3, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
    ],
)
def test_a_window_of_a_width_that_there_is_not_is_none(tmp_path, window):
    pixels = noise(4096, dtype=np.uint16)
    dicom(tmp_path / "a.dcm", pixels, BitsStored=12, WindowCenter=[40, 40], **window)
    span = (pixels - pixels.min()) / np.ptp(pixels) * 255
    assert abs(grey(tmp_path / "a.dcm") - span).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("window", ["span", "-8000:1000"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_padding_may_be_a_range(tmp_path, window, dtype):
    """PS3.3, C.7.5.1.1.2: from one value to the other, both among them, whichever is the greater."""
    pixels = noise(1000, (24, 24), dtype) + dtype(-29_000 if dtype is np.int16 else 3000)
    first, last = (-2000, -1990) if dtype is np.int16 else (60_000, 60_010)
    pixels[0, :3] = first, last, first + 4
    inside = np.full(pixels.shape, True)
    inside[0, :3] = False
    pixels[1, :2] = first - 1, last + 1
    rest = pixels[inside].astype(float) * 0.25 - 100
    low, high = (rest.min(), rest.max()) if window == "span" else (-8000, 1000)
    expected = np.zeros(pixels.shape)
    expected[inside] = np.clip((rest - low) / (high - low), 0, 1) * 255
    for value, limit in ((first, last), (last, first)):
        said = {"PixelPaddingValue": value, "PixelPaddingRangeLimit": limit}
        dicom(tmp_path / f"{value}.dcm", pixels, RescaleSlope=0.25, RescaleIntercept=-100, **said)
        assert abs(shown(tmp_path / f"{value}.dcm", window, 24)[..., 0] - expected).max() <= 0.5 + 1e-9


def encapsulated(width, height, marker=0xF7, bits=8, times=1):
    """A JPEG that ends with its frame header, behind a comment which looks like one."""
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    header = bytes([0xFF, marker, 0, 11, bits]) + size + b"\x01\x01\x11\x00"
    comment = b"\xff\xfe\x00\x0f" + b"\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00"
    return encapsulate([b"\xff\xd8" + comment + b"\xff" + header * times + b"\xff\xda" + bytes(100)])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"NumberOfFrames": 12}, "has 12 frames: write each to a file of its own"),
        ({"Rows": 60_000, "Columns": 60_000}, "has 60000 x 60000 pixels, more than 100,000,000"),
        ({"Rows": 0}, "without a picture"),
        ({"Rows": 9}, "cannot be read as an image"),  # fewer pixels than it says
        ({"kind": "YBR_PARTIAL_420"}, "has the photometric interpretation YBR_PARTIAL_420, which is not read"),
        ({"kind": "RGB"}, "has 1 channels in RGB"),
        ({"BitsAllocated": 1, "BitsStored": 1}, "has 1 bits a channel in MONOCHROME2"),
        ({"RescaleSlope": 0, "RescaleIntercept": 5, "WindowCenter": 1, "WindowWidth": 9, "VOILUTFunction": "ODD"}, "'ODD'"),
        ({"syntax": MPEG2MPML}, "has the transfer syntax MPEG2 .*, which pydicom cannot decode"),
        ({"syntax": JPEGBaseline8Bit, "PixelData": encapsulated(9, 8)}, "says 8 x 8 pixels, and what is in it 9 x 8 pixels"),
        ({"syntax": RLELossless, "Rows": 8000, "Columns": 8000, "PixelData": encapsulate([bytes(64)])}, "as RLE"),
    ],
)  # fmt: skip
def test_what_is_no_picture_for_us_is_refused_in_one_line(tmp_path, values, words):
    dicom(tmp_path / "a.dcm", noise(), **values)
    with pytest.raises(WsurgeryError, match=words) as error:
        shown(tmp_path / "a.dcm")
    assert "a.dcm" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(WsurgeryError, match="none of the images"):
        decode_readable(manifest_of(tmp_path / "a.dcm"), 8)


def test_a_jpeg_that_says_another_size_inside_is_refused(tmp_path):
    Image.new("L", (9, 8)).save(tmp_path / "a.jpg")
    frames = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    dicom(tmp_path / "a.dcm", noise(), syntax=JPEGBaseline8Bit, PixelData=frames)
    with pytest.raises(WsurgeryError, match="says 8 x 8 pixels, and what is in it 9 x 8 pixels"):
        shown(tmp_path / "a.dcm")


@pytest.mark.parametrize(("marker", "bits"), [(0xC1, 12), (0xC2, 8), (0xC3, 12), (0xC3, 16), (0xF7, 16)])
def test_the_size_of_a_jpeg_of_any_process_and_depth_is_read(tmp_path, marker, bits):
    def said(*of, **more):
        dicom(tmp_path / "a.dcm", noise(), syntax=JPEGBaseline8Bit, PixelData=encapsulated(*of, marker, bits, **more))
        with pytest.raises(WsurgeryError) as error:
            shown(tmp_path / "a.dcm")
        return str(error.value)

    assert "says 8 x 8 pixels, and what is in it 9 x 8 pixels" in said(9, 8)
    assert "says 8 x 8 pixels, and what is in it no size" in said(8, 8, times=2)
    assert "and what is in it" not in said(8, 8)  # what decodes it is asked


def test_a_deflated_file_is_not_unpacked(tmp_path):
    dicom(tmp_path / "a.dcm", noise())
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    with pytest.raises(WsurgeryError, match="Deflated Explicit VR Little Endian, which is not read"):
        shown(tmp_path / "b.dcm")


def test_a_library_that_is_missing_is_no_fault_of_the_image(tmp_path, monkeypatch):
    from pydicom.pixels import get_decoder

    decoder = get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    dicom(tmp_path / "a.dcm", noise(), syntax=JPEGLSLossless, PixelData=encapsulated(8, 8))
    for fails in (lambda: shown(tmp_path / "a.dcm"), lambda: decode_readable(manifest_of(tmp_path / "a.dcm"), 8)):
        with pytest.raises(UsageError, match=r"JPEG-LS Lossless.*: to decode it, pip install 'pylibjpeg\[all\]'"):
            fails()


def test_without_pydicom_the_extra_is_named(tmp_path):
    dicom(tmp_path / "a.dcm", noise())
    (tmp_path / "m.csv").write_text("path,patient,split,ill\na.dcm,a,train,1\n")
    block = "import sys, runpy; sys.modules['pydicom'] = None; runpy.run_module('wsurgery', run_name='__main__')"
    for more in ([], ["--skip-bad"]):
        words = ["data", "cache", str(tmp_path / "m.csv"), "--image-size", "8", *more]
        done = subprocess.run([sys.executable, "-c", block, *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == "wsurgery data cache: needs pydicom: pip install 'wsurgery[dicom]'"
        assert "Traceback" not in done.stderr


def test_damaged_files_are_read_or_named(tmp_path):
    """Bytes changed at random, and files cut: a square comes out or an error of ours, nothing else."""
    rng = np.random.default_rng(0)
    dicom(
        tmp_path / "plain.dcm",
        noise(4096, dtype=np.uint16),
        WindowCenter=2000,
        WindowWidth=3000,
        RescaleSlope=1,
        RescaleIntercept=0,
    )
    dataset = pydicom.dcmread(tmp_path / "plain.dcm")
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle.dcm", enforce_file_format=True)
    refused = 0
    for name in ("plain", "rle"):
        whole = np.fromfile(tmp_path / f"{name}.dcm", np.uint8)
        for i in range(150):
            damaged = whole.copy()
            damaged[rng.integers(132, whole.size, 4)] = rng.integers(0, 256, 4)
            damaged[: rng.integers(132, whole.size) if i % 5 == 0 else None].tofile(tmp_path / f"{i}.dcm")
            try:
                assert shown(tmp_path / f"{i}.dcm").shape == (8, 8, 3)
            except WsurgeryError as error:
                refused += re.search(rf"/{i}\.dcm .+", str(error)).group() in str(error).splitlines()[0]
    assert refused > 50
