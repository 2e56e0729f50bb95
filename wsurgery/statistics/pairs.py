"""Two arms whose seeds share a head and the order of images: exact tests and intervals of their paired differences.

All of it is of sign flips (Fisher 1935): where the differences are symmetric about their centre, as they are for two arms
that do not differ, each pattern of signs is as likely as that observed.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from math import floor, log
from statistics import fmean
from typing import NamedTuple

import numpy as np

from wsurgery.statistics.bootstrap import Interval
from wsurgery.statistics.permutation import EXACT, Significance, in_all, sign_flip


class PairedTest(NamedTuple):
    """What the differences of pairs show.

    Attributes:
        n: how many differences.
        mean: of them.
        ci: interval of their centre; None where so few pairs have none of that level.
        level: the least coverage of `ci`.
        p_greater: one-sided, that they are positive.
        p_less: one-sided, that they are negative.
        least: the smallest that either p can be with so many pairs: 1 / 2^n.
    """

    n: int
    mean: float
    ci: Interval | None
    level: float
    p_greater: float
    p_less: float
    least: float


def paired_test(differences: Sequence[float], *, level: float = 0.9) -> PairedTest:
    """Test paired differences by sign flips, in either direction.

    Args:
        differences: (n,), finite, one a pair, at least one.
        level: of the interval. At 0.9 it lies within a margin where `equivalence` has p of at most 0.05.
    """
    greater, less = sign_flip(differences), sign_flip([-x for x in differences])
    ci = centre_interval(differences, level=level)
    return PairedTest(len(differences), fmean(differences), ci, level, greater.p, less.p, greater.least)


def centre_interval(differences: Sequence[float], *, level: float) -> Interval | None:
    """Return the interval of the centre of symmetric differences: the shifts that sign flips do not reject.

    The means of the 2^n - 1 subsets part the line in 2^n pieces, in each of which the centre lies as probably (Hartigan
    1969). The coverage is at least `level`, and a multiple of 1 / 2^n: with 5 pairs .9375, from the least to the largest.

    Args:
        differences: (n,), finite, one a pair, at least one. Beyond 17 subsets are drawn, from seed 0.
        level: the least coverage.

    Returns:
        Lower and upper bound; None where even all of the line between the outermost means covers less.
    """
    n = len(differences)
    if 2**n <= EXACT:
        subsets = np.array([*product([0.0, 1.0], repeat=n)])[1:]
    else:
        subsets = np.random.default_rng(0).integers(0, 2, (EXACT, n)).astype(float)
        subsets = subsets[subsets.any(axis=1)]
    means = np.sort(subsets @ np.asarray(differences, float) / subsets.sum(axis=1))
    outside = floor((1 - level) / 2 * (len(means) + 1) + 1e-9)  # pieces at each end
    return (float(means[outside - 1]), float(means[-outside])) if outside else None


def equivalence(differences: Sequence[float], *, margin: float) -> Significance:
    """Test that paired differences are less than a margin in size: two one-sided tests (Schuirmann 1987) by sign flips.

    Args:
        differences: (n,), finite, one a pair, at least one.
        margin: above 0, in the unit of the differences: 0.01 of AUC, `log(1.25)` of log steps.

    Returns:
        The test whose p is the larger. `agrees`: all differences are smaller than the margin.
    """
    return in_all([sign_flip([margin + x for x in differences]), sign_flip([margin - x for x in differences])])


def unit_means(by_seed: Mapping[str, float], units: Mapping[str, str]) -> list[float]:
    """Average the values of those seeds that are of one unit, such as a source network, whose effect they share.

    Args:
        by_seed: seed → value.
        units: seed → unit. A seed that is not there is a unit of its own; seeds of all one unit are taken one by one: what
            is then tested is that unit.
    """
    of = {seed: units.get(seed, seed) for seed in by_seed}
    if len(set(of.values())) == 1:
        return list(by_seed.values())
    return [fmean(by_seed[seed] for seed in by_seed if of[seed] == unit) for unit in dict.fromkeys(of.values())]


def log_ratio(a: int | None, b: int | None, last_a: float, last_b: float) -> float:
    """Return the log of the steps of A over those of B, as far as both were watched.

    Who had not got there by then counts as getting there at the next step, for A as for B: so exchanging equal arms
    changes the sign and nothing else, which sign flips need. Where that happened the ratio is only a bound of the true one.

    Args:
        a: steps to a threshold, None where the run never got there; 0 counts as 1.
        b: those of its partner.
        last_a: the last step up to which A was watched; infinite only where it got there.
        last_b: that of B.
    """
    past = min(last_a, last_b) + 1
    steps_a, steps_b = (max(1, past if steps is None else min(steps, past)) for steps in (a, b))
    return log(steps_a / steps_b)


def late(a: int | None, b: int | None, last_a: float, last_b: float) -> tuple[bool, bool]:
    """Say whether A, and whether B, was not there as far as both were watched, so that `log_ratio` is but a bound.

    Args are those of `log_ratio`.
    """
    past = min(last_a, last_b) + 1
    return a is None or a > past, b is None or b > past
