"""Files of claims: a claim a line, `KIND NAME NAME [KEY=VALUE] : SENTENCE`; `#` begins a comment."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from wsurgery.errors import UsageError, printable
from wsurgery.untrusted import read_regular

FACTOR, MARGIN = 1.25, 0.01  # of steps, and of AUC: within which two arms are alike, where a line says no other margin
_MAX_FILE = 1 << 20  # bytes


class Line(NamedTuple):
    """A line of a file of claims.

    Attributes:
        kind: one of `KINDS`.
        names: of arms or comparisons.
        options: `margin`, `label`, `layers` or `except`.
        sentence: the claim in words.
        where: file and line, for a message.
    """

    kind: str
    names: tuple[str, ...]
    options: Mapping[str, str]
    sentence: str
    where: str

    def margin(self, default: float) -> float:
        """Return the margin that it says, or the default."""
        return float(self.options.get("margin", default))


class Kind(NamedTuple):
    """A kind of claim.

    Attributes:
        takes: what its names are, in words, for a message.
        number: how many they are.
        options: the keys that it has.
        across: it is about several networks.
    """

    takes: str
    number: int
    options: tuple[str, ...] = ()
    across: bool = False


KINDS = {
    "faster": Kind("ARM than ARM", 2, ("label",)),
    "as-fast": Kind("ARM ARM", 2, ("margin",)),
    "higher-auc": Kind("ARM than ARM", 2),
    "as-high": Kind("ARM ARM", 2, ("margin",)),
    "more-alike": Kind("COMPARISON than COMPARISON", 2, ("layers",)),
    "most-alike-below": Kind("COMPARISON than COMPARISON", 2),
    "moves-least-below": Kind("ARM", 1),
    "stays-alike": Kind("COMPARISON", 1),
    "larger-gain": Kind("ARM over ARM", 2, ("except",), across=True),
    "shrinking-gap": Kind("ARM over ARM", 2, across=True),
    "moves-less": Kind("ARM", 1, ("except",), across=True),
}


def read_claims(path: Path) -> list[Line]:
    """Read a file of claims.

    Raises:
        UsageError: a line is none; the message says which, and what its kind takes.
        OSError: the file cannot be read.
    """
    try:
        text = read_regular(path, _MAX_FILE).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{printable(str(path))} is not UTF-8 text") from None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            lines.append(_read_line(line, f"{printable(str(path))}, line {number}"))
    return lines


def _read_line(line: str, where: str) -> Line:
    words, colon, sentence = line.partition(" : ")
    kind, *rest = words.split() or [""]
    if kind not in KINDS:
        raise UsageError(f"{where}: {printable(kind, 40)} is no kind of claim; there are {', '.join(KINDS)}")
    names = tuple(word for word in rest if "=" not in word)
    given = [word.split("=", 1) for word in rest if "=" in word]
    options = {key: value for key, value in given}
    known = KINDS[kind]
    sound = len(names) == known.number and len(given) == len(options) and set(options) <= set(known.options)
    if not colon or not sentence.strip() or not sound:
        keys = "".join(f" [{key}=VALUE]" for key in known.options)
        raise UsageError(
            f"{where}: a claim of this kind is `{kind} {known.takes.replace(' than', '').replace(' over', '')}{keys} : SENTENCE`"
        )
    for key, value in options.items():
        takes, is_one = _VALUES[key]
        if not is_one(value, kind):
            raise UsageError(f"{where}: {key}={printable(value, 40)}: give {takes}")
    return Line(kind, names, options, sentence.strip(), where)


def _is_margin(value: str, kind: str) -> bool:
    try:
        return math.isfinite(float(value)) and float(value) > (1 if kind == "as-fast" else 0)
    except ValueError:
        return False


def _are_names(value: str, kind: str) -> bool:
    return all(value.split(","))


def _are_layers(value: str, kind: str) -> bool:
    return _are_names(value, kind) and not re.fullmatch("top0+", value)


# What a value is, in words, and whether one of a claim of some kind is so.
_VALUES: Mapping[str, tuple[str, Callable[[str, str], bool]]] = {
    "margin": ("a factor above 1 of steps, or an AUC above 0", _is_margin),
    "label": ("a label, with _ for each space", _are_names),
    "layers": ("all, top2 for the two topmost, or names as conv1,block1", _are_layers),
    "except": ("networks, as resnet50,resnet18", _are_names),
}
