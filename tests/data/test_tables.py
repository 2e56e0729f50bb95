"""Tables as spreadsheets and data frames write them, and what makes manifests of them."""

import csv
import gzip
import io
import re
from pathlib import Path
from statistics import multimode

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from wsurgery.data.manifest import read_manifest
from wsurgery.data.sources import make_manifest, open_data, portable_name
from wsurgery.errors import UsageError, WsurgeryError

SPLITS = ["train"] * 6 + ["valid"] * 3 + ["test"] * 3
PLAIN = "path,patient,split,ill\n" + "".join(f"images/{i}.png,p{i},{s},{i % 2}\n" for i, s in enumerate(SPLITS))
ROWS = [line.split(",") for line in PLAIN.splitlines()[1:]]


@pytest.fixture
def read(tmp_path):
    def read(content, name="m.csv", **keys):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return read_manifest(tmp_path / name, keys)

    return read


def with_column(name, values):
    """The plain table with a column before its label."""
    rows = zip(ROWS, values, strict=True)
    return f"path,patient,split,{name},ill\n" + "".join(f"{','.join(row[:3])},{x},{row[3]}\n" for row, x in rows)


def labelled(words):
    return "path,patient,split,ill\n" + "".join(f"{','.join(row[:3])},{words[int(row[3])]}\n" for row in ROWS)


SAME = {
    "BOM": PLAIN.encode("utf-8-sig"),
    "UTF-16": PLAIN.encode("utf-16"),
    "CRLF": PLAIN.replace("\n", "\r\n"),
    "semicolons": PLAIN.replace(",", ";"),
    "tabs": PLAIN.replace(",", "\t"),
    "bars": PLAIN.replace(",", "|"),
    "backslashes": PLAIN.replace("/", "\\"),
    "index": "," + PLAIN.replace("\n", "\n7,", 12),
    "index of an index": "Unnamed: 0.1,Unnamed: 0," + PLAIN.replace("\n", "\n7,7,", 12),
    "spaces": PLAIN.replace(",", ", ").replace("\n", " \n"),
    "empty lines": PLAIN + "\n\n,,,\n",
    "trailing commas": PLAIN.replace("\n", ",,\n"),
    "trailing commas of some rows": PLAIN.replace("\n", ",,\n", 4),
    "val": PLAIN.replace("valid", "val"),
    "TRAIN": PLAIN.replace("train", "TRAIN").replace("valid", "Validation").replace("test", "Testing"),
    "capitals": PLAIN.replace("path,patient,split", "Path,Patient,SPLIT"),
    "quotes": "\n".join(",".join(f'"{field}"' for field in line.split(",")) for line in PLAIN.splitlines()),
    "True": labelled(["False", "True"]),
    "TRUE": labelled(["FALSE", "TRUE"]),
    "yes": labelled(["no", "Yes"]),
    "fractions": labelled(["0.0", "1.0"]),
    "decimal commas": labelled(["0,0", "1,0"]).replace("0,0\n", '"0,0"\n').replace("1,0\n", '"1,0"\n'),
    "age and sex": with_column("age,sex", [f"{40 + i},{'MF'[i % 2]}" for i in range(12)]),
    "infants": with_column("Patient Age", [0, 1, 2] * 4),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_spreadsheets_and_data_frames_write_is_the_same_table(read, kind):
    manifest, plain = read(SAME[kind]), read(PLAIN)
    assert manifest.digest == plain.digest
    assert manifest.label_names == ("ill",)


def test_gzipped(read, monkeypatch):
    assert read(gzip.compress(PLAIN.encode()), "m.csv.gz").digest == read(PLAIN).digest
    with pytest.raises(WsurgeryError, match=r"m\.csv\.gz: it is not whole, or no gzip file"):
        read(gzip.compress(PLAIN.encode())[:-20], "m.csv.gz")
    monkeypatch.setattr("wsurgery.data.table._FREE_CELLS", 1000)
    with pytest.raises(WsurgeryError, match=r"m\.csv\.gz: there are \d+,\d+ rows and more in [\d,]+ bytes"):
        read(gzip.compress(b"path,split,a\n" + b"a,b,1\n" * 200_000), "m.csv.gz")


# DataFrame.to_csv of a column with a gap, booleans, a nullable integer, and the index that it writes if nobody says no.
PANDAS = """,path,patient,split,ill,sure,grade
0,0.png,000,train,1.0,True,1
1,1.png,000,train,0.0,False,
2,2.png,001,val,,True,0
3,3.png,001,val,1.0,False,1
4,4.png,002,test,0.0,True,1
5,5.png,002,test,1.0,False,0
"""


@pytest.mark.parametrize("how", ["csv", "parquet"])
def test_as_pandas_writes_it(read, tmp_path, how):
    n = np.nan
    expected = [[1, 1, 1], [0, 0, n], [n, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0]]
    if how == "csv":
        manifest = read(PANDAS)
    else:
        ill, sure, grade = zip(*expected, strict=True)
        columns = {
            "path": [f"{i}.png" for i in range(6)],
            "patient": pa.array([f"{i // 2:03d}" for i in range(6)]).dictionary_encode(),  # a Categorical
            "split": ["train", "train", "val", "val", "test", "test"],
            "ill": ill,
            "sure": [bool(x) for x in sure],
            "grade": pa.array([None if x != x else int(x) for x in grade], pa.int64()),
            "__index_level_0__": [5, 3, 4, 1, 2, 0],
        }
        pa.parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
        manifest = read_manifest(tmp_path / "m.parquet")
    np.testing.assert_array_equal(manifest.labels, expected)
    assert manifest.label_names == ("ill", "sure", "grade")
    assert manifest.patients == ("000", "000", "001", "001", "002", "002")
    assert manifest.splits == ("train", "train", "valid", "valid", "test", "test")


@pytest.mark.parametrize("word", ["", "nan", "NaN", "NA", "N/A", "null", "<NA>", "-1", "-1.0"])
def test_unknown(read, word):
    labels = read(PLAIN.replace("test,0", f"test,{word}").replace("test,1", f"test,{word}")).labels[:, 0]
    np.testing.assert_array_equal(np.isnan(labels), [split == "test" for split in SPLITS])


@pytest.mark.parametrize("word", ["nan", "NA", "n/a", "null", "<NA>"])
def test_unknown_class_and_patient(read, word):
    text = "path,patient,split,dx\n1,{},x,nv\n2,{},x,mel\n3,p,x,{}\n4,p,x,mel\n"
    keys = {"class": "dx"}
    blank, words = (read(text.format(*3 * [unknown]), **keys) for unknown in ("", word))
    assert words.label_names == ("mel", "nv")
    np.testing.assert_array_equal(words.labels, blank.labels)
    assert words.patients == blank.patients == ("1", "2", "p", "p")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"labels": "ill", "ordinal": "true"}, "ordinal= is of a class: name its column, class=COLUMN"),
        ({"labels": "ill", "positive": "x"}, "positive= is of a class"),
        ({"class": "grade", "blank": "zero"}, "blank= is of columns of labels: a class is known or not: leave it out"),
        ({"class": "grade", "uncertain": "ones"}, "uncertain= is of columns of labels"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(read, keys, message):
    with pytest.raises(UsageError, match=message):
        read("path,patient,split,ill,grade\na.png,p,train,1,a\nb.png,q,test,0,b\n", **keys)


def test_uncertain_as_in_chexpert(read):
    text = "path,split,a,b\n1,x,-1,-1\n2,x,1,\n3,x,0,0\n"
    labels = read(text, uncertain="ones,b=zeros", blank="zero").labels
    np.testing.assert_array_equal(labels, [[1, 0], [1, 0], [0, 0]])
    with pytest.raises(UsageError, match="uncertain=c is not one of a, b"):
        read(text, uncertain="c=ones")


def test_another_encoding_is_said(read):
    content = PLAIN.replace("ill", "Ödem").encode("cp1252")
    with pytest.raises(WsurgeryError, match=r"is not utf-8 \(byte 19\): save it as UTF-8, or .*encoding=cp1252"):
        read(content)
    assert read(content, encoding="cp1252").label_names == ("Ödem",)
    for name in ("none", "zip"):
        with pytest.raises(UsageError, match="no such encoding"):
            read(content, encoding=name)


def test_metadata_is_kept_beside(read, tmp_path):
    text = with_column("age,sex,smokes", [f"{40 + i},{'MF'[i % 2]},{i % 3 % 2}" for i in range(12)])
    with pytest.raises(WsurgeryError, match=r"beside age, sex any column could be no label.*\?labels=smokes,ill"):
        read(text)
    manifest = read(text, labels="ill")
    assert manifest.label_names == ("ill",)
    assert manifest.metadata["age"] == tuple(str(40 + i) for i in range(12))
    assert list(manifest.metadata) == ["age", "sex", "smokes"]
    assert manifest.digest == read(PLAIN).digest
    assert manifest.where("test").metadata["age"] == ("49", "50", "51")
    # Named once: the manifest that is made of it knows.
    (tmp_path / "raw.csv").write_text(text)
    (tmp_path / "images").mkdir()
    for i in range(12):
        (tmp_path / "images" / f"{i}.png").touch()
    for name in ("made.csv", "made.parquet"):
        make_manifest(f"{tmp_path / 'raw.csv'}?labels=smokes", tmp_path / name)
        again = read_manifest(tmp_path / name)
        assert again.label_names == ("smokes",)
        assert dict(again.metadata) == dict(read(text, labels="smokes").metadata)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN.replace("path,", "file,", 1), r"no column 'path': the columns, separated by commas, are file,.*\?path=file"),
        (PLAIN.replace(",", ";").replace("path;", "file;", 1), "separated by semicolons"),
        (PLAIN.replace("patient", "Subject ID"), "is column 'Subject ID' the patient.* patient=Subject%20ID, or patient= if"),
        (PLAIN.replace("split", "fold"), "is column 'fold' the split"),
        (with_column("sex", [0, 1] * 6), "column 'sex' could be a label or not: name the labels"),
        (with_column("grade", [0, 1, 2] * 4), r"line 4: label 'grade' is '2': .* name the labels"),
        (labelled(["0.3", "0.7"]), "line 2: there are no labels.* 'ill' is '0.3'"),
        (PLAIN.replace("\n", ",5\n").replace(",5\n", "\n", 1), "line 2: there are 5 fields and 4 columns"),
        (PLAIN + "images/0.png,p0,train,0\n", "line 14: path 'images/0.png' is there twice, first in line 2"),
    ],
)  # fmt: skip
def test_errors_say_what_there_is_and_what_to_do(read, text, message):
    with pytest.raises(WsurgeryError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


def test_columns_of_any_name(read, tmp_path):
    text = "Image Name;Subject;When;Phase;Has Edema;mild, or so\n"
    text += "".join(
        f"{i}.png;s{i // 2};{i};{['Train', 'val', 'test'][i // 4]};{i % 2};{i // 2 % 2}\n" for i in range(12)
    )
    picture = tmp_path / "0.png"
    Image.new("L", (8, 8)).save(picture)
    keys = {"path": "image name", "patient": "Subject", "split": "Phase", "labels": "Has Edema,mild%2C or so"}
    manifest = read(text, **keys)
    assert manifest.label_names == ("Has Edema", "mild, or so")
    assert manifest.splits == ("train",) * 4 + ("valid",) * 4 + ("test",) * 4
    assert list(manifest.metadata) == ["When"]
    spec = f"{tmp_path / 'm.csv'}?{'&'.join(f'{key}={value}' for key, value in keys.items())}"
    assert open_data(spec).digest == manifest.digest
    assert portable_name(spec) == spec.removeprefix(f"{tmp_path}/")
    with pytest.raises(WsurgeryError, match=r"no column 'Edema': the columns, separated by semicolons, are Image Name"):
        read(text, **{**keys, "labels": "Edema"})
    with pytest.raises(UsageError, match="no key 'label': there are path, patient"):
        read(text, **keys, label="x")
    picture.unlink()
    with pytest.raises(WsurgeryError, match=r"line 2: '0.png' is not there: images=\. finds images"):
        read(text, **keys)


def test_names_with_the_characters_of_a_specification(tmp_path):
    for i in range(9):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,p{i // 2},{i % 2},1\n" for i in range(9))
    (tmp_path / "m.csv").write_text('"a&b=1, %",Patient ID,"x, y",50%\n' + rows)
    spec = f"{tmp_path}/m.csv?path=a%26b=1, %25&labels=x%2C y"
    assert open_data(f"{spec},50%25&patient=").label_names == ("x, y", "50%")
    with pytest.raises(WsurgeryError, match="is column 'Patient ID' the patient") as error:
        open_data(spec)
    remedy = re.search(r"Say (patient=\S+),", str(error.value))[1]
    assert len(set(open_data(f"{spec}&{remedy}").patients)) == 5


def test_patients_are_held_out_where_there_are_no_splits(read, tmp_path):
    text = "path,patient,ill\n" + "".join(f"{i}.png,p{i // 3},{i % 2}\n" for i in range(60))
    manifest = read(text)
    assert {name: len(set(manifest.where(name).patients)) for name in ("train", "valid", "test")} == {
        "train": 14, "valid": 3, "test": 3,
    }  # fmt: skip
    assert len(set(zip(manifest.patients, manifest.splits, strict=True))) == 20
    assert "no column says the splits" in manifest.notes[0]
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    assert len(set(read(text, valid="0.5", test="0").where("valid").patients)) == 10
    reordered = "\n".join([text.splitlines()[0], *reversed(text.splitlines()[1:])])
    assert set(read(reordered).where("test").paths) == set(manifest.where("test").paths)


def test_no_patients(read):
    manifest = read(PLAIN, patient="")
    assert not manifest.has_patients
    assert manifest.patients == manifest.paths
    assert read(PLAIN).has_patients


def test_classes_in_one_column(read, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    text = "path,split,dx\n" + "".join(f"{i}.png,x,{name}\n" for i, name in enumerate(["mel", "nv", "", "bcc", "nv"]))
    one_hot = read(text, **{"class": "dx"})
    assert one_hot.label_names == ("bcc", "mel", "nv")
    np.testing.assert_array_equal(one_hot.labels.argmax(1)[[0, 1, 3, 4]], [1, 2, 0, 2])
    assert np.isnan(one_hot.labels[2]).all()
    ill = read(text, **{"class": "dx", "positive": "mel,bcc"})
    assert ill.label_names == ("mel_or_bcc",)
    np.testing.assert_array_equal(ill.labels[:, 0], [1, 0, np.nan, 1, 0])
    assert "bcc, mel: 1; nv: 0" in ill.notes
    with pytest.raises(UsageError, match="positive=akiec is not one of bcc, mel, nv"):
        read(text, **{"class": "dx", "positive": "akiec"})
    with pytest.raises(UsageError, match="which of bcc, mel, nv is the lowest grade"):
        read(text, **{"class": "dx", "ordinal": "true"})
    grades = "path,split,kl\n" + "".join(f"{i}.png,x,{grade}.0\n" for i, grade in enumerate([0, 10, 2, 3]))
    ordinal = read(grades, **{"class": "kl", "ordinal": "true"})
    assert ordinal.notes == ("grades, from the lowest: 0 < 2 < 3 < 10",)
    np.testing.assert_array_equal(ordinal.labels.sum(1), [0, 3, 1, 2])


def test_rows_of_one_image_are_joined(read, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    text = "path,patient,split,x,y\na.png,p,train,1,1\na.png,p,train,0,\nb.png,q,test,0,0\na.png,p,train,0,0\n"
    np.testing.assert_array_equal(read(text, repeats="any").labels, [[1, 1], [0, 0]])
    np.testing.assert_array_equal(read(text, repeats="majority").labels, [[0, 1], [0, 0]])
    with pytest.raises(
        WsurgeryError, match=r"line 5: path 'a\.png' has two in column 'split', 'train' \(line 2\) and 'test'"
    ):
        read(text.replace("a.png,p,train,0,0", "a.png,p,test,0,0"), repeats="any")


def test_of_classes_the_majority_is_one_or_none(read, tmp_path):
    rows = {"a": "yes yes no", "b": "no", "c": "yes no", "d": "yes no no", "e": ""}
    for name in rows:
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    lines = [f"{name}.png,{name},train,{value}" for name, values in rows.items() for value in values.split(" ")]
    text = "\n".join(["path,patient,split,ill", *lines, ""])
    nan = [np.nan, np.nan]
    joined = read(text, **{"class": "ill", "repeats": "majority"})
    assert joined.label_names == ("no", "yes")
    np.testing.assert_array_equal(joined.labels, [[0, 1], [1, 0], nan, [1, 0], nan])
    assert "5 rows were joined with others of their images, of which 3 disagree: majority counts" in joined.notes


def test_the_majority_is_of_the_classes_whatever_labels_they_become(read):
    """Of Python's modes: one, several that become the same label, or several that do not, and then none is known."""
    rng = np.random.default_rng(0)
    rows = [(f"{i}.png", grade) for i in range(80) for grade in rng.choice(["0", "1", "2", ""], rng.integers(1, 7))]
    text = "path,patient,split,grade\n" + "".join(f"{name},{name},train,{grade}\n" for name, grade in rows)
    grades = {name: [grade for other, grade in rows if other == name and grade] for name, _ in rows}
    modes = [{int(mode) for mode in multimode(of)} for of in grades.values()]

    def expected(label):
        said = [{label(mode) for mode in some} for some in modes]
        return np.array([values.pop() if len(values) == 1 else np.nan for values in said])

    keys = {"class": "grade", "repeats": "majority"}
    ill = read(text, **keys, positive="1,2")
    np.testing.assert_array_equal(ill.labels[:, 0], expected(lambda grade: float(grade > 0)))
    plain, ordinal = (read(text, **keys, **more) for more in ({}, {"ordinal": "true"}))
    known = ~np.isnan(expected(float))
    assert 0 < known.sum() < len(known)
    for found in (plain, ordinal):
        np.testing.assert_array_equal(np.isnan(found.labels), ~known[:, None].repeat(found.labels.shape[1], axis=1))
    np.testing.assert_array_equal(plain.labels[known].argmax(1), expected(float)[known])
    np.testing.assert_array_equal(ordinal.labels[known].sum(1), expected(float)[known])
    any_ill = read(text, **{**keys, "repeats": "any"}, positive="1,2").labels[:, 0]
    said = [max((float(grade > "0") for grade in of), default=np.nan) for of in grades.values()]
    np.testing.assert_array_equal(any_ill, said)


def test_labels_that_were_guessed_are_said_so(read, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    guessed = read("image,site,ill\na.png,x,1\nb.png,z,0\n", path="image")
    assert guessed.label_names == ("ill",)
    assert "no key says the labels" in guessed.notes[0]
    said = read("image,site,ill\na.png,x,1\nb.png,z,0\n", path="image", labels="ill")
    assert not any("no key says the labels" in note for note in said.notes)


def test_images_are_found_by_their_names(read, tmp_path):
    for name in ("part_1/ISIC_1.jpg", "part_2/ISIC_2.JPG", "left/1.png", "right/1.png"):
        path = tmp_path / "all" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    manifest = read("id,ill\nISIC_1,1\nother/isic_2.png,0\nx/left/1,1\n", path="id", images="all", valid="0", test="0")
    assert manifest.paths == ("all/part_1/ISIC_1.jpg", "all/part_2/ISIC_2.JPG", "all/left/1.png")
    assert not manifest.has_patients
    with pytest.raises(WsurgeryError, match="1 of 2 images are not there, first ISIC_3"):
        read("id,ill\nISIC_1,1\nISIC_3,0\n", path="id", images="all")
    with pytest.raises(WsurgeryError, match=r"1\.png is there twice, all/left/1\.png and all/right/1\.png"):
        read("id,ill\nISIC_1,1\n1.png,0\n", path="id", images="all")
    with pytest.raises(WsurgeryError, match=r"ISIC_1 and isic_1\.dcm are one image, all/part_1/ISIC_1\.jpg"):
        read("id,ill\nISIC_1,1\nisic_1.dcm,0\n", path="id", images="all")


@pytest.mark.parametrize("twin", ["p42/s1/1.png", "p42/s3/1.png"])
def test_an_image_of_another_folder_does_not_stand_for_one_that_is_missing(read, tmp_path, twin):
    for name in ("p42/s3/1.png", "p42/s1/1.png", "p50/s1/1.png"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    for before in ("", "/export/pacs/"):  # where the table was written, all folders may have had others above them
        text = f"path,patient,ill\n{before}{twin},p42,1\n{before}p50/s1/1.png,p50,0\n"
        there = (f"scans/{twin}", "scans/p50/s1/1.png")
        assert read(text, images="scans", valid="0", test="0").paths == there
        with pytest.raises(
            WsurgeryError, match=r"1 of 3 images are not there, first \S*p17/s3/1\.png \(there is scans/p42/s3/1"
        ):
            read(f"{text}{before}p17/s3/1.png,p17,0\n", images="scans", valid="0", test="0")


def test_one_path_written_in_two_ways_is_there_twice(read):
    for other in ("./im/0.png", "im//0.png", "im\\0.png"):
        with pytest.raises(WsurgeryError, match=r"line 3: path 'im/0\.png' is there twice"):
            read(f"path,patient,ill\nim/0.png,p1,1\n{other},p2,0\n")


def test_an_image_is_one_however_its_path_goes_there(read, tmp_path):
    """As train and test it is refused, with the line; with repeats= its rows are joined under the first spelling."""
    (tmp_path / "im").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "im" / "0.png")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for other in ("x/../im/0.png", f"{tmp_path}/im/0.png", f"{tmp_path}/x/../im/0.png", f"../{tmp_path.name}/im/0.png"):
        for first, second in (("im/0.png", other), (other, "im/0.png")):
            text = f"path,split,ill\n{first},train,1\n{second},test,0\n"
            for name in ("m.csv", "link/m.csv"):
                with pytest.raises(WsurgeryError, match=r"line 3: path '.*im/0\.png' is there twice, first in line 2"):
                    read(text, name)
            joined = read(text.replace(",test,", ",train,"), repeats="any")
            assert (joined.paths, joined.patients, joined.labels.tolist()) == ((first,), (first,), [[1]])
    apart = ("im/0.png", "../im/0.png", "im/../0.png", "0.png/x.png")  # are four
    assert read("path,ill\n" + "".join(f"{path},1\n" for path in apart)).paths == apart


def test_files_without_a_suffix_are_found_by_their_whole_names(read, tmp_path):
    for name in ("p1/IM0001", "p2/IM0001", "p2/1.2.840.7", "p3/7.png", "p3/7", "p3/7.txt"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    text = "id,ill\np1/IM0001,1\np2/im0001,0\n1.2.840.7,1\n7,0\n"
    found = read(text, path="id", images="scans", valid="0", test="0").paths
    assert found == ("scans/p1/IM0001", "scans/p2/IM0001", "scans/p2/1.2.840.7", "scans/p3/7.png")


def test_images_may_lie_beside_the_tables_folder(read, tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "pictures").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "pictures/1.png")
    text, name, place = "id,ill\n1,1\n", "tables/t.csv", (tmp_path / "pictures").as_posix()
    for images in (place, "../pictures", "../tables/../pictures/"):
        assert read(text, name, path="id", images=images, valid="0", test="0").paths == (f"{place}/1.png",)
    assert read(text, path="id", images=place, valid="0", test="0").paths == ("pictures/1.png",)
    with pytest.raises(UsageError, match=r"t\.csv: images=picture: there is no folder .*picture"):
        read(text, "t.csv", path="id", images="picture")


def test_parquet_with_images_and_lists_inside(tmp_path):
    table = pa.table(
        {
            "image": pa.array([b"x" * 10] * 2), "boxes": [[1], [2]], "path": ["a", "b"], "split": ["x", "y"], "ill": [0, 1],
        }
    )  # fmt: skip
    pa.parquet.write_table(table, tmp_path / "m.parquet")
    assert read_manifest(tmp_path / "m.parquet").label_names == ("ill",)


def test_the_same_rows_as_pythons_reader(read):
    """Fields with separators, quotes and line ends inside."""
    rng = np.random.default_rng(0)
    letters = [*'ab ,;"\n\t|']
    names = [f"{i}{''.join(rng.choice(letters, 5))}x" for i in range(300)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([["path", "split", "ill"], *([name, "x", "1"] for name in names)])
    assert read(text.getvalue()).paths == tuple(names)
    with pytest.raises(WsurgeryError) as error:
        read(text.getvalue() + "last,x,7\n")
    assert f"line {text.getvalue().count(chr(10)) + 1}:" in str(error.value)


def test_a_quote_that_is_not_closed_takes_no_rows_with_it(read):
    """Whatever follows: the row in which the quote stands is named, by the line in which it begins."""
    note = "path,split,note,ill\n{}b.png,test,clear,1\nc.png,test,{},0\n"
    for last in ("clear", '"as said"', '"2 cm'):  # none that closes it, one that seems to, one more
        for before, line in (("", 2), ('0.png,train,"two\nlines",1\n', 4)):
            text = note.format(f'{before}a.png,train,"15 cm mass,1\n', last)
            with pytest.raises(WsurgeryError, match=rf"m\.csv: line {line}: .*quote") as error:
                read(text, labels="ill")
            assert "\n" not in str(error.value)
    inside = read(note.format('a.png,train,15" mass,1\n0.png,train,"b ""q"" c",1\n', 'b "q" c'), labels="ill")
    assert inside.metadata["note"] == ('15" mass', 'b "q" c', "clear", 'b "q" c')


def test_a_table_that_is_not_there():
    with pytest.raises(UsageError, match=r"nowhere\.csv: there is no such file"):
        open_data("nowhere.csv?path=a")
    assert not Path("nowhere.csv").exists()
