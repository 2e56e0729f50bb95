"""`chexpert:DIR`: chest radiographs (Irvin et al. 2019), the five labels of the paper.

DIR is the folder that holds train.csv, whatever its name; the paths in the tables begin with the name that it once had.
"""

import re
from collections.abc import Mapping

import numpy as np

from wsurgery.data.adapters import SPLITS, choose, existing_folder, hold_out, read_keys, read_rows
from wsurgery.data.manifest import UNKNOWN, Manifest
from wsurgery.errors import UsageError, WsurgeryError, printable

LABELS = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")
KEYS = {"views": "all", "uncertain": "ignore", "blank": "zero", **SPLITS, "valid": "0.05", "test": "official"}
POLICIES = {"ones": 1.0, "zeros": 0.0, "ignore": UNKNOWN}
BLANKS = {"zero": 0.0, "ignore": UNKNOWN}
PATH = re.compile(r"(?:^|.*/)((?:train|valid)/(patient\d+)/.+)")


def chexpert(argument: str, given: Mapping[str, str]) -> Manifest:
    """List the images of CheXpert.

    valid.csv, which radiologists labelled, is the test split, and `valid` of the patients of train.csv are held out to
    choose by. With test=FRACTION valid.csv is left out, and those patients of train.csv are the test split.

    Raises:
        UsageError: no such folder, or a key or value that is not there.
        WsurgeryError: a table that is broken.
    """
    keys = read_keys("chexpert", given, KEYS)
    folder = existing_folder("chexpert", argument)
    if not (folder / "train.csv").is_file():
        raise UsageError(f"chexpert:{printable(argument)} holds no train.csv: name the folder that does")
    views = choose("chexpert", "views", keys["views"], ("all", "frontal", "lateral"))
    meaning = {label: {"1": 1.0, "0": 0.0} for label in LABELS}
    for label, policy in _uncertain(keys["uncertain"]).items():
        meaning[label] |= {"-1": POLICIES[policy], "": BLANKS[choose("chexpert", "blank", keys["blank"], [*BLANKS])]}

    tables = {"train.csv": "train"} | ({"valid.csv": "test"} if keys["test"] == "official" else {})
    paths, patients, splits, labels = [], [], [], []
    for name, split in tables.items():
        table = folder / name
        if not table.is_file():
            raise UsageError(
                f"chexpert:{printable(argument)} holds no {name}, the test split: add test=0.1, or the file"
            )
        for line, row in enumerate(read_rows(table), 2):
            where = f"{printable(str(table))}: line {line}"
            missing = {"path", "frontal/lateral", *LABELS} - row.keys()
            if missing:
                raise WsurgeryError(f"{where}: there is no column {min(missing)!r}")
            if views not in ("all", row["frontal/lateral"].lower()):
                continue
            match = PATH.fullmatch(row["path"])
            if match is None:
                raise WsurgeryError(f"{where}: {printable(row['path'])} is not a path with train/patient00001/ in it")
            paths.append(match[1])
            patients.append(match[2])
            splits.append(split)
            try:
                labels.append([meaning[label][row[label].removesuffix(".0")] for label in LABELS])
            except KeyError as error:
                raise WsurgeryError(
                    f"{where}: a label is {printable(str(error))}: labels are 1, 0, -1 or empty"
                ) from None
    if not paths:
        raise WsurgeryError(f"{printable(str(folder / 'train.csv'))}: there are no {views} images")
    splits = hold_out("chexpert", splits, patients, keys, {key: given[key] for key in given if key != "test"})
    names = tuple(label.replace(" ", "_") for label in LABELS)
    return Manifest(folder, tuple(paths), tuple(patients), tuple(splits), np.array(labels, np.float32), names)


def _uncertain(text: str) -> dict[str, str]:
    """Read `POLICY` and `LABEL=POLICY`, joined by commas: the policy of every label."""
    policies = dict.fromkeys(LABELS, KEYS["uncertain"])
    for item in sorted(text.split(","), key=lambda item: "=" in item):  # the one for all labels first
        name, equals, policy = item.rpartition("=")
        choose("chexpert", "uncertain", policy, [*POLICIES])
        label = name.lower().replace("_", " ")
        chosen = [choose("chexpert", "uncertain", label, LABELS)] if equals else [*LABELS]
        policies.update(dict.fromkeys(chosen, policy))
    return policies
