"""Public sets of images where they lie, each a few lines over the table reader. docs/data.md says whose layout is followed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from wsurgery.data.adapters import (
    SPLITS,
    Images,
    choose,
    count_others,
    existing_folder,
    find_file,
    hold_out,
    names_in,
    read_keys,
    split_name,
)
from wsurgery.data.grades import GRADES, grade_labels, order_of
from wsurgery.data.labels import class_labels, finding_labels, merge_repeats, plain_number, read_labels
from wsurgery.data.manifest import Manifest
from wsurgery.data.rendering import Rendering
from wsurgery.data.table import Table, read_table
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.untrusted import parse_json, read_regular, short_lines, text_of

KEYS = {"labels": "", "against": "", "images": "", "missing": "error", **SPLITS}
_MAX_JSON = 1 << 27


@dataclass(frozen=True)
class Rows:
    """What a set's tables say.

    Attributes:
        file: the table, for messages.
        images: (n,) the image, as the table names it.
        labels: (n, k): 0, 1, or NaN for unknown.
        names: (k,).
        patients: (n,) what must not be split: a patient, or a lesion; None or empty where it is not known.
        splits: (n,); None where the set has none.
        metadata: name → (n,).
        repeats: how the rows of one image are joined: `any`, `majority`, or nothing where each has one.
        notes: what is to be said.
    """

    file: Path
    images: Sequence[str]
    labels: NDArray[np.float32]
    names: Sequence[str]
    patients: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    metadata: Mapping[str, Sequence[str]] = field(default_factory=dict)
    repeats: str = ""
    notes: tuple[str, ...] = ()


class Place:
    """A set's folder: its tables and images, wherever they are in it."""

    def __init__(self, scheme: str, argument: str, below: str) -> None:
        self.scheme, self.argument = scheme, argument
        self.folder = existing_folder(scheme, argument)
        self.images = Images(scheme, self.folder, below)

    def file(self, *names: str) -> Path | None:
        """The first of some files that is there."""
        found = find_file(self.images.files, names)
        return None if found is None else self.folder / found

    def find(self, *names: str) -> Table | None:
        """The first of some tables that is there, gzipped or not."""
        file = self.file(*chain.from_iterable((name, f"{name}.gz") for name in names))
        return None if file is None else read_table(file)

    def table(self, *names: str) -> Table:
        """The first of some tables that is there.

        Raises:
            UsageError: none is.
        """
        table = self.find(*names)
        if table is None:
            raise UsageError(f"{self.scheme}:{printable(self.argument)} holds no {' or '.join(names)}")
        return table


def listed(scheme: str, argument: str, given: Mapping[str, str]) -> Manifest:
    """List the images of a set.

    `labels` chooses among its labels, and with `against` only images count that have one of them, or one of those that
    `against` names: `labels=diabetes&against=normal` is diabetes against normal. `images=FOLDER` says which where an image
    is there twice, and `missing=skip` leaves out what is not there. Splits that the set does not have are held out by
    patient: `valid` and `test` are their parts, or `fold`.

    Raises:
        UsageError: no such folder or table, or a key or value that is not there.
        WsurgeryError: a table that is broken, an image that is not there or is there twice.
    """
    read, own = SETS[scheme]
    keys = read_keys(scheme, given, {**own, **KEYS})
    place = Place(scheme, argument, keys["images"])
    rows = read(place, keys)
    rendering = Rendering(fit=FIT.get(scheme, "crop"))
    names = [*rows.names]
    chosen = _choose_labels(scheme, "labels", keys["labels"], names)
    images, labels, order = rows.images, rows.labels, [*range(len(rows.images))]
    joined: tuple[str, ...] = ()
    if rows.repeats:
        order, labels, joined = merge_repeats(images, labels, rows.repeats)
    if keys["against"]:
        if not keys["labels"]:
            raise UsageError(f"{scheme}: against= needs labels=, what is against it")
        others = _choose_labels(scheme, "against", keys["against"], names)
        counted = np.flatnonzero((labels[:, chosen + others] == 1).any(1))
        order, labels = [order[row] for row in counted], labels[counted]
        if not order:
            raise UsageError(f"{scheme}: no image has {keys['labels']} or {keys['against']}")
    skip = choose(scheme, "missing", keys["missing"], ("error", "skip")) == "skip"
    found = place.images.find([images[row] for row in order], rows.file, skip=skip)
    there = [i for i, path in enumerate(found) if path is not None]
    paths = tuple(str(found[i]) for i in there)
    order, labels = [order[i] for i in there], labels[there]
    patients = ["" if rows.patients is None else rows.patients[row] for row in order]
    patients = [patient or path for patient, path in zip(patients, paths, strict=True)]
    splits = ["train" if rows.splits is None else split_name(rows.splits[row]) for row in order]
    splits = hold_out(scheme, splits, patients, keys, given)
    labels, names = labels[:, chosen], [names[i] for i in chosen]
    metadata = {name: tuple(values[row] for row in order) for name, values in rows.metadata.items()}
    left_out = (f"{len(found) - len(paths)} of {len(found)} images are not there",) if len(paths) < len(found) else ()
    return Manifest(
        place.folder,
        paths,
        tuple(patients),
        tuple(splits),
        labels,
        tuple(names),
        metadata,
        rows.notes + joined + left_out,
        rendering,
    )


def _choose_labels(scheme: str, key: str, text: str, names: Sequence[str]) -> list[int]:
    return [names.index(choose(scheme, key, name, names)) for name in names_in(text) or names]


def _beside(table: Table, **names: str) -> dict[str, Sequence[str]]:
    """Some columns for the metadata, under our names, where they are there."""
    return {ours: table[theirs] for ours, theirs in names.items() if table.find(theirs)}


def _of_views(place: Place, table: Table, column: str, chosen: str, views: Mapping[str, Sequence[str]]) -> Table:
    choose(place.scheme, "views", chosen, ("all", *views))
    if chosen == "all":
        return table
    return table.take([row for row, view in enumerate(table[column]) if view in views[chosen]])


def _lower(names: Sequence[str]) -> list[str]:
    return [re.sub(r"\W+", "_", name.strip().lower()) for name in names]


# Chest radiographs

NIH = (
    "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
    "consolidation", "edema", "emphysema", "fibrosis", "pleural_thickening", "hernia",
)  # fmt: skip
CHEXPERT = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
# Those of NIH's and CheXpert's labels that PadChest's radiologists have words for; another is asked for by labels=.
PADCHEST = (
    "atelectasis", "cardiomegaly", "consolidation", "emphysema", "fracture", "hernia", "infiltrates", "mass", "nodule",
    "pleural effusion", "pleural thickening", "pneumonia", "pneumothorax", "pulmonary edema", "pulmonary fibrosis",
)  # fmt: skip


def _nih(place: Place, keys: Mapping[str, str]) -> Rows:
    table = place.table("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
    images = table["Image Index"]
    held_out = place.file("test_list.txt")
    splits = None
    if held_out is not None:
        with text_of(held_out, "utf-8-sig") as stream:
            test = {line.strip() for line in short_lines(stream)}
        splits = ["test" if image in test else "train" for image in images]
    labels = finding_labels(table["Finding Labels"], {name: name for name in NIH}, strict=table)
    beside = _beside(table, age="Patient Age", sex="Patient Gender", sex_="Patient Sex", view="View Position")
    return Rows(table.file, images, labels, NIH, table["Patient ID"], splits, beside)


def _mimic(place: Place, keys: Mapping[str, str]) -> Rows:
    labeler = choose("mimic", "labeler", keys["labeler"], ("chexpert", "negbio"))
    labelled = place.table(f"mimic-cxr-2.0.0-{labeler}.csv")
    table = place.table("mimic-cxr-2.0.0-split.csv").join(labelled, "study_id")
    table = table.join(place.table("mimic-cxr-2.0.0-metadata.csv"), "dicom_id")
    views = {"frontal": ("AP", "PA"), "lateral": ("LATERAL", "LL")}
    table = _of_views(place, table, "ViewPosition", keys["views"], views)
    labels = read_labels(table, CHEXPERT, uncertain=keys["uncertain"], blank=keys["blank"], scheme="mimic")
    studies = set(labelled["study_id"])  # a report that no labeler has read mentions nothing, and denies nothing
    unread = [row for row, study in enumerate(table["study_id"]) if study not in studies]
    labels[unread] = np.nan
    said = f"{len(unread):,} images are of studies without a row in {labelled.file.name}: their labels are unknown"
    beside = _beside(table, study="study_id", view="ViewPosition")
    return Rows(
        table.file,
        table["dicom_id"],
        labels,
        _lower(CHEXPERT),
        table["subject_id"],
        table["split"],
        beside,
        notes=(said,) if unread else (),
    )


def _padchest(place: Place, keys: Mapping[str, str]) -> Rows:
    table = place.table("PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv")
    views = {"frontal": ("PA", "AP", "AP_horizontal"), "lateral": ("L",)}
    table = _of_views(place, table, "Projection", keys["views"], views)
    terms = [term.strip().lower().replace("_", " ") for term in names_in(keys["labels"]) if term] or PADCHEST
    # A finding is of a label that is among its words: laminar atelectasis is an atelectasis.
    patterns = {term: rf"(.* )?{re.escape(term)}s?( .*)?" for term in terms}
    labels = finding_labels(table["Labels"], patterns)
    names = names_in(keys["labels"]) or _lower(PADCHEST)
    beside = _beside(table, birth="PatientBirth", sex="PatientSex_DICOM", view="Projection", study="StudyID")
    return Rows(table.file, table["ImageID"], labels, names, table["PatientID"], None, beside)


def _vindr(place: Place, keys: Mapping[str, str]) -> Rows:
    # The last label but two has another name in the test table.
    tables = {split: place.find(f"image_labels_{split}.csv") for split in ("train", "test")}
    train = place.table("image_labels_train.csv")
    names = [name for name in train.columns if name not in ("image_id", "rad_id")]
    images: list[str] = []
    splits: list[str] = []
    labels = []
    for split, table in tables.items():
        if table is not None:
            theirs = [table.find(name, name.removesuffix("s"), f"{name}s") or name for name in names]
            labels.append(read_labels(table, theirs, uncertain="ignore", blank="ignore", scheme="vindr"))
            images += table["image_id"]
            splits += [split] * len(table)
    readers = choose("vindr", "readers", keys["readers"], ("majority", "any"))
    return Rows(train.file, images, np.concatenate(labels), _lower(names), None, splits, repeats=readers)


class _Mapped(TypedDict):
    img_id: str
    subset_img_id: str


def _rsna(place: Place, keys: Mapping[str, str]) -> Rows:
    table = place.table("stage_2_train_labels.csv")
    if (classes := place.find("stage_2_detailed_class_info.csv")) is not None:
        table = table.join(classes, "patientId")
    labels = read_labels(table, ["Target"], uncertain="ignore", blank="ignore", scheme="rsna")
    patients: list[str] | None = None
    notes: tuple[str, ...] = ()
    mapping = place.file("pneumonia-challenge-dataset-mappings_2018.json")
    if mapping is not None:
        # The name of the NIH's image begins with its patient.
        known = {
            row["subset_img_id"]: row["img_id"].partition("_")[0]
            for row in parse_json(read_regular(mapping, _MAX_JSON), list[_Mapped], mapping.name)
        }
        patients = [known.get(image, "") for image in table["patientId"]]
    else:
        notes = (
            "patientId is the image's: RSNA's mapping to the NIH's images, in the same folder, tells the patients",
        )
    beside = _beside(table, finding="class")
    return Rows(table.file, table["patientId"], labels, ["pneumonia"], patients, None, beside, "any", notes)


# Skin


def _ham10000(place: Place, keys: Mapping[str, str]) -> Rows:
    table = place.table("HAM10000_metadata.csv", "HAM10000_metadata", "HAM10000_metadata.tab", "HAM10000_metadata.txt")
    labels, names, _ = class_labels(table["dx"], positive=keys["positive"], scheme="ham10000")
    beside = _beside(table, age="age", sex="sex", site="localization", confirmed_by="dx_type")
    return Rows(table.file, table["image_id"], labels, names, table["lesion_id"], None, beside)


def _isic(place: Place, keys: Mapping[str, str]) -> Rows:
    years = {
        "2018": ("ISIC2018_Task3_Training_GroundTruth.csv",),
        "2019": ("ISIC_2019_Training_GroundTruth.csv",),
        "2020": ("ISIC_2020_Training_GroundTruth_v2.csv", "ISIC_2020_Training_GroundTruth.csv", "train.csv"),
    }
    there = [year for year, names in years.items() if place.file(*names)]
    year = choose("isic", "year", keys["year"] or (there[0] if len(there) == 1 else "none"), [*years])
    table = place.table(*years[year])
    if year == "2020":
        labels = read_labels(table, ["target"], uncertain="ignore", blank="ignore", scheme="isic")
        beside = _beside(
            table, age="age_approx", sex="sex", site="anatom_site_general_challenge", diagnosis="diagnosis"
        )
        return Rows(table.file, table["image_name"], labels, ["melanoma"], table["patient_id"], None, beside)
    names = [name for name in table.columns if name != "image"]
    labels = read_labels(table, names, uncertain="ignore", blank="ignore", scheme="isic")
    groups = {"2018": "ISIC2018_Task3_Training_LesionGroupings.csv", "2019": "ISIC_2019_Training_Metadata.csv"}
    table = table.join(place.table(groups[year]), "image")
    used = [i for i, column in enumerate(labels.T) if names[i] != "UNK" or column.any()]  # no training image is UNK
    beside = _beside(
        table, age="age_approx", sex="sex", site="anatom_site_general", confirmed_by="diagnosis_confirm_type"
    )
    return Rows(
        table.file, table["image"], labels[:, used], _lower([names[i] for i in used]), table["lesion_id"], None, beside
    )


# Eyes

# ODIR's labels are the patient's; what each eye has stands in its keywords.
ODIR = {
    "normal": "normal fundus",
    "diabetes": r".*(proliferative|diabetic) retinopathy.*",
    "glaucoma": r".*glaucoma.*",
    "cataract": r".*cataract.*",
    "amd": r".*age-related macular degeneration.*",
    "hypertension": r".*hypertensive retinopathy.*",
    "myopia": r".*(pathological myopia|myopic).*",
}
_REMARKS = (
    "|lens dust|low image quality|image offset|no fundus image|anterior segment image"
    "|optic disk photographically invisible"
)
ODIR["other"] = rf"(?!({'|'.join([*ODIR.values(), _REMARKS])})$).*"


def _odir(place: Place, keys: Mapping[str, str]) -> Rows:
    tables = [place.find("full_df.csv"), place.find("ODIR-5K_Training_Annotations*.csv"), place.find("per_eye.csv")]
    known: dict[str, tuple[str, ...]] = {}  # image → patient, keywords, age, sex
    chosen: set[str] = set()
    eyes = [("Left-Fundus", "Left-Diagnostic Keywords"), ("Right-Fundus", "Right-Diagnostic Keywords")]
    eyes += [("Fundus", "Diagnostic Keywords"), ("filename", "keywords")]
    found = [table for table in tables if table is not None]
    for table in found:
        patient = table[table.find("ID", "patient_id") or "ID"]
        age, sex = (table[table.find(f"Patient {name}", name) or name] for name in ("Age", "Sex"))
        for image, keywords in eyes:
            if table.find(image) and table.find(keywords):
                columns = zip(table[image], patient, table[keywords], age, sex, strict=True)
                known |= {row[0]: row[1:] for row in columns if row[0]}
        chosen |= {*table["filename"]} if table.find("filename") else {*known}
    if not found:
        place.table("full_df.csv", "ODIR-5K_Training_Annotations*.csv")
    images = [image for image in known if image in chosen]
    patients, words, ages, sexes = ([known[image][i] for image in images] for i in range(4))
    labels = finding_labels(words, ODIR)
    return Rows(found[0].file, images, labels, [*ODIR], patients, None, {"age": ages, "sex": sexes, "keywords": words})


def _idrid(place: Place, keys: Mapping[str, str]) -> Rows:
    tables = {
        "train": place.table("a. IDRiD_Disease Grading_Training Labels.csv"),
        "test": place.find("b. IDRiD_Disease Grading_Testing Labels.csv"),
    }
    folders = {"train": "a. Training Set", "test": "b. Testing Set"}
    ordinal = choose("idrid", "ordinal", keys["ordinal"], ("true", "false")) == "true"
    images: list[str] = []
    splits: list[str] = []
    grades: list[int | None] = []
    edema: list[str] = []
    for split, table in tables.items():
        if table is None:
            continue
        for row, text in enumerate(table["Retinopathy grade"]):
            if plain_number(text) not in ("", *map(str, range(len(GRADES)))):
                raise table.wrong(f"the grade is {text!r}, not 0 to 4", row)
            grades.append(int(plain_number(text)) if text else None)
        images += [f"{folders[split]}/{name}" for name in table["Image name"]]  # both begin with IDRiD_001
        splits += [split] * len(table)
        edema += table["Risk of macular edema"]
    labels, names = grade_labels(grades, GRADES, ordinal=ordinal)
    notes = (order_of(GRADES),) if ordinal else ()
    file = tables["train"].file if tables["train"] else place.folder
    return Rows(file, images, labels, names, None, splits, {"edema_risk": edema}, notes=notes)


# Blood


def _malaria(place: Place, keys: Mapping[str, str]) -> Rows:
    images = [
        path for path in place.images.paths if PurePosixPath(path).parent.name.lower() in ("parasitized", "uninfected")
    ]
    if not images:
        raise UsageError(f"malaria:{printable(place.argument)} holds no images in folders Parasitized and Uninfected")
    # C33P1thinF_IMG_…, C12NThinF_IMG_…, ParasitizedC100P61ThinF_IMG_…
    found = [re.match(r"(?:Parasitized)?(C\d+[AB]?(?:P\d+)?)", PurePosixPath(path).name) for path in images]
    if None in found:
        raise WsurgeryError(
            f"malaria: {printable(images[found.index(None)])} does not begin with a patient, such as C100P61"
        )
    classes = [PurePosixPath(path).parent.name.lower() for path in images]
    labels, names, _ = class_labels(classes, positive="parasitized", scheme="malaria")
    patients = [match[1] for match in found if match]
    return Rows(place.folder, images, labels, names, patients, notes=count_others(place.images.files))


# Where the papers of a set scale all of an image to a square: docs/data.md names them.
FIT = dict.fromkeys(("nih", "mimic", "padchest", "vindr", "rsna", "malaria"), "stretch")
SETS: dict[str, tuple[Callable[[Place, Mapping[str, str]], Rows], Mapping[str, str]]] = {
    "nih": (_nih, {}),
    "mimic": (_mimic, {"views": "all", "uncertain": "ignore", "blank": "zero", "labeler": "chexpert"}),
    "padchest": (_padchest, {"views": "all"}),
    "vindr": (_vindr, {"readers": "majority"}),
    "rsna": (_rsna, {}),
    "ham10000": (_ham10000, {"positive": ""}),
    "isic": (_isic, {"year": ""}),
    "odir": (_odir, {}),
    "idrid": (_idrid, {"ordinal": "false"}),
    "malaria": (_malaria, {}),
}
