"""Exact permutation tests of a few seeds, and the words for what they show.

With few seeds no approximation holds, so every relabelling counts (Fisher 1935; Mann and Whitney 1947). A run that never
passed a threshold is only known within bounds: callers give the bound that speaks against the claim.
"""

from collections.abc import Sequence
from math import comb, factorial
from typing import NamedTuple

import numpy as np
from scipy.stats import permutation_test, rankdata

ALPHA = 0.05
EXACT = 2**17  # patterns of signs that are all tried
SHOWN, NOT_SHOWN = "shown here", "not shown here"


class Significance(NamedTuple):
    """What a test found.

    Attributes:
        p: its p-value.
        least: the smallest p that so few seeds can give.
        seeds: how many there were, in words: `5 and 5 seeds`, `5 pairs`.
        agrees: every seed agrees with the claim: the groups do not overlap, or all differences are positive.
    """

    p: float
    least: float
    seeds: str
    agrees: bool


def mann_whitney(low: Sequence[float], high: Sequence[float]) -> Significance:
    """Test that what gave `low` lies below what gave `high`: one-sided Mann–Whitney, exact, ties counted as half.

    The p-value is the share of all C(n + m, n) relabellings whose U, or sum of ranks, is no larger than that observed.
    They are counted by the shift algorithm of Streitberg and Röhmel (1986), which ties do not disturb.

    Args:
        low: (n,), one number a seed; infinite ones are allowed.
        high: (m,).
    """
    n, m = len(low), len(high)
    doubled = (2 * rankdata([*low, *high])).astype(int)  # ranks of ties are multiples of a half
    counts = np.zeros((n + 1, doubled.sum() + 1))  # [k, s]: subsets of k runs whose doubled ranks sum to s
    counts[0, 0] = 1
    for rank in doubled:
        counts[1:, rank:] += counts[:-1, :-rank]
    ways = comb(n + m, n)
    p = counts[n, : doubled[:n].sum() + 1].sum() / ways
    return Significance(float(p), 1 / ways, f"{n} and {m} seeds", max(low) < min(high))


def sign_flip(differences: Sequence[float]) -> Significance:
    """Test that paired differences are positive: one-sided, exact; the share of all 2^n signs whose sum is no smaller.

    Args:
        differences: (n,), finite, one a pair. Beyond 17 signs are drawn, from seed 0.
    """
    n = len(differences)
    if n == 1:  # too few for scipy
        p = 0.5 if differences[0] > 0 else 1.0
    else:
        p = permutation_test(
            (differences,),
            np.sum,
            permutation_type="samples",
            alternative="greater",
            n_resamples=EXACT,
            batch=10_000,
            rng=0,
        ).pvalue
    return Significance(float(p), 0.5**n, f"{n} pair{'s' if n > 1 else ''}", min(differences) > 0)


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, Significance]:
    """Test that y grows with x: Spearman's ρ, and the share of the pairings whose ρ is no smaller, one-sided.

    All n! pairings of up to 8 pairs count, else 50,000 of them, drawn from seed 0.

    Args:
        x: (n,), n at least 3, not all the same.
        y: (n,).
    """
    ranks = rankdata(x), rankdata(y)
    rho = float(np.corrcoef(*ranks)[0, 1])
    p = permutation_test(
        (ranks[0],),
        lambda a: a @ ranks[1],
        permutation_type="pairings",
        alternative="greater",
        n_resamples=50_000,
        rng=0,
    ).pvalue
    return rho, Significance(float(p), 1 / factorial(len(x)), f"{len(x)} pairs", rho > 0.999)


def two_sided(one: Significance, other: Significance) -> Significance:
    """Join the tests of both directions into that of a difference, whatever its direction: twice the smaller p."""
    p = min(1.0, 2 * min(one.p, other.p))
    return Significance(p, min(1.0, 2 * one.least), one.seeds, one.agrees or other.agrees)


def in_all(tests: Sequence[Significance]) -> Significance:
    """Join tests of which all must succeed: the largest p holds for that, uncorrected (Berger 1982)."""
    return max(tests, key=lambda test: test.p)._replace(agrees=all(test.agrees for test in tests))


def verdict(test: Significance) -> str:
    """Say whether a claim of a direction is shown."""
    if test.least >= ALPHA:
        tail = "suggestive: every seed agrees" if test.agrees else "not suggested"
        return f"too few seeds to show it (smallest possible p = {test.least:.2g}); {tail}"
    return f"{SHOWN if test.p < ALPHA else NOT_SHOWN} (p = {test.p:.2g}, {test.seeds})"


def verdict_of_equality(test: Significance) -> str:
    """Say whether a two-sided test finds a difference. That it finds none does not show that there is none."""
    if test.least >= ALPHA:
        return f"too few seeds to find a difference (smallest possible p = {test.least:.2g})"
    return f"{'a difference' if test.p < ALPHA else 'no difference'} found (p = {test.p:.2g}, {test.seeds})"
