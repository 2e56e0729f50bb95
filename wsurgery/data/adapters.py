"""What the adapters share: their keys, tables in any dialect, images by their names, and splits where there are none."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wsurgery.data.splits import split_patients
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.untrusted import MAX_COLUMNS, short_lines, text_of

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
MAX_LINKS, MAX_LINKS_ABOVE = 20_000, 8  # to folders: two in each of forty are a million million paths
SPLITS = {"valid": "0.15", "test": "0.15", "seed": "0"}  # the keys that hold_out takes, and their defaults


def read_keys(scheme: str, given: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The values of a specification's keys, with defaults filled in.

    Raises:
        UsageError: a key that the scheme does not have.
    """
    for key in given:
        if key not in defaults:
            raise UsageError(f"{scheme} has no key {printable(key)!r}: there are {', '.join(defaults)}")
    return {**defaults, **given}


def choose(scheme: str, key: str, value: str, choices: Sequence[str]) -> str:
    """`value`, which must be one of `choices`."""
    if value not in choices:
        raise UsageError(f"{scheme}: {key}={printable(value)} is not one of {', '.join(choices)}")
    return value


def existing_folder(scheme: str, argument: str) -> Path:
    """The folder that a specification names.

    Raises:
        UsageError: there is none.
    """
    folder = Path(argument).expanduser()
    if not argument or not folder.is_dir():
        raise UsageError(f"{scheme}:{printable(argument)}: there is no such folder")
    return folder


def list_files(folder: Path) -> list[str]:
    """All files below `folder`, relative to it and sorted, without hidden ones and what macOS leaves in archives.

    Links are followed.

    Raises:
        WsurgeryError: links lead back, or on to so many folders that no end can be expected.
    """
    found: list[str] = []
    links_above, links = {os.fspath(folder): 0}, 0
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        above = links_above.pop(parent)
        for path in (os.path.join(parent, name) for name in folders):
            is_link = os.path.islink(path)
            links_above[path], links = above + is_link, links + is_link
            if links_above[path] > MAX_LINKS_ABOVE or links > MAX_LINKS:
                raise WsurgeryError(f"{printable(path)} is a link too many to a folder: does one lead back?")
        found += [os.path.relpath(os.path.join(parent, name), folder) for name in names if not name.startswith(".")]
    return sorted(found)


def is_image(path: str) -> bool:
    """Whether the suffix is an image's."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def read_rows(file: Path) -> Iterator[dict[str, str]]:
    """The rows of a table with commas or semicolons. Column names are in lower case.

    Raises:
        WsurgeryError: it is not text, or no table that anybody has.
    """
    try:
        with text_of(file, "utf-8-sig") as stream:
            lines = short_lines(stream)
            first = next(lines, "")
            delimiter = ";" if first.count(";") > first.count(",") else ","
            names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
            if len(names) > MAX_COLUMNS:
                raise WsurgeryError(f"there are {len(names):,} columns: at most {MAX_COLUMNS:,} are read")
            for row in csv.DictReader(lines, names, delimiter=delimiter, restval=""):
                yield {name: value.strip() for name, value in row.items() if name}
    except (UnicodeDecodeError, csv.Error, WsurgeryError) as error:
        raise WsurgeryError(f"{printable(str(file))}: {printable(str(error))}") from None


def hold_out(
    scheme: str, splits: Sequence[str], patients: Sequence[str], keys: Mapping[str, str], given: Mapping[str, str]
) -> list[str]:
    """Take the splits that the data does not bring, valid and test, from the patients of its train split.

    Args:
        scheme: for messages.
        splits: (n,), as the data has them: train for all images where it has none.
        patients: (n,).
        keys: `valid` and `test`, parts of the patients, and `seed`.
        given: the keys that the user gave.

    Returns:
        (n,) splits.

    Raises:
        UsageError: a value that cannot be, or a part where the data has that split.
        WsurgeryError: a patient in two of the data's own splits.
    """
    split_of: dict[str, str] = {}
    for patient, split in zip(patients, splits, strict=True):
        if split_of.setdefault(patient, split) != split:
            raise WsurgeryError(f"{scheme}: patient {printable(patient)} is in both {split_of[patient]} and {split}")
    fractions = {}
    for name in ("valid", "test"):
        if name not in splits:
            fractions[name] = _number(scheme, name, keys[name])
        elif name in given:
            raise UsageError(f"{scheme}: the data has a {name} split of its own: leave {name}= out")
    rest = 1 - sum(fractions.values())
    if rest < -1e-9:
        raise UsageError(f"{scheme}: valid and test are more than all patients")
    seed = int(_number(scheme, "seed", keys["seed"], whole=True))
    rows = [row for row, split in enumerate(splits) if split == "train"]
    drawn = split_patients([patients[row] for row in rows], {"train": max(rest, 0.0), **fractions}, seed)
    result = list(splits)
    for row, split in zip(rows, drawn, strict=True):
        result[row] = split
    return result


def _number(scheme: str, key: str, text: str, *, whole: bool = False) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= (float("inf") if whole else 1):
        kind = "whole number of at least 0" if whole else "number from 0 to 1"
        raise UsageError(f"{scheme}: {key}={printable(text)} is not a {kind}")
    return value
