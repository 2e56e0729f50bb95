"""Exact permutation tests of a few seeds, and the words for what they show.

With few seeds no approximation holds, so every relabelling counts (Fisher 1935).
"""

from collections.abc import Sequence
from math import factorial
from typing import NamedTuple

import numpy as np

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


def sign_flip(differences: Sequence[float]) -> Significance:
    """Test that paired differences are positive: one-sided, exact; the share of all 2^n signs whose sum is no smaller.

    Sums that differ by less than 1e-9 of the sum of the sizes are equal: .9504 - .9499 is not .9506 - .9501 in floats.

    Args:
        differences: (n,), finite, one a pair, at least one. Beyond 17 signs are drawn, from seed 0.
    """
    n = len(differences)
    exact = 2**n <= EXACT
    rng = np.random.default_rng(0)
    sums = np.zeros(1 if exact else EXACT)
    for x in differences:
        sums = np.concatenate([sums + x, sums - x]) if exact else sums + rng.choice([x, -x], EXACT)
    rounding = 1e-9 * sum(map(abs, differences))
    as_large = np.count_nonzero(sums >= sum(differences) - rounding)
    p = as_large / 2**n if exact else (as_large + 1) / (EXACT + 1)
    return Significance(p, 0.5**n, f"{n} pair{'s' if n > 1 else ''}", min(differences) > 0)


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, Significance]:
    """Test that y grows with x: Spearman's ρ, and the share of the pairings whose ρ is no smaller, one-sided.

    All n! pairings of up to 8 pairs count, else 50,000 of them, drawn from seed 0.

    Args:
        x: (n,), n at least 3, not all the same.
        y: (n,).
    """
    from scipy.stats import permutation_test, rankdata  # takes a second; training knows this module, too

    # Ranks are multiples of a half, so that sums of their products are exact, and equal ones compare as equal.
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


def in_all(tests: Sequence[Significance]) -> Significance:
    """Join tests of which all must succeed: the largest p holds for that, uncorrected (Berger 1982)."""
    return max(tests, key=lambda test: test.p)._replace(agrees=all(test.agrees for test in tests))


def verdict(test: Significance) -> str:
    """Say whether a claim of a direction is shown."""
    if test.least >= ALPHA:
        tail = "suggestive: every seed agrees" if test.agrees else "not suggested"
        return f"too few seeds to show it (smallest possible p = {test.least:.2g}); {tail}"
    return f"{SHOWN if test.p < ALPHA else NOT_SHOWN} (p = {test.p:.2g}, {test.seeds})"


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p-values so that any of them is below α by chance in α of all such pages (Holm 1979)."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted
