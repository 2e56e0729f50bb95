"""`chexpert:DIR`: chest radiographs (Irvin et al. 2019), the five labels of the paper.

DIR is the folder that holds train.csv, whatever its name; the paths in the tables begin with the name that it once had. Or
it holds the folders of the full-size set as they are unpacked, CheXpert-v1.0 batch 1 (validate & csv) to batch 4 (train 3).
"""

import re
from collections.abc import Mapping

import numpy as np

from wsurgery.data.adapters import SPLITS, Images, choose, existing_folder, hold_out, read_keys
from wsurgery.data.labels import read_labels
from wsurgery.data.manifest import Manifest
from wsurgery.data.rendering import Rendering
from wsurgery.data.table import read_table
from wsurgery.errors import UsageError, WsurgeryError, printable

LABELS = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")
KEYS = {"views": "all", "uncertain": "ignore", "blank": "zero", **SPLITS, "valid": "0.05", "test": "official"}
BATCHES = "CheXpert-v1.0 batch *"
PATH = re.compile(r"(?:^|.*/)((?:train|valid)/(patient\d+)/.+)")


def chexpert(argument: str, given: Mapping[str, str]) -> Manifest:
    """List the images of CheXpert.

    valid.csv, which radiologists labelled, is the test split, and `valid` of the patients of train.csv are held out to
    choose by. With test=FRACTION, or with fold=K/N, valid.csv is left out, and those patients of train.csv are the test split.

    Raises:
        UsageError: no such folder, or a key or value that is not there.
        WsurgeryError: a table that is broken.
    """
    keys = read_keys("chexpert", given, KEYS)
    folder = existing_folder("chexpert", argument)
    batches = sorted(folder.glob(BATCHES))
    views = choose("chexpert", "views", keys["views"], ("all", "frontal", "lateral"))
    paths: list[str] = []
    patients: list[str] = []
    splits: list[str] = []
    labels = []
    images = Images("chexpert", folder) if batches else None
    for name, split in {"train.csv": "train", "valid.csv": "test"}.items():
        if split == "test" and (keys["test"] != "official" or keys["fold"]):
            continue
        file = next((place / name for place in (folder, *batches) if (place / name).is_file()), None)
        if file is None:
            remedy = (
                "name the folder that does"
                if split == "train"
                else "the test split: add test=0.1 or fold=1/5, or the file"
            )
            raise UsageError(
                f"chexpert:{printable(argument)} holds no {name}{':' if split == 'train' else ','} {remedy}"
            )
        table = read_table(file)
        shown = table["frontal/lateral"]
        table = table.take([row for row, view in enumerate(shown) if views in ("all", view.lower())])
        labels.append(read_labels(table, LABELS, uncertain=keys["uncertain"], blank=keys["blank"], scheme="chexpert"))
        found = [PATH.fullmatch(path) for path in table["path"]]
        if None in found:
            row = found.index(None)
            raise table.wrong(f"{table['path'][row]} is not a path with train/patient00001/ in it", row)
        named = [match[1] for match in found if match]
        paths += named if images is None else [str(path) for path in images.find(named, file)]
        patients += [match[2] for match in found if match]
        splits += [split] * len(table)
    if not paths:
        raise WsurgeryError(f"{printable(str(folder / 'train.csv'))}: there are no {views} images")
    splits = hold_out("chexpert", splits, patients, keys, {key: given[key] for key in given if key != "test"})
    names = tuple(label.replace(" ", "_") for label in LABELS)
    rendering = Rendering(fit="stretch")
    return Manifest(
        folder, tuple(paths), tuple(patients), tuple(splits), np.concatenate(labels), names, rendering=rendering
    )
