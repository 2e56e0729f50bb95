import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from wsurgery.data.dataset import report_skipped
from wsurgery.data.manifest import Manifest, read_manifest, summarise, write_manifest
from wsurgery.data.sources import make_manifest
from wsurgery.errors import UsageError, WsurgeryError


def manifest_of(patients, splits=None, root=Path()):
    n = len(patients)
    labels = np.random.default_rng(0).choice(np.array([0, 1, np.nan], np.float32), (n, 2))
    paths = tuple(f"images/{i}.png" for i in range(n))
    return Manifest(root, paths, tuple(patients), tuple(splits or ["train"] * n), labels, ("mild", "severe"))


def images_of(manifest):
    return set(manifest.paths)


@pytest.fixture
def written(tmp_path):
    def write(text, name="m.csv"):
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize(
    "path", ["0.png", "x/../0.png", "../set/0.png", "x/y/../../../set/0.png", "{top}/set/x/../0.png"]
)
@pytest.mark.parametrize("folder", ["set", ".", "elsewhere/far"])
def test_a_patient_that_is_not_known_is_so_from_every_folder(tmp_path, path, folder):
    """And subsets, which go by patients' names, are those of the table."""
    for name in ("set/x/y", folder):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(tmp_path / "set" / "0.png")
    Image.new("L", (8, 8)).save(tmp_path / "set" / "1.png")
    for patient in ("", "p7"):
        text = f"path,patient,ill\n{path.format(top=tmp_path)},{patient},1\n1.png,,0\n"
        (tmp_path / "set" / "m.csv").write_text(text)
        table = read_manifest(tmp_path / "set" / "m.csv")
        make_manifest(str(tmp_path / "set" / "m.csv"), tmp_path / folder / "made.csv", force=True)
        made = read_manifest(tmp_path / folder / "made.csv")
        assert (table.has_patients, made.has_patients) == (bool(patient), bool(patient))
        assert made.patients == table.patients


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_reading_gives_back_what_was_written(tmp_path, suffix):
    patients = ["007", "007", 'a "quoted", name', "images/3.png", "Zoë"]
    manifest = manifest_of(patients, ["train", "train", "test", "valid", "test"], tmp_path)
    write_manifest(manifest, tmp_path / f"m.{suffix}")
    back = read_manifest(tmp_path / f"m.{suffix}")
    for field in ("root", "paths", "patients", "splits", "label_names"):
        assert getattr(back, field) == getattr(manifest, field)
    assert back.labels.dtype == np.float32
    np.testing.assert_array_equal(back.labels, manifest.labels)
    assert back.digest == manifest.digest


@pytest.mark.parametrize(
    "column", [[1.0, None, 0.0], [1, None, 0], [True, None, False], ["1", "", "0"], [1.0, np.nan, 0.0]]
)
def test_labels_may_be_of_any_type_that_holds_them(tmp_path, column):
    table = {"path": ["a", "b", "c"], "split": ["x", "x", "x"], "mild": column}
    pa.parquet.write_table(pa.table(table), tmp_path / "m.parquet")
    np.testing.assert_array_equal(
        read_manifest(tmp_path / "m.parquet").labels, np.array([[1], [np.nan], [0]], np.float32)
    )


def test_csv_keeps_names_that_look_like_numbers(written):
    manifest = read_manifest(written("\ufeffpath,patient,split,mild\n01,007,1,1\n1,7,2,1.0\n"))
    assert manifest.paths == ("01", "1")
    assert manifest.patients == ("007", "7")
    assert manifest.splits == ("1", "2")
    assert manifest.label_names == ("mild",)


@pytest.mark.parametrize("text", ["path,patient,split,mild\na,,x,1\nb,,y,0\n", "split,mild,path\nx,1,a\ny,0,b\n"])
def test_an_image_without_a_patient_is_its_own(written, text):
    assert read_manifest(written(text)).patients == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.csv: "),
        ("path,patient,split,mild\n", "m.csv: there are no rows"),
        ("patient,split,mild\np,x,1\n", "no column 'path'"),
        ("path,patient,fold\na,p,train\n", "is column 'fold' the split? Say split=fold"),
        ("path,patient,split\na,p,x\n", "no labels"),
        ("path,split,mild,mild\na,x,1,1\n", "'mild' is there twice"),
        ("path,split,mild\na,x,1\nb,x,2\n", "line 3: label 'mild' is '2'"),
        ("path,split,mild\na,x,maybe\nb,x,1\n", "line 2: label 'mild' is 'maybe'"),
        ("path,split,mild\na,x,1\nb,x,1\na,x,1\n", "line 4: path 'a' is there twice, first in line 2"),
        (
            "path,patient,split,mild\na,p,x,1\nb,q,x,1\nc,p,y,1\n",
            "line 4: patient 'p' is in two splits, 'x' (line 2) and 'y'",
        ),
        ("path,split,mild\na,x,1\n,x,1\n", "line 3: the path is empty"),
        ("path,split,mild\na,,1\n", "line 2: the split is empty"),
        (
            "path,split,mild\na,x,1\nb,x\n",
            "line 3: there are 2 fields and 3 columns: the columns, separated by commas, are path, split, mild",
        ),
    ],
)
def test_an_error_is_one_line_with_file_and_row(written, text, message):
    with pytest.raises(WsurgeryError) as error:
        read_manifest(written(text))
    assert message in str(error.value)
    assert str(error.value).count("m.csv") == 1
    assert "\n" not in str(error.value)


def test_errors_in_parquet_count_rows_from_one(tmp_path):
    pa.parquet.write_table(pa.table({"path": ["a", "b"], "split": ["x", "x"], "mild": [1, 2]}), tmp_path / "m.parquet")
    with pytest.raises(WsurgeryError, match=r"m\.parquet: row 2: label 'mild' is '2'"):
        read_manifest(tmp_path / "m.parquet")


def test_what_is_not_parquet_is_an_error(written):
    with pytest.raises(WsurgeryError, match=r"m\.parquet"):
        read_manifest(written("path,split,mild\na,x,1\n", "m.parquet"))


def test_other_suffixes_are_an_error(written):
    with pytest.raises(UsageError, match=r"m\.xlsx: a table is .*: save the sheet as CSV UTF-8"):
        read_manifest(written("path,split,mild\na,x,1\n", "m.xlsx"))


def test_where_keeps_rows_and_order():
    manifest = manifest_of(["a", "b", "a", "c"], ["x", "y", "x", "y"])
    found = manifest.where("y")
    assert found.paths == ("images/1.png", "images/3.png")
    np.testing.assert_array_equal(found.labels, manifest.labels[[1, 3]])


def test_a_split_that_is_empty_lists_those_that_are_not():
    with pytest.raises(UsageError, match="'test': there are x, y"):
        manifest_of(["a", "b"], ["y", "x"]).where("test")


def test_subsets_are_nested_and_hold_whole_patients():
    rng = np.random.default_rng(0)
    manifest = manifest_of([f"p{i}" for i in rng.integers(0, 60, 300)])
    before: set[str] = set()
    for n in (1, 10, 50, 51, 200, 300):
        subset = manifest.subset(n)
        assert before <= images_of(subset)
        before = images_of(subset)
        inside = set(subset.patients)
        assert before == {
            path for path, patient in zip(manifest.paths, manifest.patients, strict=True) if patient in inside
        }
        most = max(subset.patients.count(patient) for patient in inside)
        assert n <= len(subset) < n + most


def test_a_subset_does_not_depend_on_the_order_of_rows():
    manifest = manifest_of([f"p{i // 2}" for i in range(100)])
    rows = np.random.default_rng(0).permutation(100)
    columns = (tuple(np.array(column)[rows]) for column in (manifest.paths, manifest.patients, manifest.splits))
    shuffled = Manifest(manifest.root, *columns, manifest.labels[rows], manifest.label_names)
    assert images_of(shuffled.subset(31)) == images_of(manifest.subset(31))
    assert images_of(manifest.subset(31)) != set(manifest.paths[:32])


@pytest.mark.parametrize("n", [0, -1, 5])
def test_a_subset_that_cannot_be_is_an_error(n):
    with pytest.raises(UsageError, match="there are 4"):
        manifest_of(["a", "b", "c", "d"]).subset(n)


def test_the_digest_sees_every_field_but_the_root():
    manifest = manifest_of(["a", "b", "c"])
    changed = [
        Manifest(
            manifest.root,
            ("x", *manifest.paths[1:]),
            manifest.patients,
            manifest.splits,
            manifest.labels,
            manifest.label_names,
        ),
        Manifest(
            manifest.root, manifest.paths, ("a", "b", "x"), manifest.splits, manifest.labels, manifest.label_names
        ),
        Manifest(manifest.root, manifest.paths, manifest.patients, ("x",) * 3, manifest.labels, manifest.label_names),
        Manifest(
            manifest.root,
            manifest.paths,
            manifest.patients,
            manifest.splits,
            manifest.labels * 0 + 1,
            manifest.label_names,
        ),
        Manifest(manifest.root, manifest.paths, manifest.patients, manifest.splits, manifest.labels, ("mild", "x")),
    ]
    assert len({manifest.digest, *(other.digest for other in changed)}) == 6
    moved = Manifest(
        Path("/x"), manifest.paths, manifest.patients, manifest.splits, manifest.labels, manifest.label_names
    )
    assert moved.digest == manifest.digest


def test_the_summary_counts(written):
    text = "path,patient,split,mild\na,p,x,1\nb,p,x,0\nc,q,x,\nd,r,y,1\n"
    assert summarise(read_manifest(written(text))) == {
        "images": 4,
        "patients": 3,
        "rendering": {"fit": "crop", "window": "auto"},
        "splits": {
            "x": {"images": 3, "patients": 2, "labels": {"mild": {"positive": 1, "negative": 1, "unknown": 1}}},
            "y": {"images": 1, "patients": 1, "labels": {"mild": {"positive": 1, "negative": 0, "unknown": 0}}},
        },
    }


def test_a_table_with_columns_that_nobody_has_is_refused(written):
    columns = ",".join(f"c{i}" for i in range(100_000))
    with pytest.raises(WsurgeryError, match=r"m\.csv: there are 100,002 columns"):
        read_manifest(written(f"path,split,{columns}\na,x{',1' * 100_000}\n"))


def test_a_line_without_an_end_is_refused(written):
    for text in ("x" * 20_000_000, f"path,split,mild\n{'x' * 20_000_000},x,1\n"):
        with pytest.raises(WsurgeryError, match=r"^[^\n]*m\.csv: [^\n]+$"):
            read_manifest(written(text))


def test_a_split_for_each_image_is_refused(written):
    rows = "".join(f"{i},{i},1\n" for i in range(2000))
    with pytest.raises(WsurgeryError, match=r"m\.csv: there are 2,000 splits"):
        read_manifest(written("path,split,mild\n" + rows))


def test_a_parquet_file_of_a_few_bytes_with_rows_without_number_is_refused(tmp_path):
    n = 5_000_000
    same = pa.DictionaryArray.from_arrays(np.zeros(n, np.int32), ["x" * 1000])
    labels = pa.array(np.ones(n, np.int8))
    table = pa.table({"path": same, "split": same, "mild": labels})
    pa.parquet.write_table(table, tmp_path / "m.parquet", store_schema=False, write_statistics=False)
    assert (tmp_path / "m.parquet").stat().st_size < 100_000
    with pytest.raises(WsurgeryError, match=r"m\.parquet: there are 5,000,000 rows in"):
        read_manifest(tmp_path / "m.parquet")
    pa.parquet.write_table(table.slice(0, 500_000), tmp_path / "m.parquet", store_schema=False)  # half a gigabyte of x
    with pytest.raises(WsurgeryError, match=r"m\.parquet: row 2: path 'x+… ?"):
        read_manifest(tmp_path / "m.parquet")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_manifest_with_any_bytes_changed_is_read_or_refused_in_one_line(tmp_path, suffix):
    write_manifest(manifest_of(["a", "b", "c", "d"]), tmp_path / f"whole.{suffix}")
    whole = np.fromfile(tmp_path / f"whole.{suffix}", np.uint8)
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(0, whole.size, 3)] = rng.integers(0, 256, 3)
        damaged[: rng.integers(1, whole.size) if rng.random() < 0.2 else whole.size].tofile(tmp_path / f"m.{suffix}")
        try:
            read_manifest(tmp_path / f"m.{suffix}")
        except WsurgeryError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all(map(str.isprintable, refused))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_a_manifest_that_is_a_fifo_is_not_waited_for(tmp_path):
    for name in ("m.csv", "m.parquet"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(WsurgeryError, match="is not a regular file"):
            read_manifest(tmp_path / name)


def test_text_that_a_spreadsheet_takes_for_a_formula_is_none_in_the_file_and_comes_back(tmp_path):
    texts = ("=cmd|' /C calc'!A0", "@x", "+a", "'=b", "-1")
    manifest = Manifest(tmp_path, texts, ("p", *texts[:4]), texts, np.zeros((5, 2), np.float32), ("=a", "-b"))
    write_manifest(manifest, tmp_path / "m.csv")
    back = read_manifest(tmp_path / "m.csv")
    for field in ("paths", "patients", "splits", "label_names"):
        assert getattr(back, field) == getattr(manifest, field)
    with (tmp_path / "m.csv").open(newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert [cell for cell in cells if cell.startswith(("=", "@", "+", "-"))] == ["-1", "-1"]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_line_breaks_in_a_cell_come_back_and_every_reader_has_the_same_rows(tmp_path, end):
    notes = tuple(f"two{end}lines {i}" for i in range(4))
    manifest = replace(manifest_of([f"p{end}{i}" for i in range(4)]), metadata={f"a{end}note": notes})
    write_manifest(manifest, tmp_path / "m.csv")
    found = read_manifest(tmp_path / "m.csv")
    assert (found.patients, found.metadata) == (manifest.patients, manifest.metadata)
    np.testing.assert_array_equal(found.labels, manifest.labels)
    with (tmp_path / "m.csv").open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream, strict=True)
    assert header[-1] == f"meta:a{end}note"
    assert [row[-1] for row in rows] == [*notes]
    report_skipped({"train": {f"a{end}.png": "gone"}}, print, tmp_path / "bad.csv")
    with (tmp_path / "bad.csv").open(newline="", encoding="utf-8") as stream:
        assert [*csv.reader(stream, strict=True)] == [["split", "path", "reason"], ["train", f"a{end}.png", "gone"]]
