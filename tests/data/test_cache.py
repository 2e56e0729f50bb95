import os
import re
import struct
import subprocess
import sys
import time
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from wsurgery.data.cache import cache_folder, decode, decode_readable, native_size
from wsurgery.data.dataset import load_dataset
from wsurgery.data.manifest import Manifest, read_manifest, write_manifest
from wsurgery.data.pictures import FORMATS
from wsurgery.errors import UsageError, WsurgeryError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def manifest_of(root, images):
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / f"{i}.png")
    paths = tuple(f"{i}.png" for i in range(len(images)))
    return Manifest(root, paths, paths, ("x",) * len(paths), np.ones((len(paths), 1), np.float32), ("mild",))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_images_of_the_right_size_are_the_files_pixels(tmp_path):
    images = noise(700, 9, 9, 3)
    decoded = decode(manifest_of(tmp_path, images), 9, threads=2)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, images)


def test_the_centred_square_is_kept(tmp_path):
    wide = noise(8, 20, 3)
    decoded = decode(manifest_of(tmp_path, [wide, wide.transpose(1, 0, 2)]), 8)
    np.testing.assert_array_equal(decoded[0], wide[:, 6:14])
    np.testing.assert_array_equal(decoded[1], wide.transpose(1, 0, 2)[6:14])


def test_scaling_down_averages(tmp_path):
    """Alternating black and white columns, finer than the result can show, come out grey: no aliasing."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = decode(manifest_of(tmp_path, [stripes]), 16)[0, :, 2:-2].astype(int)
    assert abs(inner - 127.5).max() < 6


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(("width", "height"), [(1203, 901), (901, 1203), (517, 771)])
def test_a_jpeg_scaled_down_by_its_decoder_is_the_same_picture(tmp_path, mode, width, height):
    """The oracle decodes every pixel. Sides that 8 does not divide: a shift by part of a pixel would show."""
    coarse = noise(height // 60, width // 60, 3)
    photograph = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    decoded = saved(tmp_path, photograph, "big.jpg", size=32, quality=95)
    with Image.open(tmp_path / "big.jpg") as image:
        whole = ImageOps.fit(image.convert("RGB"), (32, 32), Image.Resampling.BICUBIC)
    difference = decoded - np.asarray(whole)
    assert abs(difference).max() <= 4
    assert abs(difference).mean() < 0.5


def test_grey_images_become_three_equal_channels(tmp_path):
    grey = noise(8, 8)
    np.testing.assert_array_equal(decode(manifest_of(tmp_path, [grey]), 8)[0], np.stack([grey] * 3, axis=2))


def test_decoded_once(tmp_path, cache):
    manifest = manifest_of(tmp_path, noise(3, 8, 8, 3))
    decode(manifest, 8)
    files = {path.suffix: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    assert {*files} == {".rgb", ".json"}
    decode(manifest, 8)
    assert files == {path.suffix: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}


def test_a_changed_image_is_decoded_again(tmp_path):
    manifest = manifest_of(tmp_path, noise(3, 8, 8, 3))
    black, white = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
    for changed, image in enumerate((black, white)):
        Image.fromarray(image).save(tmp_path / "1.png", format="BMP")  # of the same size in bytes
        os.utime(tmp_path / "1.png", ns=(0, changed))
        np.testing.assert_array_equal(decode(manifest, 8)[1], image)


def test_the_array_cannot_be_written_to(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        decode(manifest_of(tmp_path, noise(2, 8, 8, 3)), 8)[:] = 0


@pytest.mark.skipif(sys.platform == "win32", reason="a file of zeros takes all of its length there")
def test_a_cache_larger_than_memory_opens(tmp_path, cache):
    """Nothing of it is read: the file is all hole. Of a mapping that may be written to, the kernel counts every byte."""
    side, n = 5000, 20_000
    (tmp_path / "0.png").write_bytes(b"no image")
    many = Manifest(tmp_path, ("0.png",) * n, ("0",) * n, ("x",) * n, np.ones((n, 1), np.float32), ("mild",))
    with pytest.raises(WsurgeryError, match="cannot be read"):
        decode(many, side)
    (part,) = cache.rglob("*.part")
    os.truncate(part, n * side * side * 3)  # 1.5 TB
    part.rename(part.with_suffix(".rgb"))
    images = decode(many, side)
    assert images.shape == (n, side, side, 3)
    assert not images[n // 2, 0, 0].any()


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_corrupt_image_is_named(tmp_path, cache, keep):
    manifest = manifest_of(tmp_path, noise(3, 8, 8, 3))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:keep])
    with pytest.raises(WsurgeryError, match=r"1\.png cannot be read as an image") as error:
        decode(manifest, 8)
    assert "\n" not in str(error.value)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) == 0


def test_what_cannot_be_read_is_left_out_on_demand(tmp_path):
    images = noise(600, 8, 8, 3)
    manifest = manifest_of(tmp_path, images)
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "300.png").unlink()
    (tmp_path / "599.png").write_bytes((tmp_path / "599.png").read_bytes()[:100])
    good = [row for row in range(600) if row not in (1, 300, 599)]
    for _ in range(2):  # decoded, and then mapped
        decoded, rest, reasons = decode_readable(manifest, 8)
        np.testing.assert_array_equal(decoded, images[good])
        assert rest.paths == tuple(f"{row}.png" for row in good)
        assert [*reasons] == ["1.png", "300.png", "599.png"]
        assert all(path in reason for path, reason in reasons.items())
        with pytest.raises(WsurgeryError, match=r"300\.png cannot be read"):  # found before anything is decoded
            decode(manifest, 8)
    write_manifest(manifest, tmp_path / "m.csv")
    dataset = load_dataset(str(tmp_path / "m.csv"), split="x", skip_bad=True)
    assert (len(dataset.images), len(dataset.labels), len(dataset.paths), len(dataset.skipped)) == (597, 597, 597, 3)
    assert dataset.digest == rest.digest != manifest.digest


def test_a_corrupt_image_stays_one_after_it_was_left_out(tmp_path):
    manifest = manifest_of(tmp_path, noise(3, 8, 8, 3))
    (tmp_path / "0.png").write_bytes(b"no image")
    assert len(decode_readable(manifest, 8)[0]) == 2
    with pytest.raises(WsurgeryError, match=r"0\.png cannot be read"):
        decode(manifest, 8)
    assert native_size(manifest, skip_bad=True) == 8
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"no image")
    for fails in (lambda: decode_readable(manifest, 8), lambda: native_size(manifest, skip_bad=True)):
        with pytest.raises(WsurgeryError, match="none of the images"):
            fails()


def test_killed_it_goes_on_where_it_was(tmp_path, cache):
    """What had been written is marked after kill -9; the mark is still there at the end, and all the rest is right."""
    n, size = 600, 16
    values = np.arange(n) % 251
    manifest = manifest_of(tmp_path, np.broadcast_to(values[:, None, None], (n, 400, 400)).astype(np.uint8))
    write_manifest(manifest, tmp_path / "m.csv")
    command = [sys.executable, "-m", "wsurgery", "data", "cache", tmp_path / "m.csv", "--image-size", str(size)]
    process = subprocess.Popen([*command, "--threads", "1"])
    while not (part := [path for path in cache.rglob("*.part") if path.stat().st_size]):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    image = size * size * 3
    done = part[0].stat().st_size // image
    assert 0 < done < n
    with part[0].open("r+b") as stream:
        stream.write(bytes([255]) * image)
        stream.seek(0, os.SEEK_END)
        stream.write(b"half an image")
    images = decode(manifest, size)
    assert (images[0] == 255).all()
    np.testing.assert_array_equal(images[1:], np.broadcast_to(values[1:, None, None, None], (n - 1, size, size, 3)))
    assert not list(cache.rglob("*.part"))


def saved(tmp_path, image, name, size=8, **options):
    """The decoded pixels of one image file."""
    image.save(tmp_path / name, **options)
    manifest = Manifest(tmp_path, (name,), (name,), ("x",), np.ones((1, 1), np.float32), ("mild",))
    return decode(manifest, size)[0].astype(int)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("tif", {}), ("tif", {"compression": "tiff_lzw"}), ("webp", {"lossless": True})],
)
def test_an_image_is_turned_as_its_exif_says(tmp_path, suffix, options):
    """The eight orientations of the Exif standard: the same picture, stored in eight ways, comes out as one."""
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4, :4], upright[:4, 4:], upright[4:, :4] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
    }  # fmt: skip
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image, name = Image.fromarray(np.ascontiguousarray(pixels)), f"{orientation}.{suffix}"
        np.testing.assert_array_equal(saved(tmp_path, image, name, exif=exif, **options), upright)


def test_a_tiff_that_is_not_square_and_of_16_bits_is_turned_once(tmp_path):
    upright = np.repeat(np.arange(12, dtype=np.uint16)[:, None], 8, axis=1) * 5957  # 0 to 65527
    for turns, orientation in enumerate((1, 6, 3, 8)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for depth, pixels in ((16, upright), (8, (upright >> 8).astype(np.uint8))):
            image = Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)))
            decoded = saved(tmp_path, image, f"{orientation}-{depth}.tif", exif=exif)
            assert abs(decoded[..., 1] - (upright[2:10] / 257)).max() <= 1  # the centred square


def test_broken_exif_breaks_no_image(tmp_path):
    image = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    for name, exif in (("a.jpg", b"Exif\0\0garbage"), ("b.jpg", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), ("c.jpg", b"")):
        assert abs(saved(tmp_path, image, name, exif=exif) - 90).max() <= 1


def test_damaged_files_are_read_or_named(tmp_path):
    """Bytes changed at random: a square comes out or an error of ours, nothing else."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    named = 0
    for suffix in ("jpg", "png", "webp"):
        Image.fromarray(noise(40, 30, 3)).save(tmp_path / f"whole.{suffix}", exif=exif)
        whole = np.fromfile(tmp_path / f"whole.{suffix}", np.uint8)
        for i in range(150):
            damaged = whole.copy()
            damaged[rng.integers(0, (whole.size, 200)[i % 2], 4)] = rng.integers(0, 256, 4)
            damaged.tofile(tmp_path / f"{i}.{suffix}")
            manifest = Manifest(tmp_path, (f"{i}.{suffix}",), ("a",), ("x",), np.ones((1, 1), np.float32), ("mild",))
            try:
                assert decode(manifest, 8, threads=1).shape == (1, 8, 8, 3)
            except WsurgeryError as error:
                named += f"{i}.{suffix} cannot be read" in str(error) or "more than 16 bits" in str(error)
    assert named > 150


def test_palette_images_have_their_colours_transparent_or_not(tmp_path):
    colours = np.array([[10, 20, 30], [200, 100, 50]], np.uint8)
    indices = noise(8, 8) % 2
    image = Image.fromarray(indices, "L")
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(saved(tmp_path, image, "plain.png"), colours[indices])
    np.testing.assert_array_equal(saved(tmp_path, image, "clear.png", transparency=bytes([0, 128])), colours[indices])


def test_opacity_is_dropped(tmp_path):
    pixels = noise(8, 8, 4)
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(pixels), "rgba.png"), pixels[..., :3])
    grey = saved(tmp_path, Image.fromarray(pixels[..., :2]), "la.png")
    np.testing.assert_array_equal(grey, np.stack([pixels[..., 0]] * 3, axis=2))


def test_black_and_white_and_cmyk_become_rgb(tmp_path):
    bits = noise(8, 8) > 127
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(bits), "bits.png")[..., 1], bits * 255)
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[..., 1], cmyk[..., 3] = 255, 128  # magenta, darkened to one half
    decoded = saved(tmp_path, Image.fromarray(cmyk, "CMYK"), "cmyk.jpg", quality=100)
    assert abs(decoded - [127, 0, 127]).max() < 6


def test_a_truncated_jpeg_is_named_and_not_filled_with_grey(tmp_path):
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    manifest = Manifest(tmp_path, ("cut.jpg",), ("a",), ("x",), np.ones((1, 1), np.float32), ("mild",))
    with pytest.raises(WsurgeryError, match=r"cut\.jpg cannot be read as an image: .*truncated"):
        decode(manifest, 8)


def test_a_missing_image_is_named(tmp_path):
    manifest = manifest_of(tmp_path, noise(3, 8, 8, 3))
    (tmp_path / "2.png").unlink()
    with pytest.raises(WsurgeryError, match=r"2\.png cannot be read as an image: No such file"):
        decode(manifest, 8)


def test_the_native_size_is_the_shorter_side(tmp_path):
    assert native_size(manifest_of(tmp_path, [noise(8, 20, 3)])) == 8


RACER = """
import sys
from pathlib import Path
from wsurgery.data.cache import decode
from wsurgery.data.manifest import read_manifest
manifest = read_manifest(Path(sys.argv[1]))
read = set()
sys.addaudithook(lambda event, a: read.add(a[0]) if event == "open" and str(a[0]).endswith(".png") else None)
print("ready", flush=True)
sys.stdin.readline()
sys.stdout.buffer.write(decode(manifest, 8, threads=1).tobytes())
print(len(read), file=sys.stderr)
"""


def test_of_two_processes_at_once_one_decodes(tmp_path, cache):
    images = noise(1500, 8, 8, 3)
    write_manifest(manifest_of(tmp_path, images), tmp_path / "m.csv")
    command = [sys.executable, "-c", RACER, str(tmp_path / "m.csv")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    racers = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    ended = [racer.communicate() for racer in racers]
    assert [pixels == images.tobytes() for pixels, _ in ended] == [True, True]
    assert sorted(int(read) for _, read in ended) == [0, 1500]
    assert sorted(path.suffix for path in cache.rglob("*") if path.is_file()) == [".json", ".rgb"]


def test_where_the_cache_is(monkeypatch):
    assert cache_folder() == Path(os.environ["WSURGERY_CACHE"])
    monkeypatch.delenv("WSURGERY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/wsurgery")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/wsurgery")


def test_postscript_is_not_run(tmp_path):
    """Pillow gives an EPS to Ghostscript, whatever its name."""
    script = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    manifest = manifest_of(tmp_path, noise(2, 8, 8, 3))
    (tmp_path / "1.png").write_text(script)
    for reads in (lambda: decode(manifest, 8), lambda: native_size(manifest.take([1]))):
        with pytest.raises(WsurgeryError, match=r"1\.png cannot be read as an image: it is none of PNG, JPEG"):
            reads()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_of_the_list_is_read(tmp_path, format):
    options = {"lossless": True} if format == "WEBP" else {}
    grey = np.repeat(noise(8, 8, 1), 3, axis=2)
    saved_as = Image.fromarray(grey[..., 0]) if format == "GIF" else Image.fromarray(grey)
    decoded = saved(tmp_path, saved_as, "a.png", format=format, **options)
    assert abs(decoded - grey).mean() < (9 if format == "JPEG" else 0.01)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("side", [10_001, 13_000, 60_000])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, side):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))))
    manifest = Manifest(tmp_path, ("0.png",), ("a",), ("x",), np.ones((1, 1), np.float32), ("mild",))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, from 89 million pixels on
        for reads in (lambda: decode(manifest, 8), lambda: native_size(manifest)):
            with pytest.raises(WsurgeryError, match=r"pixels"):
                reads()


def test_a_size_that_no_network_takes_is_refused(tmp_path):
    with pytest.raises(UsageError, match="1000000 x 1000000 pixels"):
        decode(manifest_of(tmp_path, noise(1, 8, 8, 3)), 10**6)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_paths_that_are_no_files_are_left_out_on_demand(tmp_path):
    images = noise(2, 8, 8, 3)
    manifest_of(tmp_path, images)
    os.mkfifo(tmp_path / "fifo.png")
    np.savez(tmp_path / "a.npz", a=images, empty=np.zeros((10**9, 0, 8), np.uint8), big=np.zeros((3, 8, 8, 5)))
    odd = {
        "fifo.png": "is not a regular file", "a\0b.png": "null", "9" * 5000: "long", f"a.npz/a/{'9' * 5000}": "long",
        "/dev/zero": "is not a regular file", "a.npz/a/2": "not one of index 2", "a.npz/b/0": "'b.npy'",
        "a.npz/empty/999999999": "0 pixels|8 x 0", "a.npz/big/0": "not uint8", "b.npz/a/0": "No such file",
        "0.png/1.png": "Not a directory", ".": "is not a regular file",
    }  # fmt: skip
    paths = ("0.png", *odd, "a.npz/a/1", "1.png")
    labels = np.ones((len(paths), 1), np.float32)
    manifest = Manifest(tmp_path, paths, paths, ("x",) * len(paths), labels, ("mild",))
    for _ in range(2):  # decoded, and then mapped
        decoded, rest, reasons = decode_readable(manifest, 8)
        assert rest.paths == ("0.png", "a.npz/a/1", "1.png")
        np.testing.assert_array_equal(decoded, images[[0, 1, 1]])
        for reason, words in zip(reasons.values(), odd.values(), strict=True):
            assert re.search(words, reason), reason
            assert reason.isprintable()
    assert native_size(manifest.take([*range(1, len(paths))]), skip_bad=True) == 8
    for row, path in enumerate(paths):
        if path in odd:
            with pytest.raises(WsurgeryError, match=odd[path]):
                decode(manifest.take([row]), 8)


@pytest.mark.parametrize("suffix", ["rgb", "part", "bad", "lock", "json"])
def test_a_link_in_the_cache_is_not_written_through(tmp_path, cache, suffix):
    images = noise(3, 8, 8, 3)
    manifest = manifest_of(tmp_path, images)
    (tmp_path / "1.png").write_bytes(b"no image")
    decode_readable(manifest, 8)
    (file,) = cache.rglob("*.rgb")
    precious = tmp_path / "precious"
    precious.write_bytes(b"1234")
    for name in (file, file.with_suffix(".bad"), file.with_suffix(".json")):
        name.unlink()
    file.with_suffix("." + suffix).symlink_to(precious)
    with suppress(WsurgeryError):
        assert len(decode_readable(manifest, 8)[0]) == 2
    assert precious.read_bytes() == b"1234"


@pytest.mark.parametrize("damage", [b"", b"1234", bytes(8 * 8 * 3 * 9)])
def test_a_damaged_cache_is_made_again(tmp_path, cache, damage):
    images = noise(3, 8, 8, 3)
    manifest = manifest_of(tmp_path, images)
    decode(manifest, 8)
    (file,) = cache.rglob("*.rgb")
    file.write_bytes(damage)
    if len(damage) > images.nbytes:
        file.with_suffix(".part").write_bytes(damage)
    np.testing.assert_array_equal(decode(manifest, 8), images)


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[1]", b'{"1": 2}', b'{"-1": "x"}', b'{"3": "x"}', b'{"a": "x"}', b'{"01": "x", "1": "y"}', b"\xff",
     b'{"' + b"1" * 5000 + b'": "x"}', b"[" * 100_000],
)  # fmt: skip
def test_a_damaged_list_of_what_was_left_out_is_made_again(tmp_path, cache, damage):
    images = noise(3, 8, 8, 3)
    manifest = manifest_of(tmp_path, images)
    (tmp_path / "1.png").write_bytes(b"no image")
    decode_readable(manifest, 8)
    (file,) = cache.rglob("*.bad")
    file.write_bytes(damage)
    decoded, rest, reasons = decode_readable(manifest, 8)
    np.testing.assert_array_equal(decoded, images[[0, 2]])
    assert (rest.paths, len(reasons)) == (("0.png", "2.png"), 1)


def test_what_was_wrong_with_an_image_is_printable(tmp_path, cache):
    manifest = manifest_of(tmp_path, noise(2, 8, 8, 3))
    (tmp_path / "1.png").write_bytes(b"no image")
    decode_readable(manifest, 8)
    (file,) = cache.rglob("*.bad")
    file.write_text('{"1": "\\u001b[2J"}')
    assert decode_readable(manifest, 8)[2] == {"1.png": r"\x1b[2J"}


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that opens and gives EIO when it is read")
def test_an_image_that_the_system_does_not_give_is_not_left_out(tmp_path):
    """A server that was away for a moment, or too many open files, would else shape the data set for good."""
    manifest = manifest_of(tmp_path, noise(2, 8, 8, 3))
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.png").symlink_to("/proc/self/mem")
    for decoded in (decode, decode_readable):
        with pytest.raises(OSError, match="Input/output error") as error:
            decoded(manifest, 8)
        assert error.value.filename == str(tmp_path / "1.png")
    assert not [*cache_folder().glob("images/*.bad")]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="how much memory a process may have is set on Linux")
def test_an_image_for_which_memory_lacked_once_is_not_left_out(tmp_path, cache):
    """Where it is there again, so is the image."""
    write_manifest(manifest_of(tmp_path, [np.zeros((8000, 8000), np.uint8), noise(8, 8)]), tmp_path / "m.csv")
    script = f"""
import resource, sys
from pathlib import Path
import numpy, PIL.Image
from wsurgery.__main__ import main
import wsurgery.data.cache, wsurgery.data.sources
here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (here + 150 * 2**20,) * 2)
sys.argv[1:] = ["data", "cache", {str(tmp_path / "m.csv")!r}, "--image-size", "8", "--skip-bad", "--threads", "1"]
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (1, ["wsurgery data cache: out of memory"])
    assert not list(cache.rglob("*.bad"))
    assert len(decode_readable(read_manifest(tmp_path / "m.csv"), 8)[0]) == 2
