"""`eyepacs:DIR`, `aptos:DIR`, `messidor2:DIR`: fundus photographs with a grade from 0 to 4 in a table.

Tables and images are found anywhere below DIR, an image by its name without suffix, as the tables' suffixes are often
not those of the files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wsurgery.data.adapters import SPLITS, choose, existing_folder, hold_out, is_image, list_files, read_keys, read_rows
from wsurgery.data.grades import GRADES, grade_labels
from wsurgery.data.manifest import Manifest
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
    table = _find(files, ("messidor-2.csv",))
    pairs = [] if table is None else [[_stem(x) for x in row.values() if x] for row in read_rows(folder / table)]
    return {image: pair[0] for pair in pairs for image in pair[:2]}


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
    files = list_files(folder)
    found: dict[str, list[str]] = {}
    for file in files:
        if is_image(file) and PurePosixPath(file).is_relative_to(keys["images"]):
            found.setdefault(_stem(file), []).append(file)

    images: list[str] = []
    splits: list[str] = []
    grades: list[int | None] = []
    for split, names in layout.tables.items():
        table = _find(files, names)
        if table is None and split == "train":
            raise UsageError(f"{scheme}:{printable(argument)} holds no {names[0]}")
        rows = {} if table is None else _read_grades(folder / table, layout, needed=split == "train")
        if split != "train" and not any(image in found for image in rows):
            continue
        missing = [image for image in rows if image not in found]
        if missing:
            archives = any(".zip" in file or ".tar" in file for file in files)
            raise WsurgeryError(
                f"{printable(str(folder / str(table)))}: {len(missing)} of {len(rows)} images are not there, first "
                f"{printable(missing[0])}{': unpack the archives first' if archives else ''}"
            )
        images += rows
        splits += [split] * len(rows)
        grades += rows.values()
    for image in images:
        if len(found[image]) > 1:
            raise WsurgeryError(
                f"{scheme}: {printable(image)} is there twice, {printable(' and '.join(found[image][:2]))}: add "
                "images=FOLDER"
            )
    paths = tuple(found[image][0] for image in images)
    known = layout.patient(folder, files, images)
    patients = [known.get(image, path) for image, path in zip(images, paths, strict=True)]
    ordinal = choose(scheme, "ordinal", keys["ordinal"], ("true", "false")) == "true"
    labels, label_names = grade_labels(grades, GRADES, ordinal=ordinal)
    return Manifest(
        folder, paths, tuple(patients), tuple(hold_out(scheme, splits, patients, keys, given)), labels, label_names
    )


def _read_grades(table: Path, layout: Layout, *, needed: bool) -> dict[str, int | None]:
    """Image → grade, None where the table has none."""
    grades: dict[str, int | None] = {}
    for line, row in enumerate(read_rows(table), 2):
        image, grade = (next((name for name in names if name in row), None) for names in (layout.image, layout.grade))
        if grade is None and not needed:
            return {}
        if image is None or grade is None:
            wanted = layout.image if image is None else layout.grade
            raise WsurgeryError(f"{printable(str(table))}: there is no column {' or '.join(wanted)}")
        value, name = row[grade].removesuffix(".0"), _stem(row[image])
        if value not in ("", *map(str, range(len(GRADES)))):
            raise WsurgeryError(f"{printable(str(table))}: line {line}: the grade is {printable(value)!r}, not 0 to 4")
        if name in grades:
            raise WsurgeryError(f"{printable(str(table))}: line {line}: {printable(row[image])} is there twice")
        grades[name] = int(value) if value else None
    if not grades:
        raise WsurgeryError(f"{printable(str(table))}: there are no rows")
    return grades


def _find(files: list[str], names: tuple[str, ...]) -> str | None:
    """The file of one of these names, the first name before the others, that is in the fewest folders."""
    for name in names:
        matches = [file for file in files if PurePosixPath(file).name == name]
        if matches:
            return min(matches, key=lambda file: file.count("/"))
    return None


def _stem(path: str) -> str:
    name = PurePosixPath(path.replace("\\", "/")).name
    return (name.rpartition(".")[0] if is_image(name) else name).lower()
