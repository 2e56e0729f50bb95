"""The tests of significance against plain enumeration."""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, spearmanr

from wsurgery.statistics.permutation import (
    NOT_SHOWN,
    SHOWN,
    correlation,
    in_all,
    mann_whitney,
    sign_flip,
    two_sided,
    verdict,
    verdict_of_equality,
)

SOONER, LATER = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]


def u_statistic(low: list[float], high: list[float]) -> float:
    """How many pairs speak against `low` being lower, a tie as half."""
    return sum((a > b) + (a == b) / 2 for a, b in product(low, high))


def by_enumeration(low: list[float], high: list[float]) -> float:
    pooled = [*low, *high]
    observed, smaller, ways = u_statistic(low, high), 0, 0
    for chosen in combinations(range(len(pooled)), len(low)):
        rest = [x for i, x in enumerate(pooled) if i not in chosen]
        smaller += u_statistic([pooled[i] for i in chosen], rest) <= observed
        ways += 1
    return smaller / ways


@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (4, 2), (5, 5), (3, 6)])
def test_mann_whitney_counts_every_relabelling_ties_and_infinities_included(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        low, high = ([math.inf if x > 4 else float(x) for x in rng.integers(0, 6, n)] for n in sizes)
        found = mann_whitney(low, high)
        assert found.p == pytest.approx(by_enumeration(low, high))
        assert found.least == pytest.approx(1 / math.comb(sum(sizes), sizes[0]))
        assert found.agrees == (u_statistic(low, high) == 0)
        assert found.p >= found.least * (1 - 1e-12)


def test_mann_whitney_is_scipys_where_there_are_no_ties_and_many_runs() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 30), rng.normal(0.5, 1, 25)
    expected = mannwhitneyu(low, high, alternative="less", method="exact").pvalue
    assert mann_whitney(list(low), list(high)).p == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_sign_flip_counts_every_pattern_of_signs(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        differences = [float(x) for x in rng.integers(-3, 8, n)]
        signs = np.array(list(product([1, -1], repeat=n)))
        expected = float(np.mean(signs @ np.abs(differences) >= sum(differences)))
        assert sign_flip(differences).p == pytest.approx(expected)


def test_swapping_the_groups_leaves_a_two_sided_p_as_it_is() -> None:
    a, b = [1, 2, 2, 5], [2, 4, 6, 7, 8]
    both = two_sided(mann_whitney(a, b), mann_whitney(b, a))
    assert both == two_sided(mann_whitney(b, a), mann_whitney(a, b))._replace(seeds=both.seeds)
    assert both.p == pytest.approx(2 * by_enumeration(a, b))
    assert two_sided(mann_whitney(a, a), mann_whitney(a, a)).p == 1


def test_all_layers_hold_only_if_the_weakest_does() -> None:
    strong, weak = sign_flip([1] * 5), sign_flip([1, 1, 1, 1, -1])
    assert in_all([strong, weak])[:2] == weak[:2]
    assert in_all([strong, weak, strong]).agrees is False


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (SOONER, LATER, f"{SHOWN} (p = 0.004, 5 and 5 seeds)"),  # 1 / 252
        (SOONER, [math.inf] * 5, f"{SHOWN} (p = 0.004, 5 and 5 seeds)"),
        ([1, 2, 3, 4, 6.5], LATER, f"{SHOWN} (p = 0.0079, 5 and 5 seeds)"),
        (LATER, SOONER, f"{NOT_SHOWN} (p = 1, 5 and 5 seeds)"),
        ([math.inf] * 5, [math.inf] * 5, f"{NOT_SHOWN} (p = 1, 5 and 5 seeds)"),
        (SOONER[:2], LATER[:2], "too few seeds to show it (smallest possible p = 0.17); suggestive: every seed agrees"),
        (SOONER[:3], LATER[:3], "too few seeds to show it (smallest possible p = 0.05); suggestive: every seed agrees"),
        ([1, 6], LATER[:2], "too few seeds to show it (smallest possible p = 0.17); not suggested"),  # a tie
        (SOONER[:3], LATER[:4], f"{SHOWN} (p = 0.029, 3 and 4 seeds)"),
    ],
)
def test_the_verdict_says_p_and_both_numbers_of_seeds(low: list[float], high: list[float], words: str) -> None:
    assert verdict(mann_whitney(low, high)) == words


def test_no_difference_found_is_all_that_equality_gets() -> None:
    def words(a: list[float], b: list[float]) -> str:
        return verdict_of_equality(two_sided(mann_whitney(a, b), mann_whitney(b, a)))

    assert words(SOONER, SOONER) == "no difference found (p = 1, 5 and 5 seeds)"
    assert words(LATER, SOONER) == "a difference found (p = 0.0079, 5 and 5 seeds)"
    assert words(SOONER[:3], LATER[:3]) == "too few seeds to find a difference (smallest possible p = 0.1)"


@pytest.mark.parametrize("y", [[1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [5, 4, 3, 2, 1], [1, 1, 2, 2, 3]])
def test_a_correlation_counts_all_pairings(y: list[float]) -> None:
    x = [0.1, 0.2, 0.4, 0.8, 1.6]
    rho, test = correlation(x, y)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    all_of_them = [spearmanr(x, shuffled).statistic for shuffled in permutations(y)]
    assert test.p == pytest.approx(np.mean([other >= rho - 1e-9 for other in all_of_them]))
    assert test.least == 1 / 120
