"""How good one network's predictions are: AUCs with their confidence intervals."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsurgery.statistics.auc import auc_per_label, macro
from wsurgery.statistics.bootstrap import Interval, bootstrap_aucs, percentile_interval
from wsurgery.statistics.delong import delong
from wsurgery.training.predictions import Predictions

Aucs = dict[str, float | None]


def aucs_of(found: Predictions) -> tuple[Aucs, Aucs]:
    """Return the AUC of each of the k labels and, apart from them, of `referable` where they are grades."""
    aucs = list(auc_per_label(found.labels, found.scores, found.names).items())
    return dict(aucs[: found.count]), dict(aucs[found.count :])


def top1_accuracy(found: Predictions) -> float:
    """Return the share of images whose likeliest class is theirs, where classes exclude each other."""
    own = slice(found.count)
    return float((found.scores[:, own].argmax(1) == (found.labels[:, own] == 1).argmax(1)).mean())


def loss_of(found: Predictions) -> float:
    """Return what training makes smaller, in nats, labels weighted alike: the mean cross-entropy over the labels that are known,
    or, where classes exclude each other, over the images."""
    labels, scores = found.labels[:, : found.count], found.scores[:, : found.count]
    counts = labels == 1 if found.exclusive else ~np.isnan(labels)
    return float(np.logaddexp(0, np.where(labels == 1, -scores, scores))[counts].mean())


def evaluate(found: Predictions, *, resamples: int, seed: int) -> dict[str, Any]:
    """Return what `eval --json` holds of predictions, but for the split.

    Args:
        found: one network's predictions.
        resamples: samples of the bootstrap; 0 for none.
        seed: of the bootstrap.
    """

    def ci(columns: list[int]) -> Interval | None:
        return (
            delong(found.labels[:, columns], found.scores[:, columns], patients=found.patients).ci if columns else None
        )

    def drawn(values: NDArray[np.float64]) -> Interval | None:
        interval = percentile_interval(values)
        no_width = interval and interval[0] == interval[1]  # as DeLong's, it would say nothing of other patients
        return None if no_width else interval

    own, more = aucs_of(found)
    unit = found.unit
    samples = bootstrap_aucs(found.labels, found.scores, found.patients, resamples=resamples, seed=seed)
    scores = [
        {
            "auc": auc,
            "ci": None if auc is None else ci([i]),
            "bootstrap_ci": drawn(samples[:, i]),
            "left_out": int(np.isnan(samples[:, i]).sum()),
        }
        for i, auc in enumerate([*own.values(), *more.values()])
    ]
    scored = [i for i, auc in enumerate(own.values()) if auc is not None]
    means = samples[:, scored].mean(axis=1) if scored else np.full(resamples, np.nan)
    return {
        "labels": dict(zip(own, scores, strict=False)),
        "macro_auc": macro(own),
        **({"top1": top1_accuracy(found)} if found.exclusive else {}),
        "n": len(found.paths),
        **dict(zip(more, scores[found.count :], strict=True)),
        "macro_ci": drawn(means) if all(scores[i]["bootstrap_ci"] for i in scored) else None,
        "macro_delong_ci": ci(scored),
        "macro_left_out": int(np.isnan(means).sum()),
        "bootstrap": resamples,
        "independent": unit,
        "units": len(set(found.patients)),
    }
