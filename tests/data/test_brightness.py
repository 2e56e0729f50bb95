import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from wsurgery.data.cache import decode, decode_readable
from wsurgery.data.manifest import Manifest
from wsurgery.data.rendering import Rendering
from wsurgery.errors import WsurgeryError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path / "cache"))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def shown(root, name, window="auto", size=8):
    """The first channel of an image file; the others are the same."""
    labels = np.ones((1, 1), np.float32)
    pixels = decode(
        Manifest(root, (name,), ("a",), ("x",), labels, ("mild",), rendering=Rendering(window=window)), size
    )[0]
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(int)


@pytest.mark.parametrize(
    ("name", "format"), [("a.png", "PNG"), ("a.tif", "TIFF"), ("a.jp2", "JPEG2000"), ("a.pgm", None)]
)
def test_sixteen_bits_are_mapped_as_the_window_says(tmp_path, name, format):
    deep = noise(8, 8).astype(np.uint16) * 100 + 7000
    if format:
        Image.fromarray(deep).save(tmp_path / name, format=format)
    else:  # which Pillow 10 reads and does not write
        (tmp_path / name).write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    least, greatest = int(deep.min()), int(deep.max())
    p1, p99 = np.percentile(deep, (1, 99), method="inverted_cdf")
    for window, (low, high) in {
        "auto": (least, greatest), "span": (least, greatest), "full": (0, 65535), "percentiles": (p1, p99),
        "8000:20000": (8000, 20000),
    }.items():  # fmt: skip
        expected = np.clip((deep.astype(float) - low) / (high - low), 0, 1) * 255
        assert abs(shown(tmp_path, name, window) - expected).max() <= 0.5 + 1e-9, window


def test_eight_bits_in_sixteen_are_the_same_picture(tmp_path):
    plain = noise(30, 20)
    Image.fromarray(plain).save(tmp_path / "plain.png")
    Image.fromarray(plain.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for window in ("full", "0:65535"):
        np.testing.assert_array_equal(shown(tmp_path, "deep.png", window), shown(tmp_path, "plain.png", "span"))


def test_a_flat_picture_is_black_and_signed_and_white_first_tiffs_are_read(tmp_path):
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(tmp_path / "flat.png")
    assert not shown(tmp_path, "flat.png").any()
    plain = noise(8, 8)
    Image.fromarray(plain.astype(np.uint16) * 257).save(tmp_path / "white.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(shown(tmp_path, "white.tif", "full"), 255 - plain.astype(int))
    signed = plain.astype(np.int32) * 257 - 32768
    Image.frombytes("I;16", (8, 8), signed.astype("<i2").tobytes()).save(tmp_path / "signed.tif", tiffinfo={339: 2})
    np.testing.assert_array_equal(shown(tmp_path, "signed.tif", "full"), plain)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_more_than_sixteen_bits_are_refused_not_clipped(tmp_path, mode):
    Image.fromarray(noise(8, 8)).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(WsurgeryError, match=r"a\.tif has more than 16 bits a channel"):
        shown(tmp_path, "a.tif")


def write_tiff(path, planes, order, *, apart=False, packed=False):
    """Write (h, w) or (h, w, 3) of any integers as TIFF 6.0 has it, each plane or all of them as one strip."""
    height, width, *samples = planes.shape
    count, signed = (*samples, 1)[0], planes.dtype.kind == "i"
    bytes_of = [
        np.ascontiguousarray(plane).astype(planes.dtype.newbyteorder(order)).tobytes()
        for plane in (planes.transpose(2, 0, 1) if apart else [planes])
    ]
    strips = [zlib.compress(strip) if packed else strip for strip in bytes_of]
    starts = np.cumsum([8, *map(len, strips)])
    tags = {
        256: [width], 257: [height], 258: [8 * planes.itemsize] * count, 259: [8 if packed else 1], 262: [2 if samples else 1],
        273: starts[:-1], 277: [count], 278: [height], 279: [*map(len, strips)], 284: [2 if apart else 1],
        339: [2 if signed else 1] * count,
    }  # fmt: skip
    entries, beside = b"", b""
    after = starts[-1] + 2 + 12 * len(tags) + 4
    for tag, values in tags.items():
        data = struct.pack(f"{order}{len(values)}I", *values)
        at = data if len(values) == 1 else struct.pack(f"{order}I", after + len(beside))
        beside += data if len(values) > 1 else b""
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + at
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, starts[-1])
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    path.write_bytes(head + b"".join(strips) + directory + beside)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "apart"),
    [(np.uint8, False), (np.uint8, True), (np.int8, False), (np.uint16, False), (np.uint16, True), (np.int16, False)],
)
def test_a_tiff_has_the_values_that_were_written_or_is_refused_by_name(tmp_path, order, packed, apart, dtype):
    plain = noise(8, 8, 3)
    bits = 8 * np.dtype(dtype).itemsize
    low = -(1 << bits - 1) if np.dtype(dtype).kind == "i" else 0
    deep = (plain.astype(np.int64) * (1 if bits == 8 else 257) + low).astype(dtype)
    misread = {
        "colours of 16 bits in planes of their own.* PlanarConfiguration 1": apart
        and dtype is np.uint16
        and not packed,
        "signed values of 8 bits, .* unsigned": dtype is np.int8,
        "signed values, big-endian and compressed": dtype is np.int16 and packed and order == ">",
    }
    kinds = [(deep, plain)] if apart else [(deep[..., 0], plain[..., :1])]
    kinds += [] if apart or low else [(deep, plain)]
    for stored, expected in kinds:
        write_tiff(tmp_path / "a.tif", stored, order, apart=apart, packed=packed)
        manifest = Manifest(
            tmp_path,
            ("a.tif",),
            ("a",),
            ("x",),
            np.ones((1, 1), np.float32),
            ("mild",),
            rendering=Rendering(window="full"),
        )
        if words := [words for words, refused in misread.items() if refused]:
            with pytest.raises(WsurgeryError, match=rf"a\.tif has {words[0]}") as error:
                decode(manifest, 8)
            assert "\n" not in str(error.value)
        else:
            np.testing.assert_array_equal(decode(manifest, 8)[0], np.broadcast_to(expected, (8, 8, 3)))


def test_a_png_of_16_bits_with_opacity_has_its_upper_bits_in_colour_and_is_refused_in_grey(tmp_path):
    """As its upper bits, grey would be another picture with opacity than without, which is shown by its span."""
    plain = noise(8, 8, 3)
    manifest = Manifest(tmp_path, ("a.png",), ("a",), ("x",), np.ones((1, 1), np.float32), ("mild",))
    for kind, colours in ((6, plain), (4, plain[..., :1])):
        deep = np.concatenate([colours, np.full((8, 8, 1), 9)], axis=-1).astype(np.uint16) * 256 + 5
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
        header = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        parts = [struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks]
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        if kind == 6:
            np.testing.assert_array_equal(decode(manifest, 8)[0], plain)
    with pytest.raises(WsurgeryError, match=r"a\.png is grey of 16 bits with opacity.*: save it without opacity"):
        decode(manifest, 8)


@pytest.mark.parametrize("name", ["many.gif", "many.tif"])
def test_of_several_frames_the_first_is_read(tmp_path, name):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (40, 90, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert (shown(tmp_path, name) == 40).all()


def test_what_is_left_out_is_known_by_its_path(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    Image.fromarray(noise(8, 8)).convert("F").save(tmp_path / "b.tif")
    paths = ("b.tif", "a.png", "c.png")
    manifest = Manifest(tmp_path, paths, paths, ("x",) * 3, np.ones((3, 1), np.float32), ("mild",))
    bad = decode_readable(manifest, 8)[2]
    assert [*bad] == ["b.tif", "c.png"]
    assert "more than 16 bits" in bad["b.tif"]
    assert "No such file" in bad["c.png"]
