"""What the adapters share: their keys, images by their names, and splits where there are none."""

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import takewhile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from wsurgery.data.rendering import KEYS
from wsurgery.data.splits import split_patients
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.progress import Progress

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".jp2", ".j2k", ".dcm", ".dicom",
)  # fmt: skip
_MAX_KINDS = 10  # of files in a message
_MAX_FOLDS = 1000
MAX_LINKS, MAX_LINKS_ABOVE = 20_000, 8  # to folders: two in each of forty are a million million paths
SPLITS = {"valid": "0.15", "test": "0.15", "seed": "0", "fold": ""}  # the keys that hold_out takes, and their defaults
LISTS = ("labels", "order", "positive")  # keys of several names
SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "valid", "valid": "valid", "validate": "valid", "validation": "valid",
    "dev": "valid", "test": "test", "testing": "test",
}  # fmt: skip


def read_keys(scheme: str, given: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The values of a specification's keys, with defaults filled in.

    Raises:
        UsageError: a key that the scheme does not have.
    """
    for key in given:
        if key not in defaults:
            raise UsageError(f"{scheme} has no key {printable(key)!r}: there are {', '.join((*defaults, *KEYS))}")
    return {**defaults, **given}


def names_in(text: str) -> list[str]:
    """The names in the value of one of `LISTS`: joined by commas, a comma in a name written %2C."""
    return [unquote(name.strip()) for name in next(csv.reader([text]))]


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
    with Progress(None, "listing files") as progress:
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
            above = links_above.pop(parent)
            for path in (os.path.join(parent, name) for name in folders):
                is_link = os.path.islink(path)
                links_above[path], links = above + is_link, links + is_link
                if links_above[path] > MAX_LINKS_ABOVE or links > MAX_LINKS:
                    raise WsurgeryError(f"{printable(path)} is a link too many to a folder: does one lead back?")
            found += [os.path.relpath(os.path.join(parent, name), folder) for name in names if not name.startswith(".")]
            progress.advance(len(names))
    return sorted(found)


def is_image(path: str) -> bool:
    """Whether the suffix is an image's."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def count_others(files: Sequence[str]) -> tuple[str, ...]:
    """What is to be said of the files of a folder that are no images by their names: how many of each kind."""
    kinds = Counter(PurePosixPath(file).suffix.lower() for file in files if not is_image(file))
    if not kinds:
        return ()
    often = kinds.most_common(_MAX_KINDS)
    listed = [f"{count} {printable(kind, 20) or 'without a suffix'}" for kind, count in often]
    listed += [f"{kinds.total() - sum(count for _, count in often)} others"] if len(kinds) > _MAX_KINDS else []
    return (f"{kinds.total()} files are no images by their names and left out: {', '.join(listed)}",)


def split_name(text: str) -> str:
    """The split that people mean by a word: val is valid, and capitals do not matter; other names stay as they are."""
    return SPLIT_NAMES.get(text.strip().lower(), text)


def stem(path: str) -> str:
    """An image's name without folders and an image's suffix, in lower case."""
    name = path.replace("\\", "/").rpartition("/")[2].lower()
    return name.rpartition(".")[0] if is_image(name) else name


def find_file(files: Sequence[str], names: Sequence[str]) -> str | None:
    """The file of one of these names or patterns, the first before the others, that is in the fewest folders."""
    for name in names:
        matches = [file for file in files if fnmatchcase(PurePosixPath(file).name, name)]
        if matches:
            return min(matches, key=lambda file: file.count("/"))
    return None


class Images:
    """The images below a folder, found as tables write them: by their paths' ends, whatever the suffix and the capitals.

    A file without an image's suffix is found by its whole name, where no image has it.

    Args:
        scheme: for messages.
        folder: where they are.
        below: only those below this folder, which is in it or, of a table, elsewhere.

    Raises:
        UsageError: there is no such folder.
    """

    def __init__(self, scheme: str, folder: Path, below: str = "") -> None:
        files = list_files(folder)
        self.scheme, self.folder, self.files = scheme, folder, files
        found = files
        if below:
            place = Path(os.path.abspath(folder / Path(below).expanduser()))
            if not place.is_dir():
                raise UsageError(f"{scheme}: images={printable(below)}: there is no folder {printable(str(place))}")
            whole = Path(os.path.abspath(folder))
            if place.is_relative_to(whole):
                start = "".join(f"{part}/" for part in place.relative_to(whole).parts)
                found = [file for file in files if file.startswith(start)]
            else:
                found = [(place / file).as_posix() for file in list_files(place)]
        self.paths = [file for file in found if is_image(file)]
        self._others = [file for file in found if not is_image(file)]  # DICOM's have no suffix, often
        self._by_end: list[dict[tuple[str, ...], list[str]]] = []

    def find(self, names: Sequence[str], table: Path, *, skip: bool = False) -> list[str | None]:
        """The path of each image, relative to the folder.

        Of images with one name those count whose folders have the names that the table gives, from the innermost on. The
        outermost may be called otherwise, where the table was written elsewhere, but as many of them in all rows: an image
        that has less of its folders' names than another is another patient's, perhaps, and is not there.

        Args:
            names: what the table has: a name with or without suffix and folders.
            table: for messages.
            skip: whether what is not there is None instead of an error.

        Raises:
            WsurgeryError: an image is not there, or there twice, or two names are of one.
        """
        matched = [self._find(name) for name in names]
        elsewhere = min((other for _, other in matched if other is not None), default=0)
        found = [paths if (other or 0) <= elsewhere else [] for paths, other in matched]
        missing = [name for name, paths in zip(names, found, strict=True) if not paths]
        if missing and (not skip or len(missing) == len(names)):
            packed = any(".zip" in file or ".tar" in file for file in self.files)
            remedy = ": unpack the archives first" if packed else ""
            like = next(
                (paths[0] for name, (paths, _) in zip(names, matched, strict=True) if name == missing[0] and paths), ""
            )
            but = f" (there is {printable(like)}, in another folder than the table says)" if like else ""
            raise WsurgeryError(
                f"{printable(str(table))}: {len(missing)} of {len(names)} images are not there, first "
                f"{printable(missing[0])}{but}{remedy}"
            )
        first: dict[str, int] = {}
        for row, (name, paths) in enumerate(zip(names, found, strict=True)):
            if len(paths) == 1 and (before := first.setdefault(paths[0], row)) != row:
                both = f"{printable(names[before])} and {printable(name)}"
                raise WsurgeryError(f"{printable(str(table))}: {both} are one image, {printable(paths[0])}")
            if len(paths) > 1:
                raise WsurgeryError(
                    f"{self.scheme}: {printable(name)} is there twice, {printable(' and '.join(paths[:2]))}: add "
                    "images=FOLDER"
                )
        return [paths[0] if paths else None for paths in found]

    def _find(self, name: str) -> tuple[list[str], int | None]:
        """The images with the longest end of a name, and how many of its folders they do not have; None of a mere name."""
        end = _end(name)
        found: list[str] = []
        for n in range(1, len(end) + 1):
            if n > len(self._by_end):
                self._by_end.append({})
                for path in self.paths:
                    self._by_end[-1].setdefault(_end(path)[-n:], []).append(path)
                images = frozenset(self._by_end[-1])
                for path in self._others:
                    if (last := _end(path)[-n:]) not in images:
                        self._by_end[-1].setdefault(last, []).append(path)
            narrower = self._by_end[n - 1].get(end[-n:], [])
            if not narrower:
                break
            found = narrower
            if len(found) == 1:
                break
        if not found or len(end) == 1:
            return found, None
        pairs = zip(reversed(end), reversed(_end(found[0])), strict=False)
        return found, len(end) - sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _end(path: str) -> tuple[str, ...]:
    *folders, _ = path.replace("\\", "/").lower().split("/")
    return (*(part for part in folders if part not in ("", ".", "..")), stem(path))


def hold_out(
    scheme: str, splits: Sequence[str], patients: Sequence[str], keys: Mapping[str, str], given: Mapping[str, str]
) -> list[str]:
    """Take the splits that the data does not bring, valid and test, from the patients of its train split.

    Args:
        scheme: for messages.
        splits: (n,), as the data has them: train for all images where it has none.
        patients: (n,).
        keys: `valid` and `test`, parts of the patients, and `seed`; or `fold`, K/N: the K-th of N parts of the patients is
            the test split, and the next one valid.
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
    seed = int(_number(scheme, "seed", keys["seed"], whole=True))
    rows = [row for row, split in enumerate(splits) if split == "train"]
    people = [patients[row] for row in rows]
    for name in ("valid", "test"):
        if name in splits and given.keys() & {name, "fold"}:
            key = "fold" if keys["fold"] else name
            raise UsageError(f"{scheme}: the data has a {name} split of its own: leave {key}= out")
    if keys["fold"]:
        drawn = _fold(scheme, people, keys["fold"], given, seed)
    else:
        fractions = {name: _number(scheme, name, keys[name]) for name in ("valid", "test") if name not in splits}
        rest = 1 - sum(fractions.values())
        if rest < -1e-9:
            raise UsageError(f"{scheme}: valid and test are more than all patients")
        drawn = split_patients(people, {"train": max(rest, 0.0), **fractions}, seed)
    result = list(splits)
    for row, split in zip(rows, drawn, strict=True):
        result[row] = split
    return result


def _fold(scheme: str, patients: Sequence[str], text: str, given: Mapping[str, str], seed: int) -> list[str]:
    fold, _, folds = text.partition("/")
    if not (fold.isdecimal() and folds.isdecimal() and 1 <= int(fold) <= int(folds) <= _MAX_FOLDS and int(folds) > 1):
        raise UsageError(f"{scheme}: fold={printable(text)} is not K/N, as 1/5 to 5/5, with N from 2 to {_MAX_FOLDS}")
    if "test" in given:
        raise UsageError(f"{scheme}: fold={text} says how much is test: leave test= out")
    if len(set(patients)) < int(folds):
        raise UsageError(f"{scheme}: {len(set(patients))} patients do not make {folds} folds")
    part = Fraction(1, int(folds))
    valid = Fraction(str(_number(scheme, "valid", given["valid"]))) if "valid" in given else part
    if part + valid >= 1:
        raise UsageError(
            f"{scheme}: a fold of {folds} and a valid part of {float(valid):g} leave no patient to train on"
        )
    parts = {"test": part, "valid": valid, "train": 1 - part - valid}
    return split_patients(patients, parts, seed, (int(fold) - 1) * part)


def _number(scheme: str, key: str, text: str, *, whole: bool = False) -> float:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= (float("inf") if whole else 1):
        kind = "whole number of at least 0" if whole else "number from 0 to 1"
        raise UsageError(f"{scheme}: {key}={printable(text)} is not a {kind}")
    return value
