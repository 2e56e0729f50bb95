"""`medmnist:FILE.npz`: a data set of MedMNIST (Yang et al. 2023), its own splits. The images stay in the archive."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsurgery.archives import one_line_errors, open_archive, open_array, read_array
from wsurgery.data.adapters import choose, read_keys
from wsurgery.data.archive import check_images
from wsurgery.data.grades import GRADES, grade_labels, order_of
from wsurgery.data.manifest import Manifest
from wsurgery.errors import UsageError, WsurgeryError, printable

MAX_CELLS = 10_000_000  # labels of all images: the largest of the sets has 2 million
SPLITS = {"train": "train", "val": "valid", "test": "test"}  # MedMNIST's name → ours
# The archives hold numbers only; here are the names of the two data sets that belong to the paper's tasks.
LABEL_NAMES = {
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
    "retinamnist": GRADES,
}  # fmt: skip


def medmnist(argument: str, given: Mapping[str, str]) -> Manifest:
    """List the images of an archive. Patients are not known.

    One class an image becomes one label a class, or with ordinal=true, for grades in their order, one label a grade that
    is reached.

    Raises:
        UsageError: no such file, or a key or value that is not there.
        WsurgeryError: the archive is broken, or holds something else than MedMNIST's arrays.
    """
    keys = read_keys("medmnist", given, {"ordinal": "false"})
    ordinal = choose("medmnist", "ordinal", keys["ordinal"], ("true", "false")) == "true"
    file = Path(argument).expanduser()
    if not file.is_file() or file.suffix != ".npz":
        raise UsageError(f"medmnist:{printable(argument)}: there is no such .npz file")
    paths: list[str] = []
    splits: list[str] = []
    parts: list[NDArray[np.int64]] = []
    with one_line_errors(f"{printable(str(file))} is not an archive of MedMNIST's:"), open_archive(file) as archive:
        for theirs, ours in SPLITS.items():
            with open_array(archive, f"{theirs}_images.npy") as (header, _):
                check_images(header)
                n = header.shape[0]
            with open_array(archive, f"{theirs}_labels.npy") as (header, _):
                k = math.prod(header.shape) // max(n, 1)
                if header.dtype.kind not in "biuf" or max(n, n * k) > MAX_CELLS or header.shape[:1] != (n,):
                    raise WsurgeryError(f"{theirs}_labels are {header.dtype} {header.shape}, and there are {n} images")
            found = read_array(archive, f"{theirs}_labels.npy")
            with np.errstate(invalid="ignore"):
                labels = found.astype(np.int64).reshape(n, -1)
            if not np.array_equal(labels, found.reshape(n, -1)):
                raise WsurgeryError(f"{theirs}_labels are not all whole numbers")
            paths += [f"{file.name}/{theirs}_images/{i}" for i in range(n)]
            splits += [ours] * n
            parts.append(labels)
        labels = np.concatenate(parts)
    if not labels.size:
        raise WsurgeryError(f"{printable(str(file))} holds no labels")
    name = file.stem.partition("_")[0].lower()  # retinamnist_224 is retinamnist, larger
    if labels.min() < 0 or (labels.shape[1] > 1 and labels.max() > 1):
        raise WsurgeryError(f"{printable(str(file))}: labels are neither classes from 0 nor columns of 0 and 1")
    if labels.shape[1] == 1 and len(labels) * (int(labels.max()) + 1) > MAX_CELLS:
        raise WsurgeryError(f"{printable(str(file))}: {int(labels.max()) + 1} classes are more than MedMNIST has")
    if labels.shape[1] > 1:
        if ordinal:
            raise UsageError(f"medmnist:{printable(argument)} has {labels.shape[1]} labels an image, no grades")
        names = LABEL_NAMES.get(name, ())
        if len(names) != labels.shape[1]:
            names = tuple(f"label_{i}" for i in range(labels.shape[1]))
        values, classes = labels.astype(np.float32), names
    else:
        classes = LABEL_NAMES.get(name, tuple(f"class_{i}" for i in range(labels.max() + 1)))
        if labels.max() >= len(classes):
            raise WsurgeryError(f"{printable(str(file))}: a class is {labels.max()}, and {name} has {len(classes)}")
        values, names = grade_labels(labels[:, 0].tolist(), classes, ordinal=ordinal)
    notes = (order_of(classes),) if ordinal else ()
    return Manifest(file.parent, tuple(paths), tuple(paths), tuple(splits), values, names, notes=notes)
