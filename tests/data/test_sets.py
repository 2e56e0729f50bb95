"""Public sets: small trees after the layouts that docs/data.md names."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsurgery.data.sets import FIT, SETS
from wsurgery.data.sources import open_data
from wsurgery.errors import UsageError, WsurgeryError

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture
def tree(tmp_path):
    def tree(images, **tables):
        for image in images:
            path = tmp_path / image
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".dcm", ".dicom"):
                path.write_bytes(b"")
            else:
                Image.new("L", (8, 8)).save(path)
        return tmp_path

    return tree


def table(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def split_of(manifest):
    return dict(zip(manifest.paths, manifest.splits, strict=True))


def rows_of(manifest, column):
    return manifest.labels[:, manifest.label_names.index(column)].tolist()


def never_split(manifest):
    return len(set(zip(manifest.patients, manifest.splits, strict=True))) == len(set(manifest.patients))


@pytest.mark.parametrize("official", [True, False])
def test_nih_chest_xray14(tree, official):
    names = [f"{patient:08d}_{i:03d}.png" for patient in range(1, 21) for i in range(2)]
    root = tree([f"images_{1 + i // 20:03d}/images/{name}" for i, name in enumerate(names)])
    findings = ["Cardiomegaly|Pleural_Thickening", "No Finding", "Hernia", "Effusion|Edema|Mass"]
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    header += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
    lines = [
        f"{name},{findings[i % 4]},0,{1 + i // 2},058Y,M,PA,2682,2749,0.143,0.143,\n" for i, name in enumerate(names)
    ]
    table(root / "Data_Entry_2017.csv", header + "".join(lines))
    if official:
        table(root / "test_list.txt", "\n".join(names[-8:]) + "\n")
        table(root / "train_val_list.txt", "\n".join(names[:-8]))
    manifest = open_data(f"nih:{root}")
    assert (len(manifest), len(set(manifest.patients)), len(manifest.label_names)) == (40, 20, 14)
    assert manifest.labels.sum(1).tolist() == [2, 0, 1, 3] * 10
    assert rows_of(manifest, "pleural_thickening") == [1, 0, 0, 0] * 10
    assert manifest.metadata["view"] == ("PA",) * 40
    assert never_split(manifest)
    tested = {path.rpartition("/")[2] for path, split in split_of(manifest).items() if split == "test"}
    assert (tested == set(names[-8:])) == official
    assert open_data(f"nih:{root}?labels=hernia,mass").label_names == ("hernia", "mass")
    table(root / "Data_Entry_2017.csv", header + lines[0].replace("Cardio", "Kardio"))
    with pytest.raises(WsurgeryError, match=r"line 2: there is no finding 'Kardiomegaly'"):
        open_data(f"nih:{root}")


def test_mimic_cxr_jpg(tree):
    studies = [(10_000_000 + i // 2, 50_000_000 + i) for i in range(12)]
    images = {f"{study:x}-a-{view}": (subject, study, view) for subject, study in studies for view in ("PA", "LATERAL")}
    root = tree([f"files/p{str(p)[:2]}/p{p}/s{s}/{name}.jpg" for name, (p, s, _) in images.items()])
    header = "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
    header += (
        "Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices\n"
    )
    table(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz",
        header + "".join(f"{p},{s},1.0,-1.0,0.0{',' * 11}\n" for p, s in studies[:-1]),
    )
    split = {p: ["train", "validate", "test"][p % 3] for p, _ in studies}
    table(
        root / "mimic-cxr-2.0.0-split.csv.gz",
        "dicom_id,study_id,subject_id,split\n"
        + "".join(f"{n},{s},{p},{split[p]}\n" for n, (p, s, _) in images.items()),
    )
    table(
        root / "mimic-cxr-2.0.0-metadata.csv.gz",
        "dicom_id,subject_id,study_id,ViewPosition\n"
        + "".join(f"{n},{p},{s},{v}\n" for n, (p, s, v) in images.items()),
    )
    manifest = open_data(f"mimic:{root}")
    assert (len(manifest), len(set(manifest.patients)), len(manifest.label_names)) == (24, 6, 14)
    assert set(manifest.splits) == {"train", "valid", "test"}
    assert all(
        split[int(p)][:4] == s[:4] for p, s in zip(manifest.patients, manifest.splits, strict=True) if s != "valid"
    )
    np.testing.assert_array_equal(manifest.labels[0, :4], [1, np.nan, 0, 0])
    assert np.isnan(manifest.labels[-2:]).all()  # of a study that no labeler has read nothing is known
    assert manifest.notes == (
        "2 images are of studies without a row in mimic-cxr-2.0.0-chexpert.csv.gz: their labels are unknown",
    )
    frontal = open_data(f"mimic:{root}?views=frontal&uncertain=ones&blank=ignore")
    assert (len(frontal), set(frontal.metadata["view"])) == (12, {"PA"})
    np.testing.assert_array_equal(frontal.labels[0, :4], [1, 1, 0, np.nan])


def test_padchest(tree):
    labels = [
        "['normal']",
        "['laminar atelectasis', 'nodule']",
        "['pseudonodule']",
        "",
        "['multiple nodules', ' scoliosis']",
    ]
    root = tree([f"{i % 3}/{i}.png" for i in range(20)])
    lines = [f'{i},{i}.png,{i % 3},p{i // 2},{["PA", "L"][i % 2]},"{labels[i % 5]}"\n' for i in range(20)]
    table(
        root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
        ",ImageID,ImageDir,PatientID,Projection,Labels\n" + "".join(lines),
    )
    manifest = open_data(f"padchest:{root}")
    assert (len(manifest), len(set(manifest.patients))) == (20, 10)
    np.testing.assert_array_equal(rows_of(manifest, "nodule"), [0, 1, 0, np.nan, 1] * 4)
    np.testing.assert_array_equal(rows_of(manifest, "atelectasis"), [0, 1, 0, np.nan, 0] * 4)
    assert never_split(manifest)
    other = open_data(f"padchest:{root}?labels=scoliosis&views=lateral")
    assert (len(other), other.label_names) == (10, ("scoliosis",))
    assert other.metadata["view"] == ("L",) * 10


def test_vindr_cxr_has_three_readers(tree):
    root = tree([f"train/{i:03x}.dicom" for i in range(10)] + [f"test/{i:03x}f.dicom" for i in range(4)])
    header = "image_id,rad_id,Aortic enlargement,Other lesion,Lung tumor,Other diseases,No finding\n"
    votes = [(1, 0, 0), (1, 1, 0), (0, 0, 0)]
    lines = [f"{i:03x},R{r},{votes[i % 3][r]},0,0,0,1\n" for i in range(10) for r in range(3)]
    table(root / "annotations" / "image_labels_train.csv", header + "".join(lines))
    lines = [f"{i:03x}f,1,0,0,1,0\n" for i in range(4)]
    table(
        root / "annotations" / "image_labels_test.csv",
        header.replace("rad_id,", "").replace("diseases", "disease") + "".join(lines),
    )
    manifest = open_data(f"vindr:{root}?valid=0.2")
    assert (len(manifest), manifest.splits.count("test"), manifest.splits.count("valid")) == (14, 4, 2)
    assert rows_of(manifest, "aortic_enlargement") == [[0, 1, 0][i % 3] for i in range(10)] + [1] * 4
    assert rows_of(manifest, "other_diseases")[-4:] == [1] * 4
    assert not manifest.has_patients
    any_reader = open_data(f"vindr:{root}?readers=any")
    assert rows_of(any_reader, "aortic_enlargement")[:10] == [[1, 1, 0][i % 3] for i in range(10)]


def test_rsna_pneumonia_has_a_row_a_box(tree):
    names = [f"{i:04d}-aa-bb" for i in range(20)]
    root = tree([f"stage_2_train_images/{name}.dcm" for name in names])
    lines = [f"{name},1,2,3,4,1\n" * 2 if i % 2 else f"{name},,,,,0\n" for i, name in enumerate(names)]
    table(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target\n" + "".join(lines))
    classes = "".join(f"{name},{'Lung Opacity' if i % 2 else 'Normal'}\n" for i, name in enumerate(names))
    table(root / "stage_2_detailed_class_info.csv", "patientId,class\n" + classes)
    manifest = open_data(f"rsna:{root}")
    assert rows_of(manifest, "pneumonia") == [0, 1] * 10
    assert manifest.metadata["finding"] == ("Normal", "Lung Opacity") * 10
    assert not manifest.has_patients
    assert "tells the patients" in manifest.notes[0]
    mapping = [
        {"subset_img_id": name, "img_id": f"{i // 4:08d}_{i:03d}.png", "orig_labels": ["Mass"]}
        for i, name in enumerate(names)
    ]
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(mapping))
    known = open_data(f"rsna:{root}")
    assert len(set(known.patients)) == 5
    assert never_split(known)
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text("[{}]")
    with pytest.raises(WsurgeryError, match=r"mappings_2018\.json"):
        open_data(f"rsna:{root}")


def test_ham10000_keeps_lesions_together(tree):
    diagnoses = ["nv", "mel", "bcc", "bkl"]
    root = tree([f"HAM10000_images_part_{1 + i // 10}/ISIC_{i:07d}.jpg" for i in range(20)])
    lines = [f"HAM_{i // 2:07d},ISIC_{i:07d},{diagnoses[i // 2 % 4]},histo,80.0,male,scalp\n" for i in range(20)]
    table(root / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization\n" + "".join(lines))
    manifest = open_data(f"ham10000:{root}")
    assert manifest.label_names == ("bcc", "bkl", "mel", "nv")
    assert manifest.rendering.fit == "crop"
    assert manifest.labels.sum(1).tolist() == [1] * 20
    assert len(set(manifest.patients)) == 10
    assert never_split(manifest)
    for name in ("HAM10000_metadata", "HAM10000_metadata.tab"):  # as Dataverse gives it out
        (root / "HAM10000_metadata.csv").rename(root / name)
        assert open_data(f"ham10000:{root}").digest == manifest.digest
        (root / name).rename(root / "HAM10000_metadata.csv")
    malignant = open_data(f"ham10000:{root}?positive=mel,bcc")
    assert rows_of(malignant, "mel_or_bcc") == [0, 0, 1, 1, 1, 1, 0, 0] * 2 + [0, 0, 1, 1]
    (root / "HAM10000_images_part_2" / "ISIC_0000019.jpg").unlink()
    with pytest.raises(WsurgeryError, match="1 of 20 images are not there, first ISIC_0000019"):
        open_data(f"ham10000:{root}")
    part = open_data(f"ham10000:{root}?missing=skip")
    assert (len(part), part.notes) == (19, ("1 of 20 images are not there",))


ISIC = {
    "2018": {
        "ISIC2018_Task3_Training_GroundTruth.csv": ("image,MEL,NV", "{},{}.0,{}.0"),
        "ISIC2018_Task3_Training_LesionGroupings.csv": ("image,lesion_id,diagnosis_confirm_type", "{},{group},histopathology"),
    },
    "2019": {
        "ISIC_2019_Training_GroundTruth.csv": ("image,MEL,NV,UNK", "{},{}.0,{}.0,0.0"),
        "ISIC_2019_Training_Metadata.csv": ("image,age_approx,anatom_site_general,lesion_id,sex", "{},55.0,,{group},female"),
    },
    "2020": {
        "ISIC_2020_Training_GroundTruth_v2.csv": (
            "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target",
            "{},{group},IL_1,male,45.0,head/neck,unknown,benign,{}",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("year", ISIC)
def test_isic(tree, year):
    root = tree([f"train/ISIC_{i:07d}.jpg" for i in range(20)])
    for name, (header, line) in ISIC[year].items():
        lines = [line.format(f"ISIC_{i:07d}", i % 2, 1 - i % 2, group=f"IL_{i // 2}" * (i > 1)) for i in range(20)]
        table(root / name, "\n".join([header, *lines]))
    manifest = open_data(f"isic:{root}")
    assert manifest.label_names == (("melanoma",) if year == "2020" else ("mel", "nv"))
    assert manifest.labels[:, 0].tolist() == [0, 1] * 10
    assert len(set(manifest.patients)) == 11  # of two images the group is not known
    assert never_split(manifest)
    table(root / "train.csv", "image_name,patient_id,target\n")
    if year != "2020":
        with pytest.raises(UsageError, match="year=none is not one of 2018, 2019, 2020"):
            open_data(f"isic:{root}")
        assert open_data(f"isic:{root}?year={year}").digest == manifest.digest


ODIR = [
    ("normal fundus", "moderate non proliferative retinopathy，laser spot"),
    ("cataract", "normal fundus，lens dust"),
    ("hypertensive retinopathy", "drusen，mild nonproliferative retinopathy"),
    ("low image quality", "dry age-related macular degeneration，glaucoma"),
]
HEADER = "ID,Patient Age,Patient Sex,Left-Fundus,Right-Fundus,Left-Diagnostic Keywords,Right-Diagnostic Keywords,N,D,G,C,A,H,M,O"


@pytest.mark.parametrize("kind", ["full_df.csv", "ODIR-5K_Training_Annotations(Updated)_V2.csv"])
def test_odir_labels_are_each_eyes(tree, kind):
    root = tree([f"Training Images/{i}_{side}.jpg" for i in range(4) for side in ("left", "right")])
    lines = [f"{i},60,Male,{i}_left.jpg,{i}_right.jpg,{','.join(ODIR[i])},0,1,0,0,0,0,0,0" for i in range(4)]
    if kind == "full_df.csv":  # a row an eye, with both eyes in it; the worst images are left out
        lines = [
            f"{line},x,['N'],\"[1, 0]\",{i}_{side}.jpg" for i, line in enumerate(lines) for side in ("right", "left")
        ]
        table(root / kind, "\n".join([HEADER + ",filepath,labels,target,filename", *lines[:-1]]))
    else:
        table(root / kind, "\n".join([HEADER, *lines]))
    manifest = open_data(f"odir:{root}?valid=0.25&test=0.25")
    labels = dict(zip((path.partition("/")[2] for path in manifest.paths), manifest.labels, strict=True))
    names = ("normal", "diabetes", "glaucoma", "cataract", "amd", "hypertension", "myopia", "other")
    assert manifest.label_names == names
    found = {name: {names[i] for i in np.flatnonzero(row)} for name, row in labels.items()}
    expected = {
        "0_left.jpg": {"normal"}, "0_right.jpg": {"diabetes", "other"}, "1_left.jpg": {"cataract"}, "1_right.jpg": {"normal"},
        "2_left.jpg": {"hypertension"}, "2_right.jpg": {"diabetes", "other"}, "3_left.jpg": set(),
        "3_right.jpg": {"amd", "glaucoma"},
    }  # fmt: skip
    if kind == "full_df.csv":
        del expected["3_left.jpg"]
    assert found == expected
    assert len(set(manifest.patients)) == 4
    assert never_split(manifest)


def test_a_table_that_lists_no_image_is_one_line(tree):
    root = tree(["Training Images/0_left.jpg"])
    for lines in ([HEADER], [HEADER + ",filename", "0,60,Male,0_left.jpg,,normal fundus,,1,0,0,0,0,0,0,0,other.jpg"]):
        table(root / "full_df.csv", "\n".join(lines))
        with pytest.raises(WsurgeryError, match=r"^odir:[^\n]*lists no image[^\n]*$"):
            open_data(f"odir:{root}")


def test_one_label_against_another_leaves_the_others_out(tree):
    root = tree([f"Training Images/{i}_{side}.jpg" for i in range(4) for side in ("left", "right")])
    lines = [f"{i},60,Male,{i}_left.jpg,{i}_right.jpg,{','.join(ODIR[i])},0,1,0,0,0,0,0,0" for i in range(4)]
    table(root / "ODIR-5K_Training_Annotations.csv", "\n".join([HEADER, *lines]))
    every = open_data(f"odir:{root}")
    chosen = open_data(f"odir:{root}?labels=diabetes&against=normal,cataract")
    known = {
        path: dict(zip(every.label_names, row, strict=True))
        for path, row in zip(every.paths, every.labels, strict=True)
    }
    counted = {path: row for path, row in known.items() if row["diabetes"] or row["normal"] or row["cataract"]}
    assert 0 < len(counted) < len(known)
    assert dict(zip(chosen.paths, chosen.labels[:, 0], strict=True)) == {
        path: row["diabetes"] for path, row in counted.items()
    }
    assert chosen.label_names == ("diabetes",)
    for query, words in (
        ("against=normal", "against= needs labels="),
        ("labels=diabetes&against=x", "against=x is not one of normal"),
        ("labels=myopia&against=myopia", "no image has myopia or myopia"),
    ):
        with pytest.raises(UsageError, match=words):
            open_data(f"odir:{root}?{query}")


def test_idrid_has_names_twice(tree):
    where = "B. Disease Grading/1. Original Images"
    root = tree(
        [f"{where}/a. Training Set/IDRiD_{i:03d}.jpg" for i in range(1, 11)]
        + [f"{where}/b. Testing Set/IDRiD_{i:03d}.jpg" for i in range(1, 4)]
    )
    tables = {"a. IDRiD_Disease Grading_Training Labels.csv": 10, "b. IDRiD_Disease Grading_Testing Labels.csv": 3}
    for name, n in tables.items():
        lines = [f"IDRiD_{i:03d},{i % 5},{i % 3},,\n" for i in range(1, n + 1)]
        header = "Image name,Retinopathy grade,Risk of macular edema ,,\n"
        table(root / "B. Disease Grading" / "2. Groundtruths" / name, header + "".join(lines) + ",,,,\n")
    manifest = open_data(f"idrid:{root}?valid=0.2")
    assert (len(manifest), manifest.splits.count("test"), manifest.splits.count("valid")) == (13, 3, 2)
    assert manifest.where("test").paths[0] == f"{where}/b. Testing Set/IDRiD_001.jpg"
    assert manifest.labels.argmax(1).tolist() == [i % 5 for i in range(1, 11)] + [1, 2, 3]
    assert manifest.metadata["edema_risk"][:3] == ("1", "2", "0")
    ordinal = open_data(f"idrid:{root}?ordinal=true")
    assert ordinal.labels.sum(1).tolist()[:4] == [1, 2, 3, 4]
    assert ordinal.notes == ("grades, from the lowest: none < mild < moderate < severe < proliferative",)


def test_malaria_has_patients_in_both_classes(tree):
    names = [
        ("C33P1thinF", "Parasitized"),
        ("C33P1thinF", "Uninfected"),
        ("C12NThinF", "Uninfected"),
        ("C1_thinF", "Uninfected"),
    ]
    names += [
        ("ParasitizedC33P1ThinF", "Parasitized"),
        ("C51AP12thinF", "Parasitized"),
        ("C134P95ReThinF", "Parasitized"),
    ]
    root = tree([f"cell_images/{c}/{name}_IMG_2015_cell_{i}.png" for i, (name, c) in enumerate(names)])
    (root / "cell_images" / "Parasitized" / "Thumbs.db").write_bytes(b"")
    manifest = open_data(f"malaria:{root}?valid=0.2&test=0.2")
    assert set(manifest.patients) == {"C33P1", "C12", "C1", "C51AP12", "C134P95"}
    assert rows_of(manifest, "parasitized") == [float("Parasitized/" in path) for path in manifest.paths]
    assert never_split(manifest)
    Image.new("L", (8, 8)).save(root / "cell_images" / "Parasitized" / "other.png")
    with pytest.raises(WsurgeryError, match=r"Parasitized/other\.png does not begin with a patient"):
        open_data(f"malaria:{root}")


def test_chexpert_as_it_is_unpacked(tree):
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,Atelectasis,Cardiomegaly,Consolidation,Edema,Pleural Effusion\n"
    paths = [f"patient{i:05d}/study{1 + i % 2}/view1_frontal.jpg" for i in range(1, 31)]
    places = {path: f"CheXpert-v1.0 batch {2 + i // 10} (train {1 + i // 10})/{path}" for i, path in enumerate(paths)}
    first = "CheXpert-v1.0 batch 1 (validate & csv)"
    shown = "patient64541/study1/view1_frontal.jpg"
    root = tree([*places.values(), f"{first}/valid/{shown}"])
    rows = "".join(f"CheXpert-v1.0/train/{path},Male,60,Frontal,AP,1.0,,0.0,,-1.0\n" for path in paths)
    table(root / first / "train.csv", header + rows)
    table(root / first / "valid.csv", header + f"CheXpert-v1.0/valid/{shown},Male,60,Frontal,AP,1.0,0.0,0.0,0.0,0.0\n")
    manifest = open_data(f"chexpert:{root}")
    assert set(manifest.paths) == {*places.values(), f"{first}/valid/{shown}"}
    assert manifest.where("test").patients == ("patient64541",)
    assert all((root / path).is_file() for path in manifest.paths)
    (root / first / "train.csv").rename(root / "train.csv")  # where many put it
    assert open_data(f"chexpert:{root}").digest == manifest.digest


@pytest.mark.parametrize("scheme", SETS)
def test_an_empty_folder_and_the_docs(tmp_path, scheme):
    with pytest.raises(UsageError, match=f"{scheme}:.* holds no |isic: year=none"):
        open_data(f"{scheme}:{tmp_path}")
    assert f"`{scheme}:DIR`" in DOCS


def test_chest_films_and_cells_keep_their_sides(tree):
    root = tree(
        [f"cell_images/{name}/C{i}P1ThinF_IMG_{i}.png" for i in range(9) for name in ("Parasitized", "Uninfected")]
    )
    (root / "cell_images" / "Parasitized" / "Thumbs.db").write_bytes(b"")
    manifest = open_data(f"malaria:{root}")
    assert manifest.rendering.fit == FIT["malaria"] == FIT["nih"] == "stretch"
    assert manifest.notes == ("1 files are no images by their names and left out: 1 .db",)
    assert open_data(f"malaria:{root}?fit=crop").rendering.fit == "crop"
    row = next(line for line in DOCS.splitlines() if line.startswith("| `fit=stretch`"))
    assert {*re.findall(r"`(\w+)`", row)} == {*FIT, "chexpert"}
