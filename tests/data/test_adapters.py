import csv
import os

import numpy as np
import pytest
from PIL import Image

from wsurgery.data.adapters import list_files
from wsurgery.data.dataset import load_dataset
from wsurgery.data.grades import GRADES
from wsurgery.data.manifest import read_manifest
from wsurgery.data.sources import make_manifest, open_data, portable_name
from wsurgery.errors import UsageError, WsurgeryError

CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
# name in the table → name of the label
CHEXPERT = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Pleural Effusion": "pleural_effusion",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSURGERY_CACHE", str(tmp_path / "cache"))


def picture(path, value=0, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size), value, np.uint8)).save(path)


def chexpert_rows(first, patients, rng, part):
    """Rows with every oddity of the real table: four states of a label, many images a patient, views AP, PA, lateral with
    nothing, and odd ones; an unknown sex, an age of 0."""
    rows = []
    for patient in range(first, first + patients):
        for image in range(92 if patient == first else rng.integers(1, 4)):
            view, projection = [("Frontal", "AP"), ("Frontal", "PA"), ("Lateral", ""), ("Frontal", "LL")][image % 4]
            row = dict.fromkeys(CHEXPERT_HEADER.split(","), "")
            row |= {"Sex": "Unknown" if patient == first else "Male", "Age": "0", "Frontal/Lateral": view}
            row["Path"] = f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study1/view{image}_{view.lower()}.jpg"
            row["AP/PA"] = projection
            states = ["1.0", "0.0"] if part == "valid" else ["1.0", "0.0", "-1.0", ""]
            rows.append(row | {name: str(rng.choice(states)) for name in CHEXPERT} | {"Pneumonia": "-1.0"})
    return rows


@pytest.fixture
def chexpert(tmp_path):
    """A tree whose folder has been renamed, and the rows of its tables."""
    rng = np.random.default_rng(0)
    tables = {"train": chexpert_rows(1, 40, rng, "train"), "valid": chexpert_rows(64541, 10, rng, "valid")}
    folder = tmp_path / "renamed"
    for part, rows in tables.items():
        folder.mkdir(exist_ok=True)
        with (folder / f"{part}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return folder, tables


def counts(manifest, label):
    column = manifest.labels[:, manifest.label_names.index(label)]
    return {1.0: (column == 1).sum(), 0.0: (column == 0).sum(), None: np.isnan(column).sum()}


POLICY = {"ones": 1.0, "zeros": 0.0, "ignore": None, "zero": 0.0}


@pytest.mark.parametrize(
    ("query", "uncertain", "blank", "edema"),
    [
        ("", "ignore", "zero", "ignore"),
        ("?uncertain=ones", "ones", "zero", "ones"),
        ("?uncertain=zeros&blank=ignore", "zeros", "ignore", "zeros"),
        ("?uncertain=edema=ones,zeros", "zeros", "zero", "ones"),
        ("?uncertain=Edema=ones", "ignore", "zero", "ones"),
    ],
)
def test_chexpert_counts_each_state_where_the_policy_puts_it(chexpert, query, uncertain, blank, edema):
    folder, tables = chexpert
    manifest = open_data(f"chexpert:{folder}{query}")
    rows = tables["train"] + tables["valid"]
    assert len(manifest) == len(rows) > 130
    assert manifest.rendering.fit == "stretch"  # as the paper's 320 x 320
    for name, label in CHEXPERT.items():
        expected = {1.0: 0, 0.0: 0, None: 0}
        meaning = {
            "1.0": 1.0, "0.0": 0.0, "": POLICY[blank], "-1.0": POLICY[edema if label == "edema" else uncertain],
        }  # fmt: skip
        for row in rows:
            expected[meaning[row[name]]] += 1
        assert counts(manifest, label) == expected


def test_chexpert_splits_by_patient_and_tests_on_the_radiologists_labels(chexpert):
    folder, _ = chexpert
    manifest = open_data(f"chexpert:{folder}?valid=0.25")
    of = {split: set(manifest.where(split).patients) for split in ("train", "valid", "test")}
    assert of["test"] == {f"patient{i}" for i in range(64541, 64551)}
    assert (len(of["train"]), len(of["valid"])) == (30, 10)
    assert not of["train"] & of["valid"]
    assert manifest.patients.count("patient00001") == 92
    assert manifest.paths[0] == "train/patient00001/study1/view0_frontal.jpg"
    held_out = open_data(f"chexpert:{folder}?valid=0.25&test=0.5")
    assert set(held_out.patients) == {f"patient{i:05d}" for i in range(1, 41)}
    assert len(set(held_out.where("test").patients)) == 20
    folds = [set(open_data(f"chexpert:{folder}?fold={k}/4").where("test").patients) for k in (1, 2, 3, 4)]
    assert [len(fold) for fold in folds] == [10] * 4
    assert set.union(*folds) == set(held_out.patients)


def test_chexpert_views(chexpert):
    folder, tables = chexpert
    rows = tables["train"] + tables["valid"]
    for views in ("frontal", "lateral"):
        found = len(open_data(f"chexpert:{folder}?views={views}"))
        assert found == sum(row["Frontal/Lateral"].lower() == views for row in rows) > 0


def test_chexpert_does_not_depend_on_the_order_of_rows(chexpert):
    folder, _ = chexpert
    before = open_data(f"chexpert:{folder}")
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    after = open_data(f"chexpert:{folder}")
    assert before.paths != after.paths
    assert dict(zip(before.paths, before.splits, strict=True)) == dict(zip(after.paths, after.splits, strict=True))
    assert set(before.where("train").subset(20).paths) == set(after.where("train").subset(20).paths)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?uncertain=maybe", "uncertain=maybe is not one of ones, zeros, ignore"),
        ("?uncertain=fracture=ones", "uncertain=fracture is not one of atelectasis"),
        ("?blank=ones", "blank=ones is not one of zero, ignore"),
        ("?views=ap", "views=ap is not one of all, frontal, lateral"),
        ("?valid=2", "valid=2 is not a number from 0 to 1"),
        ("?valid=0.6&test=0.6", "more than all patients"),
        ("?view=all", "no key 'view': there are views, uncertain, blank, valid, test, seed"),
    ],
)
def test_chexpert_keys_that_cannot_be(chexpert, query, message):
    with pytest.raises(UsageError, match=message):
        open_data(f"chexpert:{chexpert[0]}{query}")


def test_chexpert_errors_name_the_line(chexpert):
    folder, _ = chexpert
    text = (folder / "train.csv").read_text()
    (folder / "train.csv").write_text(text.replace("/patient00002/", "/nobody/", 1))
    with pytest.raises(WsurgeryError, match=r"train\.csv: line 94: CheXpert-v1.0-small/train/nobody/"):
        open_data(f"chexpert:{folder}")
    (folder / "train.csv").write_text(text.replace("Edema", "Oedema"))
    with pytest.raises(WsurgeryError, match="no column 'edema'"):
        open_data(f"chexpert:{folder}")
    (folder / "train.csv").unlink()
    with pytest.raises(UsageError, match=r"no train\.csv"):
        open_data(f"chexpert:{folder}")


def test_eyepacs_has_two_eyes_a_patient(tmp_path):
    rows = [(f"{patient}_{side}", (patient + len(side)) % 5) for patient in range(10, 30) for side in ("left", "right")]
    # As the repackaged tables come: with an index; as archives made on a Mac come: with ._ files.
    lines = [f"{i},{image},{grade}" for i, (image, grade) in enumerate(rows)]
    (tmp_path / "trainLabels_cropped.csv").write_text("\n".join(["Unnamed: 0,image,level", *lines]))
    for image, _ in rows:
        picture(tmp_path / "train" / "train" / f"{image}.jpeg")
        (tmp_path / "train" / "train" / f"._{image}.jpeg").write_bytes(b"")
    manifest = open_data(f"eyepacs:{tmp_path}")
    assert set(manifest.patients) == {str(patient) for patient in range(10, 30)}
    assert {split: len(manifest.where(split)) for split in ("train", "valid", "test")} == {
        "train": 28, "valid": 6, "test": 6,
    }  # fmt: skip
    assert manifest.label_names == GRADES
    assert manifest.labels.argmax(1).tolist() == [grade for _, grade in rows]
    assert (manifest.labels.sum(1) == 1).all()
    ordinal = open_data(f"eyepacs:{tmp_path}?ordinal=true")
    assert ordinal.label_names == tuple(f"at_least_{grade}" for grade in GRADES[1:])
    assert ordinal.labels.sum(1).tolist() == [grade for _, grade in rows]
    assert (np.diff(ordinal.labels, axis=1) <= 0).all()

    # Kaggle's labels of the test images come in when the images are there.
    (tmp_path / "retinopathy_solution.csv").write_text("image,level,Usage\n1_left,3,Private\n1_right,0,Public\n")
    assert len(open_data(f"eyepacs:{tmp_path}")) == 40
    for side in ("left", "right"):
        picture(tmp_path / "test" / f"1_{side}.jpeg")
    own = open_data(f"eyepacs:{tmp_path}")
    assert own.where("test").paths == ("test/1_left.jpeg", "test/1_right.jpeg")
    assert {split: len(own.where(split)) for split in ("train", "valid")} == {"train": 34, "valid": 6}
    with pytest.raises(UsageError, match="has a test split of its own"):
        open_data(f"eyepacs:{tmp_path}?test=0.2")

    picture(tmp_path / "small" / "12_left.png")
    with pytest.raises(WsurgeryError, match=r"12_left is there twice, small/12_left\.png and .*: add images=FOLDER"):
        open_data(f"eyepacs:{tmp_path}")
    (tmp_path / "retinopathy_solution.csv").unlink()
    assert len(open_data(f"eyepacs:{tmp_path}?images=train")) == 40


@pytest.mark.parametrize(
    ("table", "files", "message"),
    [
        (
            "image,level\n10_left,1\n10_right,0\n",
            ["train.zip.001"],
            "2 of 2 images are not there, first 10_left: unpack",
        ),
        ("image,level\n10_left,5\n", ["10_left.jpeg"], "line 2: the grade is '5', not 0 to 4"),
        ("image,level\n10_left,1\n10_left,1\n", ["10_left.jpeg"], "line 3: 10_left is there twice"),
        ("image,level\n10_middle,1\n", ["10_middle.jpeg"], "10_middle is not a name like 10_left"),
        ("image,grade\n10_left,1\n", ["10_left.jpeg"], "there is no column level"),
        ("image,level\n", ["10_left.jpeg"], "there are no rows"),
    ],
)
def test_eyepacs_that_is_broken(tmp_path, table, files, message):
    (tmp_path / "trainLabels.csv").write_text(table)
    for name in files:
        picture(tmp_path / name) if name.endswith("jpeg") else (tmp_path / name).write_bytes(b"")
    with pytest.raises(WsurgeryError, match=message) as error:
        open_data(f"eyepacs:{tmp_path}")
    assert "\n" not in str(error.value)


def test_aptos_has_no_patients(tmp_path):
    (tmp_path / "train.csv").write_text("id_code,diagnosis\nab,2\ncd,0\nef,4\ngh,1\n")
    (tmp_path / "test.csv").write_text("id_code\nzz\n")  # Kaggle's: without a grade
    for name in ("ab", "cd", "ef", "gh"):
        picture(tmp_path / "train_images" / f"{name}.png")
    picture(tmp_path / "test_images" / "zz.png")
    manifest = open_data(f"aptos:{tmp_path}?valid=0.25&test=0.25")
    assert manifest.patients == manifest.paths == tuple(f"train_images/{name}.png" for name in ("ab", "cd", "ef", "gh"))
    assert sorted(manifest.splits) == ["test", "train", "train", "valid"]
    (tmp_path / "test.csv").write_text("id_code,diagnosis\nzz,3\n")  # the repackaged one's
    assert open_data(f"aptos:{tmp_path}").where("test").labels.argmax(1).tolist() == [3]


def test_messidor2_pairs_its_eyes_and_leaves_what_cannot_be_graded_unknown(tmp_path):
    (tmp_path / "messidor_data.csv").write_text(
        "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
        "20051020_43808_0100_PP.png,0.0,0,1\n20051020_43832_0100_PP.png,3.0,1,1\nIM000001.jpg,,,0\nIM000002.jpg,1,0,1\n"
    )
    for name in ("20051020_43808_0100_PP.png", "20051020_43832_0100_PP.png", "IM000001.JPG", "IM000002.JPG"):
        (tmp_path / "IMAGES").mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "IMAGES" / name)
    spec = f"messidor2:{tmp_path}?valid=0&test=1"
    alone = open_data(spec)
    assert alone.patients == alone.paths
    assert set(alone.splits) == {"test"}
    assert np.isnan(alone.labels[2]).all()
    assert alone.labels[[0, 1, 3]].argmax(1).tolist() == [0, 3, 1]
    (tmp_path / "messidor-2.csv").write_text(
        "left;right\n20051020_43808_0100_PP.png;20051020_43832_0100_PP.png\nIM000001.JPG;IM000002.JPG\n"
    )
    paired = open_data(spec)
    assert paired.patients[0] == paired.patients[1] != paired.patients[2] == paired.patients[3]


def medmnist_file(path, shape, labels):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = labels(rng, n)
    np.savez_compressed(path, **arrays)
    return arrays


@pytest.mark.parametrize("shape", [(28, 28, 3), (28, 28)])
def test_medmnist_images_come_out_of_the_archive(tmp_path, shape):
    arrays = medmnist_file(tmp_path / "retinamnist.npz", shape, lambda rng, n: rng.integers(0, 5, (n, 1)))
    spec = f"medmnist:{tmp_path / 'retinamnist.npz'}"
    for split, theirs in (("train", "train"), ("valid", "val"), ("test", "test")):
        dataset = load_dataset(spec, split=split)
        images = arrays[f"{theirs}_images"]
        expected = images if images.ndim == 4 else np.stack([images] * 3, axis=3)
        np.testing.assert_array_equal(dataset.images, expected)
        assert dataset.label_names == GRADES
        np.testing.assert_array_equal(dataset.labels.argmax(1), arrays[f"{theirs}_labels"][:, 0])
    assert open_data(f"{spec}?ordinal=true").labels.shape == (13, 4)
    subset = load_dataset(spec, split="train", subset=2)
    rows = [int(path.rpartition("/")[2]) for path in subset.paths]
    np.testing.assert_array_equal(subset.images[..., 0], arrays["train_images"].reshape(6, 28, 28, -1)[rows][..., 0])
    # And through a manifest in another folder.
    (tmp_path / "m").mkdir()
    make_manifest(spec, tmp_path / "m" / "m.csv")
    again = load_dataset(str(tmp_path / "m" / "m.csv"), split="test")
    np.testing.assert_array_equal(again.images, load_dataset(spec, split="test").images)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (lambda n: np.zeros((2 * n, 1), np.int64), "and there are 6 images"),
        (lambda n: np.linspace(0, 1, n).reshape(n, 1), "not all whole numbers"),
        (lambda n: np.full((n, 1), np.nan), "not all whole numbers"),
    ],
)
def test_medmnist_labels_that_do_not_fit_are_refused(labels, words, tmp_path):
    medmnist_file(tmp_path / "x.npz", (8, 8), lambda rng, n: labels(n))
    with pytest.raises(WsurgeryError, match=words):
        open_data(f"medmnist:{tmp_path / 'x.npz'}")


def test_medmnist_of_many_labels(tmp_path):
    arrays = medmnist_file(tmp_path / "chestmnist_64.npz", (8, 8), lambda rng, n: rng.integers(0, 2, (n, 14)))
    manifest = open_data(f"medmnist:{tmp_path / 'chestmnist_64.npz'}")
    np.testing.assert_array_equal(manifest.where("valid").labels, arrays["val_labels"])
    assert manifest.label_names[:2] == ("atelectasis", "cardiomegaly")
    assert len(manifest.label_names) == 14
    with pytest.raises(UsageError, match="14 labels an image, no grades"):
        open_data(f"medmnist:{tmp_path / 'chestmnist_64.npz'}?ordinal=true")


def test_a_broken_archive_is_named(tmp_path):
    file = tmp_path / "retinamnist.npz"
    medmnist_file(file, (8, 8, 8), lambda rng, n: np.zeros((n, 1)))
    with pytest.raises(
        WsurgeryError, match=r"retinamnist\.npz is not an archive of MedMNIST's: .* not uint8 \(n, h, w\)"
    ):
        load_dataset(f"medmnist:{file}", split="test")
    medmnist_file(file, (8, 8), lambda rng, n: np.zeros((n, 1)))
    data = bytearray(file.read_bytes())
    data[200:260] = bytes(60)
    file.write_bytes(data)
    with pytest.raises(WsurgeryError, match=r"retinamnist\.npz"):
        load_dataset(f"medmnist:{file}", split="train")
    file.write_bytes(b"PK")
    with pytest.raises(WsurgeryError, match=r"retinamnist\.npz is not an archive of MedMNIST's"):
        open_data(f"medmnist:{file}")


def test_folders_of_classes(tmp_path):
    for i in range(20):
        picture(tmp_path / ("cat" if i % 2 else "dog") / "deep" / f"p{i // 4}_{i}.png")
    (tmp_path / "README.txt").write_text("")
    manifest = open_data(f"folder:{tmp_path}?patient=(p\\d+)_")
    assert manifest.label_names == ("cat", "dog")
    assert [path.partition("/")[0] for path in manifest.paths] == [
        manifest.label_names[i] for i in manifest.labels.argmax(1)
    ]
    assert set(manifest.patients) == {f"p{i}" for i in range(5)}
    assert len(set(zip(manifest.patients, manifest.splits, strict=True))) == 5
    alone = open_data(f"folder:{tmp_path}")
    assert alone.patients == alone.paths
    assert {split: alone.splits.count(split) for split in ("train", "valid", "test")} == {
        "train": 14, "valid": 3, "test": 3,
    }  # fmt: skip
    with pytest.raises(WsurgeryError, match="finds no patient in"):
        open_data(f"folder:{tmp_path}?patient=x(.)")


def test_folders_of_splits(tmp_path):
    for split in ("train", "val"):
        for grade in GRADES:
            for i in range(4):
                picture(tmp_path / split / grade / f"{i}.png")
    manifest = open_data(f"folder:{tmp_path}?test=0.25&ordinal=true")
    assert {split: manifest.splits.count(split) for split in ("train", "valid", "test")} == {
        "train": 15, "valid": 20, "test": 5,
    }  # fmt: skip
    steps = manifest.labels.sum(1).astype(int)
    assert [path.split("/")[1] for path in manifest.paths] == [GRADES[step] for step in steps]
    with pytest.raises(WsurgeryError, match=r"patient 0 is in both train and valid"):
        open_data(f"folder:{tmp_path}?patient=\\d")
    picture(tmp_path / "train" / "lost.png")
    with pytest.raises(WsurgeryError, match=r"train/lost\.png is in no class"):
        open_data(f"folder:{tmp_path}")


def test_brain_tumours_training_and_testing_are_splits(tmp_path):
    for split in ("Training", "Testing"):
        for name in ("glioma", "none"):
            picture(tmp_path / split / name / "0.png")
    assert open_data(f"folder:{tmp_path}").label_names == ("glioma", "none")
    assert open_data(f"folder:{tmp_path}?valid=0").splits == ("test", "test", "train", "train")


GRADED = {
    ("No_DR", "Mild", "Moderate", "Severe", "Proliferate_DR"): "words of Kaggle's folders",
    tuple(map(str, range(1, 13))): "numbers",
    ("none", "mild", "moderate", "severe"): "words",
    ("normal", "Mild NPDR", "Moderate NPDR", "Severe NPDR", "PDR"): "with NPDR",
    ("0_healthy", "1_other", "2_worse", "10_worst"): "numbers before words",
    ("KL0", "KL2", "KL10"): "numbers behind a word",
    GRADES: "ours",
}


@pytest.mark.parametrize("grades", GRADED, ids=GRADED.values())
def test_grades_have_the_order_that_people_mean(tmp_path, grades):
    for grade in grades:
        for i in range(2):
            picture(tmp_path / grade / f"{i}.png")
    manifest = open_data(f"folder:{tmp_path}?ordinal=true")
    assert manifest.label_names == tuple(f"at_least_{grade}" for grade in grades[1:])
    assert manifest.labels.sum(1).tolist() == [grades.index(path.split("/")[0]) for path in manifest.paths]
    assert manifest.notes == (f"grades, from the lowest: {' < '.join(grades)}",)
    backwards = open_data(f"folder:{tmp_path}?ordinal=true&order={','.join(grades[::-1])}")
    assert (backwards.labels.sum(1) + manifest.labels.sum(1) == len(grades) - 1).all()
    assert set(open_data(f"folder:{tmp_path}").label_names) == set(grades)


@pytest.mark.parametrize(
    ("classes", "query", "message"),
    [
        (("bad", "good", "worse"), "", "which of bad, good, worse is the lowest grade"),
        (("1", "2", "mild"), "", "lowest grade"),
        (("Severe", "severe NPDR"), "", "lowest grade"),
        (("1", "01"), "", "lowest grade"),
        (
            ("bad", "good", "worse"),
            "&order=good,bad",
            "order=good,bad is not all classes, each once: there are bad, good",
        ),
        (("bad", "good"), "&order=good,bad,bad", "is not all classes"),
        (("bad", "good"), "&order=good,bad&positive=bad", "leave one out"),
    ],
)
def test_grades_without_an_order_are_refused(tmp_path, classes, query, message):
    for name in classes:
        picture(tmp_path / name / "0.png")
    with pytest.raises(UsageError, match=message):
        open_data(f"folder:{tmp_path}?ordinal=true{query}")


def test_classes_become_one_label(tmp_path):
    for name in ("well", "ill", "very ill"):
        for i in range(3):
            picture(tmp_path / name / f"{i}.png")
    manifest = open_data(f"folder:{tmp_path}?positive=ill,very ill")
    assert manifest.label_names == ("ill_or_very ill",)
    assert manifest.labels[:, 0].tolist() == [float(not path.startswith("well")) for path in manifest.paths]
    assert open_data(f"folder:{tmp_path}?positive=ill").labels.sum() == 3
    for query, message in (("Ill", "positive=Ill is not one of ill"), ("ill,very ill,well", "is all classes")):
        with pytest.raises(UsageError, match=message):
            open_data(f"folder:{tmp_path}?positive={query}")


def test_commas_in_the_names_of_classes(tmp_path):
    for name in ("mild, early", "severe", "none"):
        for i in range(3):
            picture(tmp_path / name / f"{i}.png")
    ill = open_data(f"folder:{tmp_path}?positive=severe,mild%2C early")
    assert ill.label_names == ("severe_or_mild, early",)
    assert ill.labels.sum() == 6
    grades = open_data(f"folder:{tmp_path}?ordinal=true&order=none,mild%2C early,severe")
    assert grades.notes == ("grades, from the lowest: none < mild, early < severe",)


def test_trees_of_patients(tmp_path):
    for patient in range(10):
        for name in ("0", "1"):
            for i in range(2):
                picture(tmp_path / "images" / f"p{patient}" / name / f"{i}.png")
    spec = f"folder:{tmp_path / 'images'}"
    with pytest.raises(
        UsageError, match=r"are 0, 1 the classes, in a folder for each of 10 patients\? Say tree=patient/class/im"
    ):
        open_data(spec)
    for tree in ("patient/class/image", "patient/class"):
        manifest = open_data(f"{spec}?tree={tree}")
        assert manifest.label_names == ("0", "1")
        assert manifest.patients == tuple(path.split("/")[0] for path in manifest.paths)
        assert len(set(zip(manifest.patients, manifest.splits, strict=True))) == 10
        assert manifest.labels.argmax(1).tolist() == [int(path.split("/")[1]) for path in manifest.paths]
    deep = open_data(f"folder:{tmp_path}?tree=*/patient/class")
    np.testing.assert_array_equal(deep.labels, manifest.labels)
    assert len(open_data(f"{spec}?tree=class/*").label_names) == 10
    for tree in ("patient", "class/class", "patient/klass"):
        with pytest.raises(UsageError, match="should be like patient/class/image"):
            open_data(f"{spec}?tree={tree}")
    picture(tmp_path / "images" / "p0" / "lost.png")
    with pytest.raises(WsurgeryError, match=r"p0/lost\.png is in no class"):
        open_data(f"{spec}?tree=patient/class")


def test_a_manifest_reads_back_as_what_was_listed_wherever_it_lies(tmp_path):
    for i in range(40):
        picture(tmp_path / "data" / str(i % 2) / f"{i}.png", i)
    listed = open_data(f"folder:{tmp_path / 'data'}")
    for file in (tmp_path / "m.csv", tmp_path / "elsewhere" / "m.parquet"):
        file.parent.mkdir(exist_ok=True)
        make_manifest(f"folder:{tmp_path / 'data'}", file)
        back = read_manifest(file)
        assert (back.patients, back.splits) == (listed.patients, listed.splits)
        np.testing.assert_array_equal(back.labels, listed.labels)
        for path, image in zip(listed.paths, back.paths, strict=True):
            assert (back.root / image).samefile(listed.root / path)
        chosen = [Image.open(m.root / m.paths[0]).getpixel((0, 0)) for m in (listed.subset(5), back.subset(5))]
        assert chosen[0] == chosen[1]
    assert read_manifest(tmp_path / "m.csv").paths[0] == "data/0/0.png"  # may be moved along with the images
    with pytest.raises(UsageError, match="--force"):
        make_manifest(f"folder:{tmp_path / 'data'}", tmp_path / "m.csv")


@pytest.mark.parametrize("scheme", ["chexpert", "eyepacs", "aptos", "messidor2", "medmnist", "folder"])
def test_data_that_is_not_there(tmp_path, scheme):
    with pytest.raises(UsageError, match=f"{scheme}:.*nowhere: there is no such"):
        open_data(f"{scheme}:{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("chexpert:/data/CheXpert?uncertain=ones", "chexpert:CheXpert?uncertain=ones"),
        ("folder:images", "folder:images"),
        ("synthetic:fundus?n=8", "synthetic:fundus?n=8"),
    ],
)
def test_a_record_names_data_without_its_place(spec, name):
    assert portable_name(spec) == name


@pytest.mark.parametrize("kind", ["objects", "text", "too many classes", "huge", "no images", "no pixels", "too few"])
def test_medmnist_labels_that_cannot_be_are_refused(tmp_path, kind):
    images = np.zeros((0 if kind == "no images" else 6, 0 if kind == "no pixels" else 8, 8), np.uint8)
    labels = {
        "objects": np.array([{}] * 6), "text": np.array(["a"] * 6), "too many classes": np.full((6, 1), 2**62),
        "huge": np.zeros((6, 10**7), np.uint8), "no images": np.zeros((0, 1)), "too few": np.zeros((5, 1)),
    }  # fmt: skip
    parts = {f"{split}_images": images for split in ("train", "val", "test")}
    parts |= {f"{split}_labels": labels.get(kind, np.zeros((6, 1))) for split in ("train", "val", "test")}
    np.savez(tmp_path / "a.npz", **parts)
    with pytest.raises(WsurgeryError, match=r"a\.npz[ :][^\n]+$"):
        open_data(f"medmnist:{tmp_path / 'a.npz'}")


def test_links_are_followed_to_an_end(tmp_path, monkeypatch):
    for i in range(4):
        picture(tmp_path / "set" / ("cat" if i % 2 else "dog") / f"{i}.png")
    picture(tmp_path / "elsewhere" / "4.png")
    (tmp_path / "set" / "cow").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list_files(tmp_path / "set") == ["cat/1.png", "cat/3.png", "cow/4.png", "dog/0.png", "dog/2.png"]
    (tmp_path / "set" / "dog" / "self").symlink_to(".", target_is_directory=True)
    with pytest.raises(WsurgeryError, match="a link too many"):
        list_files(tmp_path / "set")
    monkeypatch.setattr("wsurgery.data.adapters.MAX_LINKS", 1000)
    for i in range(8):
        (tmp_path / "tree" / str(i)).mkdir(parents=True)
        for name in range(20):
            target = tmp_path / "tree" / str(i + 1)
            (tmp_path / "tree" / str(i) / str(name)).symlink_to(target, target_is_directory=True)
    with pytest.raises(WsurgeryError, match="a link too many"):
        list_files(tmp_path / "tree" / "0")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (b"\xff\xff", "utf-8"),
        (b"a" * 20_000_000, "characters or more"),
        (b"id_code,diagnosis\n" + b"a" * 20_000_000, "characters or more"),
        (b"id_code," * 100_000, "100,001 columns"),
        (b'id_code,diagnosis\n"' + b"a" * 200_000, "field larger"),
        (b"id_code,diagnosis\n\0,1\n", "images are not there|contains NUL"),  # in Python 3.10
        (None, "is not a regular file"),
    ],
)
def test_a_damaged_table_is_one_line(tmp_path, table, words):
    if table is None:
        os.mkfifo(tmp_path / "train.csv")
    else:
        (tmp_path / "train.csv").write_bytes(table)
    with pytest.raises(WsurgeryError, match=rf"train\.csv[^\n]*({words})[^\n]*$"):
        open_data(f"aptos:{tmp_path}")
