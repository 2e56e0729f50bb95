import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wsurgery.command_line import build_app
from wsurgery.data.manifest import read_manifest
from wsurgery.data.rendering import Rendering
from wsurgery.locks import locked

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
    for name in "abc":
        (tmp_path / name).touch()
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
    assert len(list((tmp_path / "cache" / "images").glob("*.rgb"))) == 3


def test_the_cache_is_listed_and_cleared(run, tmp_path, classes):
    cache = tmp_path / "cache"
    empty = json.loads(run("cache", "--list", "--json").stdout)
    assert empty == {"folder": str(cache), "bytes": 0, "entries": []}
    run("make", f"folder:{classes}?valid=0&test=0", "-o", tmp_path / "m.csv")
    run("cache", f"{tmp_path / 'm.csv'}?fit=pad", "--image-size", 8)
    run("show", SPEC)
    listed = json.loads(run("cache", "--list", "--json").stdout)
    images, drawn = listed["entries"]
    said = {"folder": str(tmp_path), "images": 40, "image_size": 8, "fit": "pad", "window": "auto"}
    assert (images["of"], images["complete"]) == (said, True)
    assert (drawn["of"], Path(drawn["path"]).parent) == (None, cache / "data")
    assert listed["bytes"] == sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert images["bytes"] > 40 * 8 * 8 * 3
    table = run("cache", "--list")
    assert f"40 images of 8 x 8, pad, in {tmp_path}" in table.stdout
    assert "drawn data" in table.stdout

    # What wsurgery did not make stays, and so does what another process is making.
    (cache / "images" / "mine.rgb").write_text("precious")
    (cache / "data" / "mine").mkdir()
    (cache / "data" / f"linked-{'0' * 16}").symlink_to(tmp_path / "images")
    part = cache / "images" / f"{'0' * 32}.part"
    part.write_bytes(b"part")
    assert "not all decoded yet" in run("cache", "--list").stdout
    with locked(part.with_suffix(".lock"), wait=False):
        cleared = run("cache", "--clear")
        assert cleared.exit_code == 0
        assert "2 entries removed" in cleared.stderr
        assert f"{'0' * 32}.rgb is being made, and stays" in cleared.stderr
        assert part.exists()
    assert "1 entries removed" in run("cache", "--clear").stderr
    left = {str(path.relative_to(cache)) for path in cache.rglob("*")}
    assert left == {"images", "images/mine.rgb", "data", "data/mine", f"data/linked-{'0' * 16}"}
    assert len(list(classes.rglob("*.png"))) == 40


@pytest.mark.parametrize("damage", ["", "{", '{"folder": 3}', '{"folder": "\\u001b[2J", "images": 1}'])
def test_an_entry_that_nobody_knows_is_listed(run, tmp_path, damage):
    run("cache", SPEC, "--image-size", 8)
    for file in (tmp_path / "cache" / "images").glob("*.json"):
        file.write_text(damage)
    listed = run("cache", "--list")
    assert listed.exit_code == 0
    assert listed.stdout.count("images of an earlier version") == 3


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


@pytest.fixture
def classes(tmp_path):
    """A folder of two classes, 40 images of 20 patients."""
    for i in range(40):
        path = tmp_path / "images" / ("ill" if i % 2 else "well") / f"p{i // 2:02d}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    return tmp_path / "images"


def test_make_writes_a_manifest_and_says_where_patients_are_not_known(run, tmp_path, classes):
    made = run("make", f"folder:{classes}", "-o", tmp_path / "m.csv")
    assert (made.exit_code, made.stdout) == (0, "")
    assert made.stderr.splitlines() == [
        f"{tmp_path / 'm.csv'}: 40 images, 40 patients: no patients are known, each image counts as one",
        "labels: ill, well",
        f"images: {Rendering().described}",
    ]
    again = run("make", f"folder:{classes}?patient=p\\d+", "-o", tmp_path / "m.csv", "--force")
    assert again.stderr.splitlines()[0] == f"{tmp_path / 'm.csv'}: 40 images, 20 patients"
    shown = json.loads(run("show", tmp_path / "m.csv", "--json").stdout)
    assert shown == json.loads(run("show", f"folder:{classes}?patient=p\\d+", "--json").stdout)
    assert shown["patients"] == 20


def test_grades_orders_and_unknown_patients_are_said(run, tmp_path):
    for name in ("1", "2", "10"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / name / "0.png")
    spec = f"folder:{tmp_path / 'images'}?ordinal=true&valid=0&test=0"
    for words in (("make", spec, "-o", tmp_path / "m.csv"), ("show", spec)):
        said = run(*words).stderr
        assert "no patients are known, each image counts as one" in said
        assert "grades, from the lowest: 1 < 2 < 10" in said
    assert "no patients are known" in run("show", tmp_path / "m.csv").stderr


def test_any_table(run, tmp_path):
    rows = "".join(f"{i}.png;s{i // 2};{40 + i};{i % 2}\n" for i in range(20))
    (tmp_path / "raw.csv").write_text("image;subject;age;ill\n" + rows)
    for i in range(20):
        (tmp_path / f"{i}.png").touch()
    spec = f"{tmp_path / 'raw.csv'}?path=image&patient=subject&labels=ill&valid=0.2&test=0.2"
    made = run("make", spec, "-o", tmp_path / "m.csv")
    assert (made.exit_code, made.stdout) == (0, "")
    assert "20 images, 10 patients\n" in made.stderr
    shown = run("show", tmp_path / "m.csv")
    assert "beside: age" in shown.stdout
    assert run("show", tmp_path / "m.csv", "--json").stdout == run("show", spec, "--json").stdout
    refused = run("show", spec.replace("ill", "sick"))
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "no column 'sick': the columns, separated by semicolons, are image, subject, age, ill" in refused.stderr
    refused = run("make", spec, "-o", tmp_path / "folder")
    assert (refused.exit_code, "name a .csv or .parquet" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("values", "absent"),
    [("012", ["train", "valid", "test"]), (["train", "test"], ["valid"]), (["train"], ["valid", "test"])],
)
def test_make_says_which_split_a_study_will_miss(values, absent, run, tmp_path):
    rows = "".join(f"{i}.png,{values[i % len(values)]},{i % 2}\n" for i in range(12))
    (tmp_path / "t.csv").write_text("path,split,ill\n" + rows)
    for i in range(12):
        (tmp_path / f"{i}.png").touch()
    said = run("make", tmp_path / "t.csv", "-o", tmp_path / "m.csv").stderr
    assert re.findall(r"no image is in the split (\w+), which", said) == absent
    remedies = set(re.findall(r"or (\S+=.*) for patients held out", said))
    part = 0.15 if len(absent) == 2 else 0.17  # a sixth of six
    assert remedies == ({" and ".join(f"{name}={part}" for name in absent)} if "train" in values else set())
    for remedy in remedies:  # as it is printed
        again = run("make", f"{tmp_path / 't.csv'}?{remedy.replace(' and ', '&')}", "-o", tmp_path / "again.csv")
        assert (again.exit_code, "no image is in" in again.stderr) == (0, False)


@pytest.mark.parametrize("column", ["", "train"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 30])
def test_of_few_patients_what_came_out_is_said_and_the_remedy_helps(n, column, run, tmp_path):
    for i in range(n):
        (tmp_path / f"{i}.png").touch()
    split = ",split" if column else ""
    rows = "".join(f"{i}.png,p{i},{i % 2}{column and ',' + column}\n" for i in range(n))
    (tmp_path / "t.csv").write_text(f"path,patient,ill{split}\n{rows}")
    spec = tmp_path / "t.csv"
    for _ in range(2):
        said = run("make", spec, "-o", tmp_path / "m.csv", "--force").stderr
        splits = json.loads(run("show", tmp_path / "m.csv", "--json").stdout)["splits"]
        assert re.findall(r"no image is in the split (\w+),", said) == [
            name for name in ("train", "valid", "test") if name not in splits
        ]
        valid, test = (splits.get(name, {"patients": 0})["patients"] for name in ("valid", "test"))
        if not column:
            assert f"no column says the splits: of {n} patients {valid} go to valid, {test} to test\n" in said
        remedy = re.search(r"(valid=\S+) and (test=\S+) for patients held out", said)
        assert (remedy is not None) == (n > 2 and len(splits) < 3)
        if remedy is None:
            break
        spec = f"{tmp_path / 't.csv'}?{remedy[1]}&{remedy[2]}"
    assert n < 3 or len(splits) == 3


def test_make_of_a_drawn_set_as_a_manifest(run, tmp_path):
    assert run("make", SPEC, "-o", tmp_path / "m.parquet").exit_code == 0
    assert run("show", tmp_path / "m.parquet", "--json").stdout == run("show", SPEC, "--json").stdout


def test_flags_are_keys(run, tmp_path):
    (tmp_path / "d").mkdir()
    header = "Path,Frontal/Lateral,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion\n"
    rows = "".join(f"x/train/patient{i:05d}/study1/a.jpg,Frontal,-1.0,-1.0,1.0,0.0,\n" for i in range(4))
    (tmp_path / "d" / "train.csv").write_text(header + rows)
    (tmp_path / "d" / "valid.csv").write_text(
        header + "x/valid/patient64541/study1/a.jpg,Frontal,0.0,0.0,1.0,0.0,1.0\n"
    )
    for split, patients in (("train", range(4)), ("valid", [64541])):
        for i in patients:
            study = tmp_path / "d" / split / f"patient{i:05d}" / "study1"
            study.mkdir(parents=True)
            (study / "a.jpg").touch()
    flags = "--uncertain", "zeros", "--uncertain", "cardiomegaly=ones", "--blank", "ignore"
    assert run("make", f"chexpert:{tmp_path / 'd'}?valid=0", "-o", tmp_path / "m.csv", *flags).exit_code == 0
    assert read_manifest(tmp_path / "m.csv").where("train").labels[0].tolist()[:4] == [0, 1, 1, 0]
    assert np.isnan(read_manifest(tmp_path / "m.csv").where("train").labels[:, 4]).all()
    refused = run("make", f"folder:{tmp_path}", "-o", tmp_path / "n.csv", "--blank", "zero")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "folder has no key 'blank'" in refused.stderr
    refused = run("make", f"folder:{tmp_path}", "-o", tmp_path / "folder")
    assert refused.exit_code == 2
    assert "name a .csv or .parquet" in refused.stderr


def test_cache_counts_what_it_leaves_out(run, tmp_path, classes):
    run("make", f"folder:{classes}?valid=0&test=0", "-o", tmp_path / "m.csv")
    (classes / "ill" / "p00_1.png").write_bytes(b"no image")
    assert run("cache", tmp_path / "m.csv", "--image-size", 8).exit_code == 1
    cached = run("cache", tmp_path / "m.csv", "--image-size", 8, "--skip-bad")
    assert cached.exit_code == 0
    assert "train: 1 images left out, first: " in cached.stderr
    assert "p00_1.png cannot be read as an image" in cached.stderr
    assert "train: 39 images" in cached.stderr


def test_what_is_left_out_is_listed_with_its_reason(run, tmp_path, classes):
    run("make", f"folder:{classes}?valid=0.5&test=0", "-o", tmp_path / "m.csv")
    manifest = read_manifest(tmp_path / "m.csv")
    lost, damaged = manifest.where("train").paths[0], manifest.where("valid").paths[3]
    (tmp_path / lost).unlink()
    (tmp_path / damaged).write_bytes(b"no image")
    file = tmp_path / "bad.csv"
    for _ in range(2):  # a list is replaced
        done = run("cache", tmp_path / "m.csv", "--image-size", 8, "--bad-list", file)
        assert done.exit_code == 0
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [(row["split"], row["path"]) for row in rows] == [("train", lost), ("valid", damaged)]
        assert "No such file" in rows[0]["reason"]
        assert "none of PNG, JPEG" in rows[1]["reason"]
    before = (tmp_path / "m.csv").read_bytes()
    refused = run("cache", tmp_path / "m.csv", "--image-size", 8, "--bad-list", tmp_path / "m.csv")
    assert refused.exit_code == 2
    assert "m.csv exists, and is no list of images" in refused.stderr
    assert (tmp_path / "m.csv").read_bytes() == before
    (tmp_path / damaged).unlink()
    (tmp_path / damaged).symlink_to(tmp_path / manifest.where("valid").paths[0])
    (tmp_path / lost).symlink_to(tmp_path / manifest.where("valid").paths[0])
    assert run("cache", tmp_path / "m.csv", "--image-size", 8, "--bad-list", file).exit_code == 0
    assert file.read_text() == "split,path,reason\n"


def test_files_that_are_no_images_are_counted(run, tmp_path, classes):
    for name in ("ill/a.heic", "ill/b.HEIC", "well/notes.txt", "LICENSE", "well/.hidden"):
        (classes / name).write_text("x")
    (classes / "ill" / "c.gif").write_bytes((classes / "ill" / "p00_1.png").read_bytes())
    made = run("make", f"folder:{classes}", "-o", tmp_path / "m.csv")
    assert "41 images" in made.stderr
    assert "4 files are no images by their names and left out: 2 .heic, 1 without a suffix, 1 .txt" in made.stderr


TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorials" / "own-images.md").read_text()
PAGE = TUTORIAL.partition("### A folder a class")[2].partition("```sh\n")[2].partition("```")[0]


@pytest.mark.slow
def test_from_a_folder_of_images_to_a_convergence_plot(shell, tmp_path):
    """Stripes against checks, two images a patient."""
    rng = np.random.default_rng(0)
    y, x = np.indices((32, 32))
    for i in range(80):
        stripes = np.sin(x + rng.uniform(0, 6)) * (np.sin(y) if i % 2 else 1)
        path = tmp_path / "images" / ("checks" if i % 2 else "stripes") / f"p{i // 2:02d}_{i % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((128 + 60 * stripes + rng.normal(0, 10, (32, 32))).clip(0, 255).astype(np.uint8)).save(path)
    done = shell("set -e; export OMP_WAIT_POLICY=passive\n" + PAGE, tmp_path)  # kind to the other tests' processes
    assert done.returncode == 0, done.stderr.decode()
    assert b"80 images, 40 patients" in done.stderr
    with Image.open(tmp_path / "curves.png") as figure:
        assert min(figure.size) > 200
    for start in ("random", "gabor"):
        metrics = json.loads((tmp_path / "runs" / start / "1" / "metrics.json").read_text())
        assert metrics["best"]["macro_auc"] > 0.9


def test_names_in_a_manifest_drive_no_terminal(run, tmp_path):
    names = ["sp\x1b[2Jlit", "la\u202ebel", "=cmd", "[red]x"]
    rows = [["path", "patient", "split", *names[1:]], ["a.png", "p", names[0], "1", "0", ""]]
    with (tmp_path / "m.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    for options in ([], ["--json"]):
        shown = run("show", tmp_path / "m.csv", *options).stdout
        assert all(line.isprintable() for line in shown.splitlines())
        assert "=cmd" in shown
        assert "[red]x" in shown
    assert list(json.loads(shown)["splits"]) == names[:1]


@pytest.mark.slow
def test_from_a_table_as_pandas_writes_it_to_curves(shell, tmp_path):
    """DataFrame.to_csv() with its index, a float where a label is missing, booleans, `val`, an age; nothing edited by hand."""
    rng = np.random.default_rng(0)
    y, x = np.indices((16, 16))
    lines = [",image,subject,fold,age,edema,checks"]
    for i in range(60):
        stripes = np.sin(x + rng.uniform(0, 6)) * (np.sin(y) if i % 2 else 1)
        pixels = (128 + 60 * stripes + rng.normal(0, 10, (16, 16))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        fold = ("train", "train", "val", "test")[i // 2 % 4]
        lines.append(f"{i},{i}.png,{i // 2},{fold},{30 + i}.0,{'' if i % 7 == 0 else float(i % 3 == 0)},{bool(i % 2)}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    done = shell(
        """set -e; export OMP_WAIT_POLICY=passive
wsurgery data make "table.csv?path=image&patient=subject&split=fold&labels=edema,checks" -o manifest.csv
wsurgery init cbr_tiny --num-classes 2 --width 0.125 --seed 1 -o init.safetensors
wsurgery train init.safetensors --data manifest.csv --image-size 16 --steps 4 --eval-every 2 -o runs/a/1
wsurgery curves runs/a/1 -o curves.png""",
        tmp_path,
    )
    said = done.stderr.decode()
    assert done.returncode == 0, said
    assert "60 images, 30 patients" in said
    assert "labels: edema, checks" in said
    metrics = json.loads((tmp_path / "runs" / "a" / "1" / "metrics.json").read_text())
    assert metrics["steps"] == 4
    with Image.open(tmp_path / "curves.png") as figure:
        assert min(figure.size) > 200


def test_splits_stand_in_the_order_of_a_study(run, tmp_path):
    rows = [(i, split) for i, split in enumerate(("mine", "test", "valid", "train", "other", "test"))]
    table = "path,patient,split,x\n" + "".join(f"{i}.png,p{i},{split},{i % 2}\n" for i, split in rows)
    (tmp_path / "m.csv").write_text(table)
    shown = json.loads(run("show", tmp_path / "m.csv", "--json").stdout)
    assert list(shown["splits"]) == ["train", "valid", "test", "mine", "other"]


@pytest.mark.parametrize("gone", [1, 3, 60])
def test_images_that_are_not_there_are_counted_before_anything_is_written(gone, run, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(60 - gone):
        Image.new("L", (8, 8)).save(tmp_path / "images" / f"{59 - i}.png")
    table = "image,sick\n" + "".join(f"images/{i}.png,{i % 2}\n" for i in range(60))
    (tmp_path / "t.csv").write_text(table)
    (tmp_path / "m.csv").write_text(table.replace("image,", "path,"))
    for spec, remedy in ((f"{tmp_path / 'm.csv'}", "mend its paths"), (f"{tmp_path / 't.csv'}?path=image", "images=")):
        made = run("make", spec, "-o", tmp_path / "made.csv")
        assert made.exit_code == 1
        assert made.stderr.count("\n") == 1
        assert remedy in made.stderr
        assert "images/0.png" in made.stderr
        assert not (tmp_path / "made.csv").exists()
    said = f"m.csv: {gone} of 60 images are not there, first images/0.png in {tmp_path}"
    assert said in run("make", tmp_path / "m.csv", "-o", tmp_path / "made.csv").stderr
    shown = run("show", tmp_path / "m.csv")
    assert shown.exit_code == 0
    assert said in shown.stderr
