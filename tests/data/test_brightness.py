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
