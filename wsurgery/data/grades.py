"""The five grades of diabetic retinopathy (ICDR scale) as labels, one-hot or cumulative, and who is to be referred."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRADES = ("none", "mild", "moderate", "severe", "proliferative")
REFERABLE = 2  # moderate or worse


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
