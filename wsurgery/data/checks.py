"""What has to be so of a manifest that somebody else's code made."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsurgery.data.manifest import Manifest, one_spelling
from wsurgery.errors import printable


def manifest_fault(manifest: Manifest) -> str | None:
    """Say what is wrong with a manifest, in words that follow its maker's name; None if nothing is.

    A path that comes twice and a patient in two splits are wrong: images that were trained on would be tested on.
    """
    n, k = len(manifest.paths), len(manifest.label_names)
    if not n:
        return "lists no image"
    labels = manifest.labels
    if not isinstance(labels, np.ndarray) or labels.shape != (n, k) or labels.dtype.kind not in "fiub":
        given = f"{labels.dtype} {labels.shape}" if isinstance(labels, np.ndarray) else f"a {type(labels).__name__}"
        return f"has labels that are {given}: float32 ({n}, {k}) is due for {n} paths and {k} label_names"
    if not (np.isnan(labels) | (labels == 0) | (labels == 1)).all():
        return "has labels other than 0, 1 and NaN"
    for name, column in {"patients": manifest.patients, "splits": manifest.splits, **manifest.metadata}.items():
        if len(column) != n:
            return f"has {len(column)} values in {printable(name)} for {n} paths"
    if twice := _first_repeated(one_spelling(Path(manifest.root), manifest.paths)):
        return f"has the path {printable(twice)!r} twice"
    split_of: dict[str, str] = {}
    for patient, split in zip(manifest.patients, manifest.splits, strict=True):
        if split_of.setdefault(patient, split) != split:
            both = f"{printable(split_of[patient])!r} and {printable(split)!r}"
            return f"has patient {printable(patient)!r} in two splits, {both}: a patient belongs in one"
    return None


def _first_repeated(values: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
