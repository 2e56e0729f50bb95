"""`folder:DIR`: images in one folder a class, or in the folders train, valid and test with a folder a class in each."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from wsurgery.data.adapters import SPLITS, choose, existing_folder, hold_out, is_image, list_files, read_keys
from wsurgery.data.grades import GRADES, grade_labels
from wsurgery.data.manifest import FIXED, Manifest
from wsurgery.errors import UsageError, WsurgeryError, printable

SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
KEYS = {"ordinal": "false", "patient": "", **SPLITS}


def folder(argument: str, given: Mapping[str, str]) -> Manifest:
    """List the images of a folder. The label is the class, the name of the folder that holds the image.

    `patient` is a regular expression; where it first matches in an image's path is the patient's name, or what is in its
    group. Without it each image is its own patient. `ordinal=true` takes the classes, sorted by name, for grades; the
    names of the five grades of retinopathy have the order of the grades.

    Raises:
        UsageError: no such folder, a key or value that is not there, fewer than two classes.
        WsurgeryError: an image that is in no class, or has no patient.
    """
    keys = read_keys("folder", given, KEYS)
    root = existing_folder("folder", argument)
    paths = [path for path in list_files(root) if is_image(path)]
    tops = {PurePosixPath(path).parts[0] for path in paths}
    has_splits = "train" in tops and tops <= SPLIT_FOLDERS.keys()
    depth = 1 if has_splits else 0
    for path in paths:
        if len(PurePosixPath(path).parts) < depth + 2:
            raise WsurgeryError(
                f"folder:{printable(argument)}: {printable(path)} is in no class: move it into a folder"
            )
    classes = sorted({PurePosixPath(path).parts[depth] for path in paths})
    if len(classes) < 2:
        raise UsageError(
            f"folder:{printable(argument)} holds {len(classes)} folders with images: two classes are needed"
        )
    if set(classes) == set(GRADES):
        classes = list(GRADES)
    clash = set(classes) & set(FIXED)
    if clash:
        raise UsageError(f"folder:{printable(argument)}: no class can be named {min(clash)}: rename the folder")
    splits = [SPLIT_FOLDERS[PurePosixPath(path).parts[0]] if has_splits else "train" for path in paths]
    patients = _patients(paths, keys["patient"])
    ordinal = choose("folder", "ordinal", keys["ordinal"], ("true", "false")) == "true"
    grades = [classes.index(PurePosixPath(path).parts[depth]) for path in paths]
    labels, names = grade_labels(grades, classes, ordinal=ordinal)
    splits = hold_out("folder", splits, patients, keys, given)
    return Manifest(root, tuple(paths), tuple(patients), tuple(splits), labels, names)


def _patients(paths: list[str], pattern: str) -> list[str]:
    if not pattern:
        return paths
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"folder: patient={printable(pattern)} is not a regular expression: {error}") from None
    patients = []
    for path in paths:
        match = expression.search(path)
        if match is None or not match[expression.groups and 1]:
            raise WsurgeryError(f"folder: patient={printable(pattern)} finds no patient in {printable(path)}")
        patients.append(match[expression.groups and 1])
    return patients
