"""Which of two groups of runs gets there sooner, where some never did: tests for censored steps."""

from collections.abc import Sequence
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

_EXACT = 10_000  # assignments of runs to groups that are all tried


def log_rank_test(
    a: Sequence[int | None], b: Sequence[int | None], last_a: Sequence[float], last_b: Sequence[float]
) -> tuple[float, bool]:
    """Return the two-sided p-value of the log-rank test of two groups of runs.

    Where there are at most 10,000 ways to assign the runs to the groups all are tried: the p-value is that of the permutation
    distribution of the log-rank numerator (observed less expected events). The normal approximation, which is
    scipy's and serves larger groups, makes too much of a few seeds: three against three would reach p = 0.02, where the
    least possible is 0.1.

    Args:
        a: steps to the threshold of the runs of A, None where a run never got there.
        b: those of B.
        last_a: the last step at which each run of A was evaluated.
        last_b: those of B.

    Returns:
        p, 1 where no run got there, and whether it is exact.
    """
    exact = comb(len(a) + len(b), len(a)) <= _EXACT
    got_there = np.array([steps is not None for steps in (*a, *b)])
    times = np.array(
        [last if steps is None else steps for steps, last in zip((*a, *b), (*last_a, *last_b), strict=True)]
    )
    if not exact:
        from scipy.stats import CensoredData, logrank  # takes a second

        data = [
            CensoredData(uncensored=times[group & got_there], right=times[group & ~got_there])
            for group in (np.arange(len(times)) < len(a), np.arange(len(times)) >= len(a))
        ]
        with np.errstate(invalid="ignore"):  # 0 / 0 where no run got there, or all did at the same step
            p = float(logrank(*data).pvalue)
        return 1.0 if np.isnan(p) else p, False
    scores = log_rank_scores(times, got_there)
    ways = np.array(list(combinations(range(len(scores)), len(a))))
    sums = scores[ways].sum(axis=1)
    ours, rounding = sums[0], 1e-9  # the first of the combinations is (0, ..., len(a) - 1)
    tail = min((sums <= ours + rounding).mean(), (sums >= ours - rounding).mean())
    return min(1.0, 2 * float(tail)), True


def log_rank_scores(times: NDArray[np.int64], events: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return each run's event less its cumulative hazard; a group's sum is its observed less its expected events.

    Args:
        times: (n,), when it happened, or until when it had not.
        events: (n,), whether it happened.

    Returns:
        (n,). The hazard is Nelson and Aalen's, of all runs together.
    """
    moments = np.unique(times[events])
    at_risk = (times[:, None] >= moments).sum(axis=0)
    happened = ((times[:, None] == moments) & events[:, None]).sum(axis=0)
    hazard = (times[:, None] >= moments) @ (happened / at_risk)
    scores: NDArray[np.float64] = events - hazard
    return scores
