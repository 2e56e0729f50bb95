import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from wsurgery.data.cache import decode
from wsurgery.data.manifest import read_manifest, write_manifest
from wsurgery.data.rendering import DEFAULT, Rendering
from wsurgery.data.sources import make_manifest, open_data, portable_name
from wsurgery.errors import UsageError, WsurgeryError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path / "cache"))


def film(height, width):
    """A picture whose outermost columns, or rows, are red."""
    pixels = np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8)
    if width > height:
        pixels[:, [0, -1]] = (255, 0, 0)
    else:
        pixels[[0, -1]] = (255, 0, 0)
    return pixels


@pytest.fixture
def table(tmp_path):
    """A manifest of a wide and a tall picture."""
    for name, shape in (("wide", (12, 20)), ("tall", (20, 12))):
        Image.fromarray(film(*shape)).save(tmp_path / f"{name}.png")
    file = tmp_path / "m.csv"
    file.write_text("path,patient,split,ill\nwide.png,a,train,1\ntall.png,b,train,0\n")
    return file


@pytest.mark.parametrize("size", [20, 12, 7])
def test_each_fit_is_what_pillow_does(table, size):
    oracle = {
        "crop": lambda image: ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC),
        "pad": lambda image: ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC),
        "stretch": lambda image: image.resize((size, size), Image.Resampling.BICUBIC),
    }
    for fit, expected in oracle.items():
        decoded = decode(open_data(f"{table}?fit={fit}"), size)
        for pixels, name in zip(decoded, ("wide", "tall"), strict=True):
            with Image.open(table.parent / f"{name}.png") as image:
                np.testing.assert_array_equal(pixels, np.asarray(expected(image)))


def test_padded_pixels_are_the_files_and_no_side_is_lost(table):
    wide, tall = decode(open_data(f"{table}?fit=pad"), 20)
    np.testing.assert_array_equal(wide[4:16], film(12, 20))
    np.testing.assert_array_equal(tall[:, 4:16], film(20, 12))
    assert not wide[:4].any()
    assert not wide[16:].any()
    assert not (decode(read_manifest(table), 12) == (255, 0, 0)).all(-1).any()  # what a crop leaves out


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_turned_picture_is_padded_as_it_is_seen(tmp_path, fit):
    pixels = film(12, 19)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    (tmp_path / "m.csv").write_text("path,split,ill\nturned.png,x,1\nupright.png,x,0\n")
    turned, upright = decode(open_data(f"{tmp_path / 'm.csv'}?fit={fit}&patient="), 19)
    assert abs(turned.astype(int) - upright).max() <= 1  # rows are scaled after columns


def test_a_manifest_keeps_how_its_images_are_rendered(table, tmp_path):
    made = make_manifest(f"{table}?fit=pad&window=-600:1500", tmp_path / "made.csv")
    assert made.rendering == Rendering("pad", "-600:1500")
    assert (tmp_path / "made.csv").read_text().splitlines()[:2] == [
        "path,patient,split,ill,meta:image_fit,meta:image_window",
        "wide.png,a,train,1,pad,'-600:1500",
    ]
    write_manifest(made, tmp_path / "made.parquet")
    for name in ("made.csv", "made.parquet"):
        again = read_manifest(tmp_path / name)
        assert (again.rendering, dict(again.metadata), again.digest) == (made.rendering, {}, made.digest)
        assert open_data(f"{tmp_path / name}?fit=stretch&window=auto").rendering == Rendering("stretch")
    plain = make_manifest(f"{tmp_path / 'made.csv'}?fit=crop&window=auto", tmp_path / "plain.csv")
    assert (tmp_path / "plain.csv").read_text().splitlines()[0] == "path,patient,split,ill"
    assert plain.digest == read_manifest(table).digest != made.digest
    assert len({replace(made, rendering=Rendering(fit)).digest for fit in ("crop", "pad", "stretch")}) == 3


def test_a_manifest_says_one_rendering(table, tmp_path):
    for values, words in ((("pad", "crop"), "'crop' and before 'pad'"), (("x", "x"), "fit=x is not one of crop, pad")):
        header, *rows = table.read_text().splitlines()
        lines = [f"{header},meta:image_fit", *(f"{row},{value}" for row, value in zip(rows, values, strict=True))]
        (tmp_path / "odd.csv").write_text("\n".join(lines))
        with pytest.raises(WsurgeryError, match=words):
            read_manifest(tmp_path / "odd.csv")


@pytest.mark.parametrize(
    "key", ["fit=", "fit=Crop", "window=5", "window=5:5", "window=7:5", "window=0:inf", "window=nan:1"]
)
def test_a_rendering_that_there_is_not_is_refused(table, key):
    with pytest.raises(UsageError, match=f"^{key} is not one of"):
        open_data(f"{table}?{key}")


def test_a_record_names_what_the_specification_does_not(table):
    padded = Rendering("pad")
    assert portable_name(str(table), DEFAULT) == "m.csv"
    assert portable_name(str(table), padded) == "m.csv?fit=pad"
    assert portable_name(f"{table}?labels=ill", padded) == "m.csv?labels=ill&fit=pad"
    assert portable_name(f"{table}?fit=pad", padded) == "m.csv?fit=pad"
    assert portable_name("nih:/data/NIH?seed=1", Rendering("stretch")) == "nih:NIH?seed=1&fit=stretch"
    assert portable_name("synthetic:fundus?n=20", DEFAULT) == "synthetic:fundus?n=20"


def test_training_says_and_records_it_and_a_run_from_before_goes_on(invoke, tmp_path, table):
    text = [
        f"{path},{split}{i},{split},{i}"
        for split in ("train", "valid")
        for i, path in enumerate(("wide.png", "tall.png"))
    ]
    for name in ("wide", "tall"):
        (tmp_path / f"v{name}.png").write_bytes((tmp_path / f"{name}.png").read_bytes())
    text[2:] = [f"v{line}" for line in text[2:]]
    table.write_text("path,patient,split,ill\n" + "\n".join(text) + "\n")
    init = tmp_path / "init.safetensors"
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 1, "-o", init)
    words = ("--image-size", 12, "--steps", 1, "--batch-size", 2, "--device", "cpu", "--threads", 1)
    padded = invoke("train", init, "--data", f"{table}?fit=pad", "-o", tmp_path / "padded", *words)
    assert "fit=pad: all of each image, on a black square" in padded.stderr
    config = json.loads((tmp_path / "padded" / "config.json").read_text())
    assert (config["data"]["fit"], config["data"]["window"]) == ("pad", "auto")
    log = invoke("log", tmp_path / "padded" / "last.safetensors").stdout
    assert "fit=pad" in log

    invoke("train", init, "--data", table, "-o", tmp_path / "run", *words)
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    for key in ("fit", "window"):
        del config["data"][key]
    file.write_text(json.dumps(config))
    invoke("train", init, "--data", table, "-o", tmp_path / "run", *words)
    refused = invoke("train", init, "--data", f"{table}?fit=pad", "-o", tmp_path / "run", *words, check=False)
    assert refused.exit_code == 2
    assert 'fit was "crop" and is "pad"' in refused.stderr
