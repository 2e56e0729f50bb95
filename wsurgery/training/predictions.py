"""What a network says of each image, as `eval --predictions` writes it."""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsurgery.checkpoint import AtomicFile
from wsurgery.data.dataset import Dataset
from wsurgery.data.grades import referable
from wsurgery.data.manifest import are_known
from wsurgery.errors import WsurgeryError, csv_text, plain_cell, printable, table_cell
from wsurgery.untrusted import short_lines


@dataclass(frozen=True, eq=False)
class Predictions:
    """One network's scores of n images.

    Attributes:
        source: what to call them in an error.
        paths: (n,), of the images, all different.
        patients: (n,); an image whose patient is not known has its own path here.
        names: the k labels and, where they are the grades of retinopathy, `referable` after them.
        labels: (n, k) or (n, k + 1): 0, 1, or NaN for unknown.
        scores: as `labels`, the log odds of the probability (its logit), which tell apart what rounds to 1. Of a file
            without them, the probability.
        count: k, the labels of the macro AUC.
        exclusive: whether the labels are classes of which each image has exactly one, and the probabilities by softmax.
    """

    source: str
    paths: tuple[str, ...]
    patients: tuple[str, ...]
    names: tuple[str, ...]
    labels: NDArray[np.float64]
    scores: NDArray[np.float64]
    count: int
    exclusive: bool = False

    @property
    def unit(self) -> Literal["patients", "images"]:
        """What is independent, and can be resampled: images where no patient is known."""
        return "patients" if are_known(self.patients, self.paths) else "images"


def from_logits(source: str, dataset: Dataset, logits: NDArray[np.float32], *, exclusive: bool = False) -> Predictions:
    """Return a network's logits, (n, k), as predictions.

    Args:
        source: what messages call the network.
        dataset: the n images.
        logits: what it says of them.
        exclusive: its probabilities are by softmax. The scores are the log odds of each: the logistic function gives them
            back.

    Raises:
        WsurgeryError: the data have other labels than the network outputs, or, with `exclusive`, rows without exactly one.
    """
    names, labels, scores = dataset.label_names, dataset.labels.astype(np.float64), logits.astype(np.float64)
    if logits.shape[1] != len(names):
        raise WsurgeryError(
            f"{printable(source)} has {logits.shape[1]} outputs, the data {len(names)} labels: evaluate it on data with the "
            f"labels that it was trained on, or train it with wsurgery new-head --num-classes {len(names)}"
        )
    if exclusive:
        where = f"{printable(source)} tells classes apart that exclude each other (--loss softmax): the data"
        require_exclusive(where, labels, dataset.paths)
        scores = _log_odds(scores)
    graded = referable(names, labels, scores)
    if graded:
        names = (*names, "referable")
        labels, scores = (np.column_stack(pair) for pair in ((labels, graded[0]), (scores, graded[1])))
    return Predictions(source, dataset.paths, dataset.patients, names, labels, scores, logits.shape[1], exclusive)


def require_exclusive(where: str, labels: NDArray[np.floating[Any]], paths: Sequence[str]) -> None:
    """Require labels, (n, k), of which exactly one a row is 1; `paths` are the n images.

    Raises:
        WsurgeryError: how many rows are otherwise.
    """
    wrong = (labels == 1).sum(1) != 1
    unknown = wrong & np.isnan(labels).all(1)
    if wrong.any() and (unknown == wrong).all():
        raise WsurgeryError(
            f"{where}: {int(wrong.sum()):,} of {len(labels):,} rows have no class, first "
            f"{printable(paths[int(wrong.argmax())])}: leave them out of the table"
        )
    if wrong.any():
        raise WsurgeryError(
            f"{where}: {int(wrong.sum()):,} of {len(labels):,} rows do not have exactly one label that is 1, first "
            f"{printable(paths[int(wrong.argmax())])}: labels that may be true together are for --loss bce"
        )


def _log_odds(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log odds of the softmax probabilities, (n, k): each logit less the log-sum-exp of the others."""
    n, k = logits.shape
    below, above = (np.full((n, k + 1), -np.inf) for _ in range(2))
    np.logaddexp.accumulate(logits, axis=1, out=below[:, 1:])
    np.logaddexp.accumulate(logits[:, ::-1], axis=1, out=above[:, 1:])
    return logits - np.logaddexp(below[:, :-1], above[:, -2::-1])


def write_predictions(path: Path, found: Predictions, *, force: bool = False) -> None:
    """Write predictions as CSV: path, patient, labels, probabilities, their logits, and `referable` with its own last.

    Probabilities above 0.9999999999999999 are written as 1, and tie; their logits, which have all digits, do not.
    """
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the probability 0
        probabilities = 1 / (1 + np.exp(-found.scores))
    columns = [*range(found.count)], [*range(found.count, len(found.names))]
    header = [[f"{kind}{found.names[i]}" for i in some] for some in columns for kind in ("", "p_", "logit_")]
    rows: list[list[object]] = [["path", "patient", *map(table_cell, chain(*header))]]
    table = zip(found.paths, found.patients, found.labels, probabilities, found.scores, strict=True)
    for path_of, patient, labels, *numbers in table:
        known = ["" if np.isnan(label) else int(label) for label in labels]
        cells = [[row[i] for i in some] for some in columns for row in (known, *numbers)]
        rows.append([table_cell(path_of), table_cell(patient), *chain(*cells)])
    with AtomicFile(path, force=force) as stream:
        stream.write(csv_text(rows).encode())


def read_predictions(path: Path) -> Predictions:
    """Read a file of `eval --predictions`: the logits, or the probabilities of a file without them.

    Raises:
        WsurgeryError: not such a file, one that names an image twice, or probabilities alone that are rounded to 0 or 1.
    """
    where = printable(str(path))
    with path.open(newline="", encoding="utf-8") as stream:
        try:
            header, *rows = csv.reader(short_lines(stream))
        except (ValueError, csv.Error, WsurgeryError):  # empty, no text, a NUL, a line without an end
            raise WsurgeryError(f"{where} is no table of predictions: write it with eval --predictions") from None
    header = [*map(plain_cell, header)]
    kinds, count, names = _columns(header, where)
    width = len(names)

    def columns_of(kind: int) -> list[int]:
        own = [2 + kind * count + i for i in range(count)]
        return own + [2 + len(kinds) * count + kind for _ in names[count:]]

    at = columns_of(0) + columns_of(len(kinds) - 1)  # the labels and the last kind, which are the scores
    table = np.array([_numbers(row, at, width, f"{where} row {i}") for i, row in enumerate(rows, 1)])
    if not rows:
        raise WsurgeryError(f"{where} holds no image: write it with eval --predictions")
    paths, patients = (tuple(plain_cell(row[i]) for row in rows) for i in (0, 1))
    image, times = Counter(paths).most_common(1)[0]
    if times > 1:
        raise WsurgeryError(f"{where} names image {printable(image)} {times} times: write it with eval --predictions")
    labels, scores = table[:, :width], table[:, width:]
    rounded = np.isin(scores, (0, 1)).sum() if kinds[-1] == "p_" else 0
    if rounded:
        raise WsurgeryError(
            f"{where} has no logits, and {rounded:,} of its probabilities are rounded to 0 or 1, so that they tie: "
            "write it again with eval --predictions"
        )
    return Predictions(where, paths, patients, names, labels, scores, count)


def align(reference: Predictions, others: Sequence[Predictions]) -> list[Predictions]:
    """Return predictions with the images in the order of `reference`.

    Raises:
        WsurgeryError: they are not of the same images with the same labels; names the first image at which they differ.
    """
    aligned = []
    for other in others:
        both = f"{printable(reference.source)} and {printable(other.source)}"
        if other.names != reference.names:
            raise WsurgeryError(
                f"{both} have different labels, {_list(reference.names)} and {_list(other.names)}: compare networks of one task"
            )
        _require_same_images(reference, other)
        row_of = {path: row for row, path in enumerate(other.paths)}
        rows = [row_of[path] for path in reference.paths]
        labels = other.labels[rows]
        differ = (labels != reference.labels) & ~(np.isnan(labels) & np.isnan(reference.labels))
        if differ.any():
            image = printable(reference.paths[int(differ.any(axis=1).argmax())])
            raise WsurgeryError(f"{both} have different labels of image {image}: evaluate both on the same data")
        aligned.append(
            replace(other, paths=reference.paths, patients=reference.patients, labels=labels, scores=other.scores[rows])
        )
    return aligned


def _require_same_images(a: Predictions, b: Predictions) -> None:
    for here, there in ((a, b), (b, a)):
        known = set(there.paths)
        missing = next((path for path in here.paths if path not in known), None)
        if missing is not None:
            raise WsurgeryError(
                f"image {printable(missing)} is in {printable(here.source)} and not in {printable(there.source)}: "
                "a paired test needs the same images, so evaluate both on the same data and split"
            )


def _columns(header: Sequence[str], where: str) -> tuple[tuple[str, ...], int, tuple[str, ...]]:
    """Return the kinds of columns a label has, by prefix, how many labels the macro AUC takes, and all labels' names."""
    columns = list(header[2:])
    for kinds in (("", "p_", "logit_"), ("", "p_")):
        graded = columns[-len(kinds) :] == [f"{kind}referable" for kind in kinds] and len(columns) > len(kinds)
        own = columns[: -len(kinds)] if graded else columns
        names = own[: len(own) // len(kinds)]
        if names and list(header[:2]) == ["path", "patient"] and own == [f"{kind}{x}" for kind in kinds for x in names]:
            return kinds, len(names), (*names, *(["referable"] if graded else []))
    raise WsurgeryError(f"{where} is no table of predictions: write it with eval --predictions")


def _numbers(row: Sequence[str], at: Sequence[int], width: int, where: str) -> list[float]:
    """Return a row's labels, NaN for those that are empty, and its scores."""
    try:
        labels = [float(row[i] or "nan") for i in at[:width]]
        scores = [float(row[i]) for i in at[width:]]
    except (ValueError, IndexError):
        raise WsurgeryError(f"{where} is broken: write the file again with eval --predictions") from None
    if not all(label in (0, 1) or math.isnan(label) for label in labels) or any(map(math.isnan, scores)):
        raise WsurgeryError(
            f"{where}: a label is neither 0 nor 1, or a logit or probability no number: write the file again"
        )
    return [*labels, *scores]


def _list(names: Sequence[str]) -> str:
    return printable(", ".join(names), 60)
