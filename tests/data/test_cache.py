import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsurgery.data.cache import cache_folder, decode, native_size
from wsurgery.data.manifest import Manifest, write_manifest
from wsurgery.errors import WsurgeryError


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


def test_grey_images_become_three_equal_channels(tmp_path):
    grey = noise(8, 8)
    np.testing.assert_array_equal(decode(manifest_of(tmp_path, [grey]), 8)[0], np.stack([grey] * 3, axis=2))


def test_sixteen_bits_are_refused_not_clipped(tmp_path):
    with pytest.raises(WsurgeryError, match=r"0\.png has more than 8 bits"):
        decode(manifest_of(tmp_path, [noise(8, 8).astype(np.uint16) * 257]), 8)


def test_decoded_once(tmp_path, cache):
    manifest = manifest_of(tmp_path, noise(3, 8, 8, 3))
    decode(manifest, 8)
    (file,) = cache.rglob("*.npy")
    before = file.stat().st_mtime_ns
    decode(manifest, 8)
    assert file.stat().st_mtime_ns == before


def test_a_changed_image_is_decoded_again(tmp_path):
    manifest = manifest_of(tmp_path, noise(3, 8, 8, 3))
    black, white = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
    for time, image in enumerate((black, white)):
        Image.fromarray(image).save(tmp_path / "1.png", format="BMP")  # of the same size in bytes
        os.utime(tmp_path / "1.png", ns=(0, time))
        np.testing.assert_array_equal(decode(manifest, 8)[1], image)


def test_a_write_to_the_array_stays_in_memory(tmp_path):
    manifest = manifest_of(tmp_path, noise(2, 8, 8, 3))
    decode(manifest, 8)[:] = 0
    np.testing.assert_array_equal(decode(manifest, 8), noise(2, 8, 8, 3))


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_a_corrupt_image_is_named(tmp_path, cache, keep):
    manifest = manifest_of(tmp_path, noise(3, 8, 8, 3))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:keep])
    with pytest.raises(WsurgeryError, match=r"1\.png cannot be read as an image") as error:
        decode(manifest, 8)
    assert "\n" not in str(error.value)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


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
print("ready", flush=True)
sys.stdin.readline()
sys.stdout.buffer.write(decode(manifest, 8, threads=1).tobytes())
"""


def test_two_processes_may_decode_at_once(tmp_path, cache):
    images = noise(1500, 8, 8, 3)
    write_manifest(manifest_of(tmp_path, images), tmp_path / "m.csv")
    command = [sys.executable, "-c", RACER, str(tmp_path / "m.csv")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    assert [racer.communicate()[0] == images.tobytes() for racer in racers] == [True, True]
    assert len([path for path in cache.rglob("*") if path.is_file()]) == 1


def test_where_the_cache_is(monkeypatch):
    assert cache_folder() == Path(os.environ["WSURGERY_CACHE"])
    monkeypatch.delenv("WSURGERY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/wsurgery")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path("/home/me/.cache/wsurgery")
