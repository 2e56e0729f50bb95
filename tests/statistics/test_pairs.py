"""Paired differences of few seeds: every pattern of signs, and how often tests err and intervals hold where it is known."""

from itertools import product
from math import log

import numpy as np
import pytest

from wsurgery.statistics.pairs import centre_interval, equivalence, log_ratio, paired_test, unit_means
from wsurgery.statistics.permutation import sign_flip


def drawn(draws: int, n: int, *, centre: float = 0.0) -> list[list[float]]:
    """Differences of n pairs, symmetric about `centre`, with tails heavier than the normal distribution's."""
    return [list(x) for x in centre + np.random.default_rng(n).standard_t(3, (draws, n))]


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_both_directions_count_every_pattern_of_signs(n: int) -> None:
    signs = np.array([*product([1, -1], repeat=n)])
    for differences in drawn(5, n, centre=0.5):
        sums = signs @ differences
        found = paired_test(differences)
        assert found.mean == pytest.approx(np.mean(differences))
        assert found.p_greater == pytest.approx(np.mean(sums >= sum(differences) - 1e-12))
        assert found.p_less == pytest.approx(np.mean(sums <= sum(differences) + 1e-12))
        assert found.least == 1 / 2**n


def test_five_seeds_that_agree_are_one_in_32_and_two_never_show_anything() -> None:
    assert paired_test([0.01, 0.02, 0.03, 0.01, 0.02])[4:] == (1 / 32, 1, 1 / 32)
    assert paired_test([-0.01, -0.02])[4:] == (1, 1 / 4, 1 / 4)
    assert paired_test([0.0] * 5)[4:6] == (1, 1)


@pytest.mark.parametrize(("n", "level"), [(5, 0.9), (6, 0.9), (7, 0.95), (9, 0.8)])
def test_the_interval_holds_the_shifts_that_no_test_rejects(n: int, level: float) -> None:
    """By its definition: shift the differences, test, and see on which side of the bounds p falls below the level."""
    alpha = (1 - level) / 2
    for differences in drawn(4, n):
        ci = centre_interval(differences, level=level)
        assert ci is not None
        for bound, inwards in zip(ci, (1e-6, -1e-6), strict=True):
            inside, outside = ([x - bound - step for x in differences] for step in (inwards, -inwards))
            p = [min(sign_flip(x).p, sign_flip([-d for d in x]).p) for x in (inside, outside)]
            assert p[0] > alpha >= p[1]


def test_what_shares_a_source_network_is_averaged_first() -> None:
    by_seed = {"1": 1.0, "2": 3.0, "3": 10.0, "x": 7.0}
    assert unit_means(by_seed, {"1": "1", "2": "1", "3": "3"}) == [2, 10, 7]
    assert unit_means(by_seed, dict.fromkeys(by_seed, "1")) == [1, 3, 10, 7]  # one source: it is what is tested
    assert unit_means({}, {}) == []


@pytest.mark.slow
def test_seeds_that_share_a_source_network_err_unless_it_is_the_unit() -> None:
    """Five networks, three seeds of each, no effect but that of the network, on either side of nothing."""
    rng, draws = np.random.default_rng(3), 300
    units = {f"{seed}": f"{seed % 5}" for seed in range(15)}
    naive = fair = 0
    for _ in range(draws):
        sources = rng.normal(size=5)
        values = {seed: sources[int(unit)] + 0.3 * rng.normal() for seed, unit in units.items()}
        naive += sign_flip([*values.values()]).p < 0.05
        fair += sign_flip(unit_means(values, units)).p < 0.05
    assert fair <= draws * 0.05 + 3 * np.sqrt(draws * 0.05 * 0.95)
    assert naive > draws * 0.15


def test_too_few_pairs_have_no_interval() -> None:
    assert centre_interval([1, 2, 3, 4], level=0.9) is None
    assert centre_interval([1, 2, 3, 4, 5], level=0.9) == (1, 5)
    assert centre_interval([1, 2, 3, 4, 5], level=0.95) is None


def test_many_pairs_are_drawn_and_come_to_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    differences = list(rng.normal(0.15, 1, 30))
    found = paired_test(differences)
    half = 1.6449 * np.std(differences, ddof=1) / np.sqrt(30)
    assert found.ci == pytest.approx((found.mean - half, found.mean + half), abs=0.06)
    assert found.p_greater + found.p_less == pytest.approx(1, abs=0.01)
    assert centre_interval(differences, level=0.9) == found.ci  # the same draws


@pytest.mark.parametrize("n", [5, 8])
def test_one_true_null_in_twenty_at_most_is_rejected_and_nine_intervals_in_ten_hold_the_centre(n: int) -> None:
    found = [paired_test(differences) for differences in drawn(600, n)]
    for p in ([test.p_greater for test in found], [test.p_less for test in found]):
        rejected = np.mean(np.array(p) <= 0.05)
        exact = int(0.05 * 2**n) / 2**n  # the largest p of this many signs that is not above
        assert rejected == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 600))
    covered = np.mean([test.ci is not None and test.ci[0] <= 0 <= test.ci[1] for test in found])
    assert covered > 0.9 - 3 * np.sqrt(0.09 / 600)


def test_equivalence_is_the_interval_within_the_margin() -> None:
    for differences in drawn(150, 6):
        ci = centre_interval(differences, level=0.9)
        assert ci is not None
        for margin in (0.5, 1.5, 3.0):
            assert (equivalence(differences, margin=margin).p <= 0.05) == (-margin < ci[0] and ci[1] < margin)


def test_arms_that_differ_by_the_margin_are_called_equal_one_time_in_twenty_at_most() -> None:
    said = [equivalence(differences, margin=1.0).p <= 0.05 for differences in drawn(800, 6, centre=1.0)]
    assert np.mean(said) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 800)
    equal = [[x / 8 for x in differences] for differences in drawn(100, 6)]
    assert np.mean([equivalence(differences, margin=1.0).p <= 0.05 for differences in equal]) > 0.8


def test_no_difference_found_is_no_equivalence() -> None:
    wide = [-0.03, 0.02, -0.02, 0.03, 0.005]
    assert paired_test(wide).p_greater > 0.05 < paired_test(wide).p_less
    assert equivalence(wide, margin=0.01).p > 0.05
    assert not equivalence(wide, margin=0.01).agrees
    assert equivalence([x / 10 for x in wide], margin=0.01) == (1 / 32, 1 / 32, "5 pairs", True)


@pytest.mark.parametrize(
    ("a", "b", "last_a", "last_b", "ratio"),
    [
        (60, 100, 200, 200, 60 / 100),
        (60, None, 200, 200, 60 / 201),
        (None, None, 200, 200, 1),
        (60, None, 200, 40, 1),  # B was watched until 40, when neither was there
        (None, 60, 60, 200, 61 / 60),
        (0, 20, 100, 100, 1 / 20),
    ],
)
def test_steps_count_as_far_as_both_were_watched(
    a: int | None, b: int | None, last_a: int, last_b: int, ratio: float
) -> None:
    assert log_ratio(a, b, last_a, last_b) == pytest.approx(log(ratio))
    assert log_ratio(b, a, last_b, last_a) == pytest.approx(-log(ratio))


@pytest.mark.parametrize("censored", [0.0, 0.4])
def test_steps_of_equal_arms_differ_one_time_in_twenty_at_most_however_many_never_get_there(censored: float) -> None:
    rng, p = np.random.default_rng(0), []
    for _ in range(600):
        steps = 20 * np.ceil(rng.lognormal(1.5, 0.5, (5, 1)) * rng.lognormal(0, 0.4, (5, 2)))
        ends = np.where(rng.random(5) < censored, 80, 400)
        seen = [[int(x) if x <= end else None for x in pair] for pair, end in zip(steps, ends, strict=True)]
        p.append(paired_test([log_ratio(*pair, end, end) for pair, end in zip(seen, ends, strict=True)]).p_less)
    assert 0 < np.mean(np.array(p) <= 0.05) < 0.05
