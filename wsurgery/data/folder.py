"""`folder:DIR`: images in one folder a class, in folders train, valid and test of them, or in any tree that `tree=` describes."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath

from wsurgery.data.adapters import (
    SPLIT_NAMES,
    SPLITS,
    choose,
    count_others,
    existing_folder,
    hold_out,
    is_image,
    list_files,
    read_keys,
    split_name,
)
from wsurgery.data.labels import check_names, class_labels
from wsurgery.data.manifest import FIXED, Manifest
from wsurgery.errors import UsageError, WsurgeryError, printable

KEYS = {"tree": "", "patient": "", "positive": "", "ordinal": "false", "order": "", **SPLITS}
PARTS = ("class", "patient", "split")


def folder(argument: str, given: Mapping[str, str]) -> Manifest:
    """List the images of a folder. The label is the class, the name of the folder that holds the image.

    `tree` says what the folders are from the top: `patient/class/image`, `split/class/patient/image`, `*` for one that
    says nothing; folders below are nothing, too. Default: `class/image`, or `split/class/image` where all are splits.

    `patient` is a regular expression; where it first matches in an image's path is the patient's name, or what is in its
    group. Without it, and without patients in the tree, each image is its own patient.

    `positive=A,B` makes one label of classes. `ordinal=true` takes the classes for grades: numbers in their order, the
    words that people use for grades in theirs, others as `order=` says, from the lowest.

    Raises:
        UsageError: no such folder, a key or value that is not there, fewer than two classes, grades without an order.
        WsurgeryError: an image that is in no class, or has no patient.
    """
    keys = read_keys("folder", given, KEYS)
    root = existing_folder("folder", argument)
    files = list_files(root)
    paths = [path for path in files if is_image(path)]
    tree = _tree(argument, paths, keys["tree"])
    for path in paths:
        if len(PurePosixPath(path).parts) <= len(tree):
            raise WsurgeryError(
                f"folder:{printable(argument)}: {printable(path)} is in no {tree[-1]}: move it into a folder"
            )
    parts = {name: [PurePosixPath(path).parts[depth] for path in paths] for depth, name in enumerate(tree)}
    classes = set(parts["class"])
    if len(classes) < 2:
        raise UsageError(
            f"folder:{printable(argument)} holds {len(classes)} folders with images: two classes are needed"
            f"{''.join(f' ({said})' for said in count_others(files))}"
        )
    splits = [split_name(name) for name in parts["split"]] if "split" in tree else ["train"] * len(paths)
    by_tree = "patient" in tree and not keys["patient"]
    patients = parts["patient"] if by_tree else _patients(paths, keys["patient"])
    labels, names, notes = class_labels(
        parts["class"],
        positive=keys["positive"],
        ordinal=choose("folder", "ordinal", keys["ordinal"], ("true", "false")) == "true",
        order=keys["order"],
        scheme="folder",
    )
    check_names(f"folder:{printable(argument)}", names, FIXED)
    splits = hold_out("folder", splits, patients, keys, given)
    notes += count_others(files)
    return Manifest(root, tuple(paths), tuple(patients), tuple(splits), labels, names, notes=notes)


def _tree(argument: str, paths: list[str], text: str) -> list[str]:
    """What each folder above an image is, from the top."""
    if text:
        tree = text.removesuffix("/image").split("/")
        named = [name for name in tree if name != "*"]
        if not set(named) <= set(PARTS) or "class" not in tree or len(set(named)) < len(named):
            raise UsageError(
                f"folder: tree={printable(text)} should be like patient/class/image, of {', '.join(PARTS)} and *"
            )
        return tree
    tops = {PurePosixPath(path).parts[0] for path in paths}
    if {"train"} <= {split_name(name) for name in tops} <= {*SPLIT_NAMES.values()}:
        return ["split", "class"]
    below = {PurePosixPath(path).parts[:2] for path in paths if len(PurePosixPath(path).parts) > 2}
    often = Counter(name for _, name in below)
    # Trees of patients have the classes below each of them; folders below classes are seldom the same few everywhere.
    if len(tops) > 2 and len(often) > 1 and len(below) > len(tops) > len(often) and min(often.values()) > 1:
        few = ", ".join(sorted(often)[:5])
        raise UsageError(
            f"folder:{printable(argument)}: are {printable(few)} the classes, in a folder for each of {len(tops)} patients? "
            "Say tree=patient/class/image, or tree=class/*/image where the outer folders are classes"
        )
    return ["class"]


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
