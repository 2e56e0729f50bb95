"""The tests of significance against plain enumeration."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import spearmanr

from wsurgery.statistics.permutation import EXACT, NOT_SHOWN, SHOWN, correlation, holm, in_all, sign_flip, verdict


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_sign_flip_counts_every_pattern_of_signs(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(5):
        differences = [float(x) for x in rng.integers(-3, 8, n)]
        signs = np.array(list(product([1, -1], repeat=n)))
        expected = float(np.mean(signs @ np.abs(differences) >= sum(differences)))
        assert sign_flip(differences).p == pytest.approx(expected)


@pytest.mark.parametrize(("a", "b", "p"), [
    ([9502, 9505, 9504, 9504, 9502, 9502, 9507], [9497, 9504, 9503, 9506, 9500, 9501, 9504], 9 / 128),
    ([9502, 9505, 9504, 9504, 9502], [9502, 9505, 9504, 9504, 9502], 1),
])  # fmt: skip
def test_sums_that_tie_but_for_rounding_are_counted(a: list[int], b: list[int], p: float) -> None:
    assert sign_flip([x / 10_000 - y / 10_000 for x, y in zip(a, b, strict=True)]).p == p


@pytest.mark.parametrize("unit", [900, 2_500, 10_000])
def test_differences_of_aucs_have_the_p_of_their_integers(unit: int) -> None:
    rng = np.random.default_rng(unit)
    for n in (5, 6, 7, 8) * 50:
        a = rng.integers(int(0.95 * unit), int(0.95 * unit) + 8, n)
        b = a - rng.integers(-2, 6, n)
        sums = np.array(list(product([1, -1], repeat=n))) @ (a - b)
        differences = [x / unit - y / unit for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert sign_flip(differences).p == np.mean(sums >= (a - b).sum())


def test_of_many_pairs_signs_are_drawn() -> None:
    differences = np.random.default_rng(0).integers(-40, 60, 30)
    ways = {0: 1}  # sum → patterns of signs that have it
    for x in differences.tolist():
        ways = {s: ways.get(s - x, 0) + ways.get(s + x, 0) for s in {t + y for t in ways for y in (x, -x)}}
    expected = sum(count for total, count in ways.items() if total >= differences.sum()) / 2**30
    assert 0.01 < expected < 0.5
    assert sign_flip(differences.tolist()).p == pytest.approx(expected, abs=4 * (expected / EXACT) ** 0.5)


def test_all_layers_hold_only_if_the_weakest_does() -> None:
    strong, weak = sign_flip([1] * 5), sign_flip([1, 1, 1, 1, -1])
    assert in_all([strong, weak])[:2] == weak[:2]
    assert in_all([strong, weak, strong]).agrees is False


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([1, 2, 3, 4, 5], f"{SHOWN} (p = 0.031, 5 pairs)"),
        ([1, 2, 3, 4, -5], f"{NOT_SHOWN} (p = 0.31, 5 pairs)"),  # 10 of 32: subsets of 1 to 5 that sum to 5 at most
        ([0] * 5, f"{NOT_SHOWN} (p = 1, 5 pairs)"),
        ([1, 2, 3, 4], "too few seeds to show it (smallest possible p = 0.062); suggestive: every seed agrees"),
        ([1, -2], "too few seeds to show it (smallest possible p = 0.25); not suggested"),
    ],
)
def test_the_verdict_says_p_and_the_number_of_pairs(differences: list[float], words: str) -> None:
    assert verdict(sign_flip(differences)) == words


def test_holm_is_what_statsmodels_and_r_compute() -> None:
    # p.adjust(c(.01, .02, .03, .005), "holm") in R
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize("y", [[1, 2, 3, 4, 5], [2, 1, 4, 3, 5], [5, 4, 3, 2, 1], [1, 1, 2, 2, 3]])
def test_a_correlation_counts_all_pairings(y: list[float]) -> None:
    x = [0.1, 0.2, 0.4, 0.8, 1.6]
    rho, test = correlation(x, y)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    all_of_them = [spearmanr(x, shuffled).statistic for shuffled in permutations(y)]
    assert test.p == pytest.approx(np.mean([other >= rho - 1e-9 for other in all_of_them]))
    assert test.least == 1 / 120
