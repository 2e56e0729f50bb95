"""The one format of all data: a table of image paths, patients, splits and labels, as CSV or Parquet.

    path,patient,split,none,mild
    images/000000.png,p00000,train,1,0
    images/000001.png,p00000,train,,0

A label is 0, 1 or empty, which means unknown.
"""

import csv
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from wsurgery.checkpoint.digest import bytes_digest
from wsurgery.checkpoint.writer import AtomicFile, write_all
from wsurgery.data.splits import rank_patients
from wsurgery.errors import UsageError, WsurgeryError, plain_cell, printable, table_cell
from wsurgery.untrusted import MAX_COLUMNS, open_regular, short_lines, text_of

FIXED = ("path", "patient", "split")
UNKNOWN = float("nan")
MAX_SPLITS = 1000
_FREE_ROWS, _FREE_CELLS = 1_000_000, 30_000_000  # of a Parquet file, however few bytes it has
# How the two labels are written by people, by spreadsheets and by data frames in which some labels are unknown.
LABELS = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0, "": UNKNOWN, "nan": UNKNOWN}


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
    """

    root: Path
    paths: tuple[str, ...]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    labels: NDArray[np.float32]
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def digest(self) -> str:
        """BLAKE3 of all rows in their order, as 64 hexadecimal digits. The root and the images' bytes are not in it."""
        text = json.dumps([self.label_names, self.paths, self.patients, self.splits])
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
        return Manifest(self.root, paths, patients, splits, self.labels[rows], self.label_names)


def read_manifest(file: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        WsurgeryError: a missing column, no labels, no rows, a value that is not a label, a path that is empty or comes
            twice, a patient in two splits. It names the file and the row.
        UsageError: the suffix is neither .csv nor .parquet.
    """
    table = _read_table(file)
    columns = list(table.column_names)
    name, times = Counter(columns).most_common(1)[0] if columns else ("", 0)
    if times > 1:
        raise _wrong(file, f"column {name!r} is there twice")
    for name in ("path", "split"):
        if name not in columns:
            raise _wrong(
                file, f"there is no column {name!r}: a manifest has path, patient, split and one column a label"
            )
    label_names = tuple(name for name in columns if name not in FIXED)
    if not label_names:
        raise _wrong(file, "there are no labels: add one column a label, with 0, 1 or nothing in each row")
    if not table.num_rows:
        raise _wrong(file, "there are no rows")

    paths, splits = _strings(file, table, "path"), _strings(file, table, "split")
    if (n := len(set(splits))) > MAX_SPLITS:
        raise _wrong(file, f"there are {n:,} splits: a manifest has train, valid and test, or some more")
    for name, values in (("path", paths), ("split", splits)):
        if "" in values:
            raise _wrong(file, f"the {name} is empty", values.index(""))
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        if first.setdefault(path, row) != row:
            raise _wrong(file, f"path {path!r} is there twice, first in {_row(file, first[path])}", row)
    patients = _strings(file, table, "patient") if "patient" in columns else [""] * len(paths)
    patients = [patient or path for patient, path in zip(patients, paths, strict=True)]
    seen: dict[str, int] = {}
    for row, patient in enumerate(patients):
        before = splits[seen.setdefault(patient, row)]
        if before != splits[row]:
            where = f"{before!r} ({_row(file, seen[patient])}) and {splits[row]!r}"
            raise _wrong(file, f"patient {patient!r} is in two splits, {where}: a patient belongs in one", row)
    labels = np.stack([_labels(file, table, name) for name in label_names], axis=1)
    label_names = tuple(map(plain_cell, label_names)) if _is_csv(file) else label_names
    return Manifest(file.parent, tuple(paths), tuple(patients), tuple(splits), labels, label_names)


def write_manifest(manifest: Manifest, file: Path) -> None:
    """Write a manifest as .csv or .parquet, whole or not at all; an existing file is replaced.

    Raises:
        UsageError: another suffix.
    """
    rows = zip(manifest.patients, manifest.paths, strict=True)
    patients = ["" if patient == path else patient for patient, path in rows]
    labels = [["" if np.isnan(x) else str(int(x)) for x in column] for column in manifest.labels.T]
    header = [*FIXED, *manifest.label_names]
    if _is_csv(file):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(map(table_cell, header))
        texts = [map(table_cell, column) for column in (manifest.paths, patients, manifest.splits)]
        writer.writerows(zip(*texts, *labels, strict=True))
        data = text.getvalue().encode()
    else:
        strings = [pa.array(column, pa.string()) for column in (manifest.paths, patients, manifest.splits)]
        numbers = [pa.array([int(x) if x else None for x in column], pa.int8()) for column in labels]
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table([*strings, *numbers], names=header), sink)
        data = sink.getvalue().to_pybytes()
    with AtomicFile(file, force=True) as stream:
        write_all(stream, data)


def summarise(manifest: Manifest) -> dict[str, Any]:
    """Counts of images and patients, and in each split of each label's positives, negatives and unknowns."""
    rows: dict[str, list[int]] = {}
    for row, split in enumerate(manifest.splits):
        rows.setdefault(split, []).append(row)
    splits: dict[str, Any] = {}
    for split in rows:
        part = manifest.take(rows[split])
        counts = {}
        for name, column in zip(part.label_names, part.labels.T, strict=True):
            tally = {"positive": column == 1, "negative": column == 0, "unknown": np.isnan(column)}
            counts[name] = {key: int(found.sum()) for key, found in tally.items()}
        splits[split] = {"images": len(part), "patients": len(set(part.patients)), "labels": counts}
    return {"images": len(manifest), "patients": len(set(manifest.patients)), "splits": splits}


def _is_csv(file: Path) -> bool:
    if file.suffix not in (".csv", ".parquet"):
        raise UsageError(f"{printable(str(file))}: a manifest is a .csv or a .parquet file")
    return file.suffix == ".csv"


def _read_table(file: Path) -> pa.Table:
    try:
        if not _is_csv(file):
            return _read_parquet(file)
        with text_of(file, "utf-8-sig") as stream:
            header = next(csv.reader(short_lines(stream)), [])
        _check_columns(len(header))
        # All columns as text: a patient "007" must not become the number 7.
        convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
        return pa.csv.read_csv(file, pa.csv.ReadOptions(use_threads=False), convert_options=convert)  # with row numbers
    except UsageError:
        raise
    except Exception as error:  # of Arrow's, csv's and ours
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise _wrong(file, " ".join(str(error).split())) from None


def _read_parquet(file: Path) -> pa.Table:
    with open_regular(file) as stream, pa.parquet.ParquetFile(stream) as parquet:
        _check_columns(parquet.metadata.num_columns)
        size, rows = file.stat().st_size, parquet.metadata.num_rows
        # Packed, a column of one value takes no bytes, however many rows there are.
        if rows > _FREE_ROWS + 16 * size or rows * parquet.metadata.num_columns > _FREE_CELLS + 100 * size:
            raise WsurgeryError(f"there are {rows:,} rows in {size:,} bytes")
        schema = parquet.schema_arrow
        # Kept once for all rows that have it: a long text that comes often is a few bytes in the file.
        texts = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
    return pa.parquet.read_table(file, read_dictionary=texts, use_threads=False)


def _check_columns(n: int) -> None:
    if n > MAX_COLUMNS:
        raise WsurgeryError(f"there are {n:,} columns: at most {MAX_COLUMNS:,} are read")


def _strings(file: Path, table: pa.Table, name: str) -> list[str]:
    values: list[str] = []
    try:
        for chunk in table[name].chunks:
            if pa.types.is_dictionary(chunk.type):
                kept = [value or "" for value in chunk.dictionary.cast(pa.string()).to_pylist()]
                values += ["" if index is None else kept[index] for index in chunk.indices.to_pylist()]
            else:
                values += [value or "" for value in chunk.cast(pa.string()).to_pylist()]
    except (pa.ArrowException, ValueError) as error:
        raise _wrong(file, f"column {name!r} is not text: {error}") from None
    return [*map(plain_cell, values)] if _is_csv(file) else values


def _labels(file: Path, table: pa.Table, name: str) -> NDArray[np.float32]:
    values = _strings(file, table, name)
    unlike = set(values) - LABELS.keys()
    if unlike:
        row = next(row for row, value in enumerate(values) if value in unlike)
        raise _wrong(file, f"label {name!r} is {values[row]!r}: a label is 0, 1 or empty", row)
    return np.array([LABELS[value] for value in values], np.float32)


def _row(file: Path, row: int) -> str:
    return f"line {row + 2}" if _is_csv(file) else f"row {row + 1}"


def _wrong(file: Path, what: str, row: int | None = None) -> WsurgeryError:
    where = "" if row is None else f" {_row(file, row)}:"
    return WsurgeryError(f"{printable(str(file))}:{where} {printable(what)}")
