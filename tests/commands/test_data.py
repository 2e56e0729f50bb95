import json

import pytest
from typer.testing import CliRunner

from wsurgery.__main__ import build_app
from wsurgery.data.manifest import read_manifest

SPEC = "synthetic:fundus?n=40&size=16"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(build_app(), ["data", *map(str, arguments)])


def test_make_says_what_it_did(run, tmp_path):
    folder = tmp_path / "fundus"
    first, second = (run("make", SPEC, "-o", folder) for _ in range(2))
    assert (first.exit_code, first.stdout) == (0, "")
    assert first.stderr == f"{folder / 'manifest.csv'}\n"
    assert (second.exit_code, second.stdout) == (0, "")
    assert "nothing to do" in second.stderr
    assert len(read_manifest(folder / "manifest.csv")) == 40


def test_make_replaces_by_force_only(run, tmp_path):
    run("make", SPEC, "-o", tmp_path / "a")
    refused = run("make", "synthetic:textures?n=3&size=16", "-o", tmp_path / "a")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert run("make", "synthetic:textures?n=3&size=16", "-o", tmp_path / "a", "--force").exit_code == 0
    assert len(read_manifest(tmp_path / "a" / "manifest.csv")) == 3


def test_show_counts_from_a_manifest_and_from_a_specification(run, tmp_path):
    run("make", SPEC, "-o", tmp_path / "a")
    from_file, from_spec = (run("show", data, "--json") for data in (tmp_path / "a" / "manifest.csv", SPEC))
    assert from_file.stdout == from_spec.stdout
    shown = json.loads(from_file.stdout)
    assert (shown["images"], shown["patients"]) == (40, 20)
    assert {split: part["images"] for split, part in shown["splits"].items()} == {"train": 20, "valid": 6, "test": 14}
    for part in shown["splits"].values():
        assert sum(count["positive"] for count in part["labels"].values()) == part["images"]
        assert all(sum(count.values()) == part["images"] for count in part["labels"].values())


def test_show_prints_a_table(run, tmp_path):
    (tmp_path / "m.csv").write_text("path,patient,split,[ill]\na,p,x,1\nb,p,x,0\nc,q,x,\n")
    shown = run("show", tmp_path / "m.csv")
    assert shown.exit_code == 0
    assert "1 / 1 / 1" in shown.stdout
    assert "[ill]" in shown.stdout
    assert shown.stderr == ""


def test_cache_decodes_every_split(run, tmp_path):
    cached = run("cache", SPEC, "--image-size", 8)
    assert cached.exit_code == 0
    assert sorted(line.split(" in ")[0] for line in cached.stderr.splitlines()) == [
        "test: 14 images, 0.0 MB",
        "train: 20 images, 0.0 MB",
        "valid: 6 images, 0.0 MB",
    ]
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("show", "nowhere.csv"), 2, "nowhere.csv: there is no such file"),
        (("show", "synthetic:fundus?n=x"), 2, "n=x is not a whole number"),
        (("cache", "other:x", "--image-size", 8), 2, "there are synthetic"),
    ],
)
def test_an_error_is_one_line(run, arguments, status, message):
    failed = run(*arguments)
    assert failed.exit_code == status
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_broken_image_is_an_error_of_data(run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "m.csv").write_text("path,split,ill\na.png,x,1\n")
    failed = run("cache", tmp_path / "m.csv", "--image-size", 8)
    assert failed.exit_code == 1
    assert "a.png cannot be read as an image" in failed.stderr
