"""Data and metrics of another package: one module and its entry points, in a folder on the path. The package is the page's."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsurgery.similarity.metrics import METRICS

PAGE = (Path(__file__).parents[1] / "docs" / "plug-ins-data.md").read_text(encoding="utf-8")
POINTS = """
[wsurgery.data]
skin = skin:skin
skin-2 = skin:skin
folder = broken:folder
broken = broken:adapter
list = skin:images
number = skin:number
leaks = skin:leaks
raises = skin:raises

[wsurgery.metrics]
trace_correlation = skin:trace_correlation
mean_cca = broken:mean_cca
broken = broken:metric
scalar = skin:scalar
number = skin:number
beyond = skin:beyond
"""
MORE = """
import pathlib

pathlib.Path(__file__).with_name("imported").touch()
number = 3


def images(argument, given):
    return ["a.png"]


def scalar(pair):
    return pair.xx.mean()


def beyond(pair):
    return pair.xx[:, 0, 99]


def raises(argument, given):
    return given['root']


def leaks(argument, given):
    columns = {"paths": ("a.png", "b.png"), "patients": ("p", "q"), "splits": ("train", "test")}
    labels = {"flat": np.zeros(2), "other": np.full((2, 1), 3), "list": [[0], [1]]}.get(argument, np.zeros((2, 1)))
    other = {"patient": ("patients", ("p", "p")), "path": ("paths", ("a.png", "a.png")), "short": ("splits", ("test",))}
    columns |= dict([other[argument]] if argument in other else [])
    return Manifest(".", *columns.values(), labels, ("x",))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code) == 2
    (folder / "skin.py").write_text("\n".join([*code, MORE]))
    (folder / "broken.py").write_text("import nothing_like_it\n")
    info = folder / "skins-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: skins\nVersion: 1.2\n")
    declared = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1]
    for name, value in re.findall(r'^(\w+) = "(.*)"$', declared, re.MULTILINE):
        assert f"\n{name} = {value}\n" in POINTS
    (info / "entry_points.txt").write_text(POINTS)
    return folder


@pytest.fixture
def run(site, wsurgery, monkeypatch):
    """Run a command where the package is installed."""
    monkeypatch.setenv("PYTHONPATH", str(site))
    (site / "imported").unlink(missing_ok=True)
    return wsurgery


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("images") / "derm", np.random.default_rng(0)
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "patient", "malignant"])
        for i in range(40):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
            writer.writerow([f"{i}.png", f"p{i // 2}", i % 2])
    return folder


@pytest.fixture(scope="module")
def activations(tmp_path_factory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("activations"), np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    y = x @ rng.normal(size=(6, 8)) + rng.normal(size=(300, 8))
    for name, array in (("a", x), ("b", y)):
        np.save(folder / f"{name}.npy", array)
    return [folder / "a.npy", folder / "b.npy"]


def test_its_scheme_is_data(run, images):
    shown = json.loads(run("data", "show", f"skin:{images}?valid=0.25&test=0.25", "--json").stdout)
    assert {name: split["images"] for name, split in shown["splits"].items()} == {"train": 20, "valid": 10, "test": 10}
    assert shown["splits"]["test"]["labels"] == {"malignant": {"positive": 5, "negative": 5, "unknown": 0}}
    assert run("data", "show", f"skin-2:{images}", "--json").returncode == 0
    refused = run("data", "show", f"skin:{images}?colour=red", check=False)
    assert (refused.returncode, refused.stderr) == (
        2,
        b"wsurgery data show: skin has no key 'colour': there are valid, test, seed, fold, fit, window\n",
    )


@pytest.mark.slow
def test_a_record_names_it_without_its_folder(run, images, tmp_path):
    start, folder = tmp_path / "start.safetensors", tmp_path / "run"
    run("init", "cbr_tiny", "--width", 0.05, "--num-classes", 1, "-o", start)
    run("train", start, "--data", f"skin:{images}?test=0.2", "--steps", 1, "--device", "cpu", "-o", folder)
    record = json.loads(run("log", folder / "last.safetensors", "--json").stdout)[-1]
    assert record["arguments"][:2] == ["--data", "skin:derm?test=0.2"]


def test_its_metric_is_computed_from_the_same_draws(run, activations):
    typed = ["cca", "--activations", *activations, "-d", 4, "--metric", "trace_correlation,r2_cca", "--json"]
    ours, theirs = reversed(json.loads(run(*typed).stdout)["layers"])
    assert (ours["metric"], theirs["metric"]) == ("r2_cca", "trace_correlation")
    assert np.square(theirs["repeats"]) == pytest.approx(ours["repeats"], rel=1e-9)
    assert theirs["floor"] < theirs["value"] < theirs["ceiling"] == pytest.approx(1, abs=0.5)


@pytest.mark.slow
def test_nothing_is_imported_that_is_not_asked_for_and_own_names_win(run, site, images, activations):
    classes = images.parent / "classes"
    for i, path in enumerate(sorted(images.glob("*.png"))):
        (classes / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (classes / "ab"[i % 2] / path.name).write_bytes(path.read_bytes())
    assert run("data", "show", f"folder:{classes}", "--json").returncode == 0
    assert run("cca", "--activations", *activations, "-d", 4, "--metric", "mean_cca").returncode == 0
    unknown = run("data", "show", "nowhere:x", check=False)
    assert (
        unknown.stderr.decode().strip().endswith("medmnist, folder, broken, leaks, list, number, raises, skin, skin-2")
    )
    unknown = run("cca", "--activations", *activations, "--metric", "nothing", check=False)
    there = ", ".join([*METRICS, "beyond", "broken", "number", "scalar", "trace_correlation"])
    assert unknown.stderr.decode() == f"wsurgery cca: metrics are {there}, not 'nothing'\n"
    assert not (site / "imported").exists()
    run("cca", "--activations", *activations, "-d", 4, "--metric", "trace_correlation")
    assert (site / "imported").exists()


@pytest.mark.parametrize(
    ("what", "name", "words"),
    [
        (
            "data",
            "broken",
            "cannot be imported: broken.py, line 1: ModuleNotFoundError: No module named 'nothing_like_it'",
        ),
        ("data", "number", "is a int: wsurgery.data names a function of an argument and keys that returns a Manifest"),
        pytest.param("data", "list", "returned a list: an adapter returns a Manifest", marks=pytest.mark.slow),
        (
            "metric",
            "broken",
            "cannot be imported: broken.py, line 1: ModuleNotFoundError: No module named 'nothing_like_it'",
        ),
        ("metric", "number", "is a int: wsurgery.metrics names a function of a Pair that returns an array, (r,)"),
        ("metric", "scalar", "returned a float64 where an array of 10 values is due"),
        (
            "metric",
            "beyond",
            "failed: skin.py, line {xx[:, 0, 99]}: IndexError: index 99 is out of bounds for axis 2 with size 4; "
            "--debug shows the traceback",
        ),
        ("data", "raises", "failed: skin.py, line {given['root']}: KeyError: 'root'; --debug shows the traceback"),
    ],
)
def test_a_broken_one_costs_a_line_that_names_its_package(what, name, words, run, activations, site):
    if found := re.search(r"\{(.*?)\}", words):
        line = (site / "skin.py").read_text().partition(found[1])[0].count("\n") + 1
        words = words.replace(found[0], str(line))
    typed = {
        "data": ["data", "show", f"{name}:x"],
        "metric": ["cca", "--activations", *activations, "--metric", name, "-d", 4],
    }
    refused = run(*typed[what], check=False)
    command = {"data": "data show", "metric": "cca"}[what]
    assert refused.stderr.decode() == f"wsurgery {command}: the plug-in {name} of skins 1.2 {words}\n"
    assert refused.returncode == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("patient", "has patient 'p' in two splits, 'train' and 'test': a patient belongs in one"),
        ("path", "has the path 'a.png' twice"),
        ("short", "has 1 values in splits for 2 paths"),
        ("flat", "has labels that are float64 (2,): float32 (2, 1) is due for 2 paths and 1 label_names"),
        ("list", "has labels that are a list: float32 (2, 1) is due for 2 paths and 1 label_names"),
        ("other", "has labels other than 0, 1 and NaN"),
    ],
)
def test_what_an_adapter_returns_is_held_to_what_holds_for_a_table(fault, words, run):
    refused = run("data", "show", f"leaks:{fault}", check=False)
    assert (refused.returncode, refused.stderr.decode()) == (
        1,
        f"wsurgery data show: the plug-in leaks of skins 1.2 returned a Manifest that {words}\n",
    )
    assert run("data", "show", "leaks:none").returncode == 0
