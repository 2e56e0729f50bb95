"""Grades as labels, one-hot or cumulative; the five of diabetic retinopathy (ICDR scale), and who is to be referred."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsurgery.data.adapters import names_in
from wsurgery.errors import UsageError, printable

GRADES = ("none", "mild", "moderate", "severe", "proliferative")
# What people write, without words such as DR, → the grade.
_WORDS = {name: i for i, name in enumerate(GRADES)}
_WORDS |= {"no": 0, "nodr": 0, "normal": 0, "healthy": 0, "proliferate": 4, "pdr": 4}
_FILLING = re.compile(r"\b(diabetic|retinopathy|non ?proliferative|n?pdr|dr|apparent|disease|grade|stage)\b")
REFERABLE = 2  # moderate or worse


def in_order(scheme: str, names: Sequence[str], order: str, *, ordinal: bool) -> list[str]:
    """Put classes in the order of their labels.

    Args:
        scheme: for messages.
        names: the classes, each once, sorted.
        order: all of them from the lowest, joined by commas; empty where nobody said it.
        ordinal: they are grades, and their order means something. Numbers sort as numbers, also behind one word that all
            begin with or before other words; the words for grades that people use have the order of `GRADES`.

    Raises:
        UsageError: `order` is not all classes, or the order of grades cannot be known.
    """
    if order:
        chosen = names_in(order)
        if sorted(chosen) != sorted(names):
            raise UsageError(
                f"{scheme}: order={printable(order)} is not all classes, each once: there are {_listed(names)}"
            )
        return chosen
    if set(names) == set(GRADES):
        return list(GRADES)
    if not ordinal:
        return list(names)
    ranks = _numbers(names) or [_rank(name) for name in names]
    if min(ranks, default=0) < 0 or len(set(ranks)) < len(names):
        raise UsageError(
            f"{scheme}: which of {_listed(names)} is the lowest grade? Say order= with all of them, joined by commas"
        )
    return [name for _, name in sorted(zip(ranks, names, strict=True))]


def order_of(names: Sequence[str]) -> str:
    """Say which grade is above which."""
    return f"grades, from the lowest: {printable(' < '.join(names), 1000)}"


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names), 1000)


def _numbers(names: Sequence[str]) -> list[float]:
    """The number that each name is, begins with, or ends in behind a word that is the same in all; nothing if one has none."""
    found = [re.fullmatch(r"(\d+(?:\.\d+)?)(?:[\W_].*)?", name) for name in names]
    if not all(found):
        found = [re.fullmatch(r"\D*?(\d+(?:\.\d+)?)", name) for name in names]
        if len({name.rstrip("0123456789.") for name in names}) > 1:
            return []
    return [float(match[1]) for match in found if match] if all(found) else []


def _rank(name: str) -> int:
    words = re.sub(r"[\W_]+", " ", name).strip().lower()
    bare = " ".join(_FILLING.sub(" ", words).split())
    return _WORDS.get(words, _WORDS.get(bare, -1))


def grade_labels(
    grades: Sequence[int | None], names: Sequence[str], *, ordinal: bool
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Turn grades into labels.

    Args:
        grades: (n,), indices into `names`; None where the grade is not known.
        names: the k grades, from the lowest.
        ordinal: cumulative instead of one-hot: one label for each grade but the lowest, 1 where it is reached.

    Returns:
        The labels, (n, k) or (n, k - 1): 0, 1, or NaN where the grade is not known; and their names.
    """
    values = np.array([np.nan if grade is None else grade for grade in grades], np.float32)[:, None]
    steps = np.arange(len(names))
    labels = values >= steps[1:] if ordinal else values == steps
    label_names = tuple(f"at_least_{name}" for name in names[1:]) if ordinal else tuple(names)
    return np.where(np.isnan(values), np.nan, labels).astype(np.float32), label_names


def referable(
    label_names: Sequence[str], labels: NDArray[np.floating[Any]], logits: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Whether each eye is to be referred (moderate or worse), and how strongly a network says so.

    Args:
        label_names: (k,).
        labels: (n, k): 0, 1, or NaN.
        logits: (n, k).

    Returns:
        The label, (n,): 0, 1, or NaN. The score, (n,): for one-hot labels the log odds that the probabilities of the
        referable grades have against those of the others, for cumulative ones that label's logit. None where the labels
        are not the five grades.
    """
    from scipy.special import log_expit, logsumexp

    truth, score = labels.astype(np.float64), logits.astype(np.float64)
    if tuple(label_names) == GRADES:
        log_p = log_expit(score)
        odds = logsumexp(log_p[:, REFERABLE:], axis=1) - logsumexp(log_p[:, :REFERABLE], axis=1)
        return truth[:, REFERABLE:].max(axis=1), odds
    if tuple(label_names) == grade_labels([], GRADES, ordinal=True)[1]:
        return truth[:, REFERABLE - 1], score[:, REFERABLE - 1]
    return None
