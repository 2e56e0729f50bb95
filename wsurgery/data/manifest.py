"""The one format of all data: a table of image paths, patients, splits and labels, as CSV or Parquet.

    path,patient,split,none,mild,meta:age
    images/000000.png,p00000,train,1,0,61
    images/000001.png,p00000,train,,0,61

A label is 0, 1 or empty, which means unknown. What else is known of an image stands behind the labels, as `meta:…`.
"""

import json
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.checkpoint.sink import write_all
from wsurgery.checkpoint.writer import AtomicFile
from wsurgery.data.adapters import SPLIT_NAMES, SPLITS, Images, choose, hold_out, names_in, read_keys, split_name
from wsurgery.data.labels import (
    check_names,
    class_labels,
    guess_labels,
    known,
    merge_repeats,
    plain_number,
    read_labels,
)
from wsurgery.data.rendering import DEFAULT, Rendering
from wsurgery.data.rendering import KEYS as RENDERING_KEYS
from wsurgery.data.splits import rank_patients
from wsurgery.data.table import Table, read_table
from wsurgery.errors import UsageError, csv_text, printable, table_cell

FIXED = ("path", "patient", "split")
META = "meta:"  # before the name of a column that is no label
FOLD = "fold"  # the column, after META, that says in each row alike which fold of the patients is tested: K/N
RENDERING = f"{META}image_"  # before that of one that says, in each row alike, how all images are rendered
MAX_SPLITS = 1000
DRAWN = "no column says the splits"  # begins a note, where patients were held out
KEYS = {
    "path": "path", "patient": "patient", "split": "split", "labels": "", "uncertain": "ignore", "blank": "ignore",
    "class": "", "positive": "", "ordinal": "false", "order": "", "images": "", "repeats": "", "encoding": "", **SPLITS,
}  # fmt: skip
# What people call these columns, without spaces and underscores. They have to be named, as one may be something else.
ALIASES = {
    "path": {"image", "imageid", "imagename", "imagepath", "img", "imgpath", "file", "filename", "filepath", "idcode"},
    "patient": {"patientid", "subject", "subjectid", "patientname", "pid", "caseid", "personid"},
    "split": set[str](),  # by its values
}


@dataclass(frozen=True, eq=False)
class Manifest:
    """n images with k labels each.

    Attributes:
        root: the folder that `paths` are relative to.
        paths: (n,), each once.
        patients: (n,); an image whose patient is not known has its own path here.
        splits: (n,); no patient is in two.
        labels: (n, k) float32: 0, 1, or NaN for unknown.
        label_names: (k,).
        metadata: what else is known, name → (n,) values as text, empty where one is not known.
        notes: what is to be said of where labels and splits are from.
        rendering: how the images become squares of 8 bits a channel.
    """

    root: Path
    paths: tuple[str, ...]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    labels: NDArray[np.float32]
    label_names: tuple[str, ...]
    metadata: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    rendering: Rendering = DEFAULT

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """BLAKE3 of all rows in their order, as 64 hexadecimal digits. Metadata, the root and the images' bytes are not in it.

        How images are rendered is in it, unless that is as it is by default.
        """
        rendering = [self.rendering.keys] if self.rendering.keys else []
        text = json.dumps([self.label_names, self.paths, self.patients, self.splits, *rendering])
        return bytes_digest(text.encode() + np.nan_to_num(self.labels, nan=-1).astype(np.int8).tobytes())

    def where(self, split: str) -> "Manifest":
        """The images of one split, in their order.

        Raises:
            UsageError: there are none; it lists the splits that there are.
        """
        rows = [row for row, name in enumerate(self.splits) if name == split]
        if not rows:
            raise UsageError(f"no image is in split {split!r}: there are {', '.join(sorted(set(self.splits)))}")
        return self.take(rows)

    @property
    def fold(self) -> str:
        """K/N, where the splits are the K-th of N folds of the patients; else empty."""
        said = set(self.metadata.get(FOLD, ()))
        return said.pop() if len(said) == 1 else ""

    def subset(self, n: int) -> "Manifest":
        """The first patients in a fixed order, as many as it takes for `n` images, with all of their images.

        The order is a hash of the patient's name: a smaller subset is part of every larger one, and the order of rows
        does not matter.

        Raises:
            UsageError: there are fewer than `n` images.
        """
        if not 0 < n <= len(self):
            raise UsageError(f"a subset of {n} images cannot be had: there are {len(self)}")
        images_of: dict[str, list[int]] = {}
        for row, patient in enumerate(self.patients):
            images_of.setdefault(patient, []).append(row)
        rows: list[int] = []
        for patient in rank_patients(self.patients, "subset"):
            if len(rows) >= n:
                break
            rows += images_of[patient]
        return self.take(sorted(rows))

    def take(self, rows: list[int]) -> "Manifest":
        """The images of some rows, in the order given."""
        paths, patients, splits = (
            tuple(column[row] for row in rows) for column in (self.paths, self.patients, self.splits)
        )
        metadata = {name: tuple(values[row] for row in rows) for name, values in self.metadata.items()}
        return replace(self, paths=paths, patients=patients, splits=splits, labels=self.labels[rows], metadata=metadata)

    @property
    def has_patients(self) -> bool:
        """Whether any image's patient is known."""
        return are_known(self.patients, self.paths)


def are_known(patients: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether any of some patients is known: one that is not has the image's path, or the end of it.

    The path may have been written anew since, from another folder: what leads up, and down and up again, does not count.
    """
    rows = zip(paths, patients, strict=True)
    return any(path != patient and not f"/{_end(path)}".endswith(f"/{_end(patient)}") for path, patient in rows)


def _end(path: str) -> str:
    return re.sub(r"^(\.\./)+", "", posixpath.normpath(path)) if ".." in path else path


def read_manifest(file: Path, given: Mapping[str, str] | None = None) -> Manifest:
    """Read and check a manifest, or any table that keys make one.

    Args:
        file: what `read_table` reads.
        given: keys, for columns with other names and for what a manifest has and the table lacks: see docs/data.md.

    Raises:
        WsurgeryError: a missing column, no labels or columns that could be labels or not, no rows, a value that is not a
            label, a path that is empty or comes twice, however it is spelled, a patient in two splits, an image that is not
            there. It names the file, the row, and for columns the separator and all columns.
        UsageError: a suffix that is no table's, or a key or value that is not there.
    """
    given = given or {}
    scheme = file.name
    keys = read_keys(scheme, given, KEYS)
    table = read_table(file, keys["encoding"])
    path = _column(table, "path", given)
    if path is None:
        raise table.wrong(f"there is no column 'path'{table.described}; say which it is with {_hint(table)}")
    patient, split, one_class = (_column(table, name, given) for name in ("patient", "split", "class"))
    named, beside = _labels_of(table, [path, patient, split, one_class], keys)
    if not len(table):
        raise table.wrong("there are no rows")
    notes: tuple[str, ...] = ()
    names: Sequence[str]
    values: list[str] = []
    if one_class is None:
        if "path" in given and not keys["labels"]:
            notes = ("no key says the labels: each column of 0, 1, -1 or nothing is one; labels=A,B chooses",)
        names, labels = (
            named,
            read_labels(table, named, uncertain=keys["uncertain"], blank=keys["blank"], scheme=scheme),
        )
    else:
        ordinal = choose(scheme, "ordinal", keys["ordinal"], ("true", "false")) == "true"
        values = [plain_number(known(value)) for value in table[one_class]]
        labels, names, notes = class_labels(
            values, positive=keys["positive"], ordinal=ordinal, order=keys["order"], scheme=scheme
        )
    of_class = [key for key in ("positive", "order", "ordinal") if keys[key] != KEYS[key]]
    of_labels = [key for key in ("uncertain", "blank") if given.get(key)]
    if wrong := of_class if one_class is None else of_labels:
        remedy = "name its column, class=COLUMN" if one_class is None else "a class is known or not: leave it out"
        kind = "a class" if one_class is None else "columns of labels"
        raise UsageError(f"{printable(scheme)}: {wrong[0]}= is of {kind}: {remedy}")
    check_names(scheme, names, FIXED)

    paths = [_plain(value) for value in table[path]]
    if "" in paths:
        raise table.wrong("the path is empty", paths.index(""))
    paths = one_spelling(file.parent, paths)
    patients = [""] * len(table) if patient is None else list(map(known, table[patient]))
    patients = [person or image for person, image in zip(patients, paths, strict=True)]
    splits = ["train"] * len(table) if split is None else [split_name(name) for name in table[split]]
    if len(set(splits)) > MAX_SPLITS:
        raise table.wrong(f"there are {len(set(splits)):,} splits: a manifest has train, valid and test, or some more")
    if "" in splits:
        raise table.wrong("the split is empty", splits.index(""))
    if keys["repeats"]:
        how = choose(scheme, "repeats", keys["repeats"], ("any", "majority"))
        _check_repeats(table, paths, {"split": splits, "patient": patients})
        rows, labels, joined = merge_repeats(paths, labels, how, classes=values)
        notes += joined
        table = table.take(rows)
        paths, patients, splits = ([column[row] for row in rows] for column in (paths, patients, splits))
    _check_rows(table, paths, patients, splits)
    root = file.parent
    if keys["images"]:
        found = Images(scheme, root, keys["images"]).find(paths, file)
        where = {old: new for old, new in zip(paths, found, strict=True) if new is not None}
        patients = [where.get(name, name) if name == old else name for name, old in zip(patients, paths, strict=True)]
        paths = [where[old] for old in paths]
    elif "path" in given and not (root / paths[0]).is_file() and ".npz/" not in paths[0]:
        raise table.wrong(
            f"{printable(paths[0])!r} is not there: images=. finds images below {printable(str(root))} by their names",
            0,
        )
    if split is None:
        splits = hold_out(scheme, splits, patients, keys, given)
        count = {
            name: len({who for who, where in zip(patients, splits, strict=True) if where == name}) for name in SPLITS
        }
        fold = f"fold {keys['fold']}, " if keys["fold"] else ""
        drawn = f"{fold}of {len(set(patients))} patients {count['valid']} go to valid, {count['test']} to test"
        notes += (f"{DRAWN}: {drawn}",)
    elif given.keys() & {"valid", "test", "fold"}:
        splits = hold_out(scheme, splits, patients, {**keys, **dict.fromkeys(("valid", "test"), "0"), **given}, given)
    rendering = _rendering_of(table)
    beside = [name for name in beside if name.removeprefix(RENDERING) not in rendering]
    metadata = {name.removeprefix(META): tuple(table[name]) for name in beside}
    return Manifest(
        root,
        tuple(paths),
        tuple(patients),
        tuple(splits),
        labels,
        tuple(names),
        metadata,
        notes,
        Rendering(**rendering),
    )


def _plain(path: str) -> str:
    """A path as it is written nowhere else: of ./a.png, .//a.png and a.png two would be two images."""
    path = path.replace("\\", "/")
    return PurePosixPath(path).as_posix() if "./" in path or "//" in path else path


def one_spelling(root: Path, paths: Sequence[str]) -> list[str]:
    """Paths of images, (n,), with the first spelling of each that is there in several, as x/../a.png or from / on."""
    top = root.resolve()
    first: dict[str, str] = {}
    return [first.setdefault(os.path.normpath(os.path.join(top, path)), path) for path in paths]


def _rendering_of(table: Table) -> dict[str, str]:
    found = {key: table[RENDERING + key] for key in RENDERING_KEYS if table.find(RENDERING + key)}
    for key, values in found.items():
        if other := next((row for row, value in enumerate(values) if value != values[0]), None):
            raise table.wrong(
                f"{RENDERING}{key} is {values[other]!r} and before {values[0]!r}: it is one for all images", other
            )
    return {key: values[0] for key, values in found.items()}


def _column(table: Table, name: str, given: Mapping[str, str]) -> str | None:
    """The table's name for a column: what the user says, or the manifest's own."""
    if given.get(name):
        table[given[name]]  # must be there
        return table.find(given[name])
    if name in given or name == "class":
        return None
    found = table.find(name)
    if found is None and name != "path":
        free = (column for column in table.columns if column not in given.values())
        other = next((column for column in free if _is_like(table, name, column)), None)
        if other is not None:
            raise table.wrong(f"is column {other!r} the {name}? Say {name}={quote(other)}, or {name}= if it is not")
    return found


def _is_like(table: Table, name: str, column: str) -> bool:
    """Whether a column is what people call `name`, or has the values of one."""
    if name == "split":
        values = {value.lower() for value in set(table[column])} - {""}
        return bool(values) and values <= SPLIT_NAMES.keys()
    return re.sub(r"[\W_]+", "", column).lower() in ALIASES[name]


def _hint(table: Table) -> str:
    """The keys for the columns that look like a manifest's, for messages."""
    keys = []
    for name in ALIASES:
        if table.find(name) is None:
            like = next((column for column in table.columns if _is_like(table, name, column)), None)
            keys += [f"{name}={quote(like)}"] if like else [f"{name}=COLUMN"] * (name == "path")
    return f"?{'&'.join(keys)} behind its name"


def _labels_of(table: Table, used: Sequence[str | None], keys: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The columns that are labels, and those that are neither labels nor `used`."""
    others = [name for name in table.columns if name not in used]
    marked = [name for name in others if name.startswith(META)]
    if keys["labels"]:
        names = names_in(keys["labels"])
        if used[-1] is not None:
            raise UsageError(f"{printable(table.file.name)}: class= and labels= are two ways to say it: leave one out")
        for name in names:
            table[name]  # must be there
        labels = [table.find(name) or name for name in names]
        if len(set(labels)) < len(labels) or set(labels) & set(used):
            raise UsageError(
                f"{printable(table.file.name)}: labels={printable(keys['labels'])} has a column twice, or no label"
            )
    elif used[-1] is not None:
        labels = []
    elif marked:
        labels = [name for name in others if name not in marked]
    else:
        labels = guess_labels(table, others) if len(table) else others
    return labels, [name for name in others if name not in labels]


def _check_repeats(table: Table, paths: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
    for name, values in columns.items():
        first: dict[str, int] = {}
        for row, path in enumerate(paths):
            before = values[first.setdefault(path, row)]
            if before != values[row]:
                where = f"{printable(before)!r} ({table.where(first[path])}) and {printable(values[row])!r}"
                raise table.wrong(f"path {printable(path)!r} has two in column {name!r}, {where}", row)


def _check_rows(table: Table, paths: Sequence[str], patients: Sequence[str], splits: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        if first.setdefault(path, row) != row:
            raise table.wrong(
                f"path {printable(path)!r} is there twice, first in {table.where(first[path])}: repeats=any would join them",
                row,
            )
    seen: dict[str, int] = {}
    for row, patient in enumerate(patients):
        before = splits[seen.setdefault(patient, row)]
        if before != splits[row]:
            where = f"{printable(before)!r} ({table.where(seen[patient])}) and {printable(splits[row])!r}"
            raise table.wrong(
                f"patient {printable(patient)!r} is in two splits, {where}: a patient belongs in one", row
            )


def write_manifest(manifest: Manifest, file: Path) -> None:
    """Write a manifest as .csv or .parquet, whole or not at all; an existing file is replaced.

    Raises:
        UsageError: another suffix.
    """
    pairs = zip(manifest.patients, manifest.paths, strict=True)
    patients = ["" if patient == path else patient for patient, path in pairs]
    labels = [["" if np.isnan(x) else str(int(x)) for x in column] for column in manifest.labels.T]
    rendering = {f"image_{key}": (value,) * len(manifest) for key, value in manifest.rendering.keys.items()}
    metadata = {**manifest.metadata, **rendering}
    header = [*FIXED, *manifest.label_names, *(META + name for name in metadata)]
    beside = list(metadata.values())
    if _is_csv(file):
        texts = [map(table_cell, column) for column in (manifest.paths, patients, manifest.splits)]
        rows = zip(*texts, *labels, *(map(table_cell, column) for column in beside), strict=True)
        data = csv_text([map(table_cell, header), *rows]).encode()
    else:
        import pyarrow as pa
        import pyarrow.parquet

        strings = [pa.array(column, pa.string()) for column in (manifest.paths, patients, manifest.splits)]
        numbers = [pa.array([int(x) if x else None for x in column], pa.int8()) for column in labels]
        texts = [pa.array(column, pa.string()) for column in beside]
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table([*strings, *numbers, *texts], names=header), sink)
        data = sink.getvalue().to_pybytes()
    with AtomicFile(file, force=True) as stream:
        write_all(stream, data)


def summarise(manifest: Manifest) -> dict[str, Any]:
    """Counts of images and patients, and in each split of each label's positives, negatives and unknowns.

    The splits are train, valid and test, and then others in the order of their first image.
    """
    rows: dict[str, list[int]] = {}
    for row, split in enumerate(manifest.splits):
        rows.setdefault(split, []).append(row)
    splits: dict[str, Any] = {}
    known = [split for split in SPLIT_NAMES.values() if split in rows]  # in the order in which a study meets them
    for split in dict.fromkeys([*known, *rows]):
        part = manifest.take(rows[split])
        counts = {}
        for name, column in zip(part.label_names, part.labels.T, strict=True):
            tally = {"positive": column == 1, "negative": column == 0, "unknown": np.isnan(column)}
            counts[name] = {key: int(found.sum()) for key, found in tally.items()}
        splits[split] = {"images": len(part), "patients": len(set(part.patients)), "labels": counts}
    rendering = asdict(manifest.rendering)
    return {"images": len(manifest), "patients": len(set(manifest.patients)), "rendering": rendering, "splits": splits}


def _is_csv(file: Path) -> bool:
    if file.suffix not in (".csv", ".parquet"):
        raise UsageError(f"{printable(str(file))}: a manifest is a .csv or a .parquet file")
    return file.suffix == ".csv"
