"""`eyepacs:DIR`, `aptos:DIR`, `messidor2:DIR`: fundus photographs with a grade from 0 to 4 in a table.

Tables and images are found anywhere below DIR, an image by its name without suffix, as the tables' suffixes are often
not those of the files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from wsurgery.data.adapters import SPLITS, Images, choose, existing_folder, find_file, hold_out, read_keys, stem
from wsurgery.data.grades import GRADES, grade_labels, order_of
from wsurgery.data.labels import plain_number
from wsurgery.data.manifest import Manifest
from wsurgery.data.table import read_table
from wsurgery.errors import UsageError, WsurgeryError, printable

KEYS = {"ordinal": "false", "images": "", **SPLITS}


@dataclass(frozen=True)
class Layout:
    """How a data set comes.

    Attributes:
        tables: split → names that its table may have.
        image: names that the column of images may have, in lower case.
        grade: names that the column of grades may have. A table of another split than train that has none is left out.
        patient: image → patient, from the folder, its files, and the images' names.
    """

    tables: Mapping[str, tuple[str, ...]]
    image: tuple[str, ...]
    grade: tuple[str, ...]
    patient: Callable[[Path, list[str], list[str]], Mapping[str, str]]


def _side_of_a_patient(folder: Path, files: list[str], images: list[str]) -> Mapping[str, str]:
    found = {image: re.fullmatch(r"(\d+)_(?:left|right)", image) for image in images}
    for image, match in found.items():
        if match is None:
            raise WsurgeryError(f"eyepacs: {printable(image)} is not a name like 10_left, patient 10's left eye")
    return {image: match[1] for image, match in found.items() if match}


def _pairs(folder: Path, files: list[str], images: list[str]) -> Mapping[str, str]:
    """The pairs of eyes in messidor-2.csv, named after the left one."""
    file = find_file(files, ("messidor-2.csv",))
    columns = [] if file is None else [*read_table(folder / file).columns.values()][:2]
    pairs = [[stem(path) for path in pair if path] for pair in zip(*columns, strict=True)]
    return {image: pair[0] for pair in pairs for image in pair}


LAYOUTS = {
    "eyepacs": Layout(
        {
            "train": ("trainLabels.csv", "trainLabels_cropped.csv"),
            "test": ("retinopathy_solution.csv", "testLabels.csv"),
        },
        ("image",),
        ("level",),
        _side_of_a_patient,
    ),
    "aptos": Layout(
        {"train": ("train.csv", "train_1.csv"), "valid": ("valid.csv",), "test": ("test.csv",)},
        ("id_code",),
        ("diagnosis",),
        lambda folder, files, images: {},
    ),
    "messidor2": Layout(
        {"train": ("messidor_data.csv", "messidor2.csv", "labels.csv")},
        ("image_id", "image", "id_code"),
        ("adjudicated_dr_grade", "dr_grade", "grade", "diagnosis", "level"),
        _pairs,
    ),
}


def graded(scheme: str, argument: str, given: Mapping[str, str]) -> Manifest:
    """List the images of a graded data set.

    Splits that it has no table for are held out by patient: `valid` and `test` are their parts. A table none of whose
    images is there is left out, but for train's.

    Raises:
        UsageError: no such folder or table, or a key or value that is not there.
        WsurgeryError: a table that is broken, an image that is not there or is there twice.
    """
    keys = read_keys(scheme, given, KEYS)
    layout = LAYOUTS[scheme]
    folder = existing_folder(scheme, argument)
    listed = Images(scheme, folder, keys["images"])
    there = {stem(path) for path in listed.paths}
    images: list[str] = []
    paths: list[str] = []
    splits: list[str] = []
    grades: list[int | None] = []
    for split, names in layout.tables.items():
        table = find_file(listed.files, names)
        if table is None and split == "train":
            raise UsageError(f"{scheme}:{printable(argument)} holds no {names[0]}")
        rows = {} if table is None else _read_grades(folder / table, layout, needed=split == "train")
        if split != "train" and not any(image in there for image in rows):
            continue
        paths += [str(path) for path in listed.find([*rows], folder / str(table))]
        images += rows
        splits += [split] * len(rows)
        grades += rows.values()
    known = layout.patient(folder, listed.files, images)
    patients = [known.get(image, path) for image, path in zip(images, paths, strict=True)]
    ordinal = choose(scheme, "ordinal", keys["ordinal"], ("true", "false")) == "true"
    labels, label_names = grade_labels(grades, GRADES, ordinal=ordinal)
    splits = hold_out(scheme, splits, patients, keys, given)
    notes = (order_of(GRADES),) if ordinal else ()
    return Manifest(folder, tuple(paths), tuple(patients), tuple(splits), labels, label_names, notes=notes)


def _read_grades(file: Path, layout: Layout, *, needed: bool) -> dict[str, int | None]:
    """Image → grade, None where the table has none."""
    table = read_table(file)
    image, grade = table.find(*layout.image), table.find(*layout.grade)
    if grade is None and not needed:
        return {}
    if image is None or grade is None:
        wanted = layout.image if image is None else layout.grade
        raise table.wrong(f"there is no column {' or '.join(wanted)}{table.described}")
    grades: dict[str, int | None] = {}
    for row, (path, text) in enumerate(zip(table[image], table[grade], strict=True)):
        value, name = plain_number(text), stem(path)
        if value not in ("", *map(str, range(len(GRADES)))):
            raise table.wrong(f"the grade is {value!r}, not 0 to 4", row)
        if name in grades:
            raise table.wrong(f"{path} is there twice", row)
        grades[name] = int(value) if value else None
    if not grades:
        raise table.wrong("there are no rows")
    return grades
