"""Tests of censored steps against enumeration, scipy and the log-rank test's definition."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import CensoredData, logrank, norm

from wsurgery.statistics.survival import log_rank_scores, log_rank_test


def numerator(times, events, group):
    """Observed less expected events of a group, and its variance, moment by moment."""
    total, variance = 0.0, 0.0
    for moment in sorted(set(times[events])):
        risk, died = times >= moment, (times == moment) & events
        n, n1, d = risk.sum(), (risk & group).sum(), died.sum()
        total += (died & group).sum() - d * n1 / n
        if n > 1:
            variance += d * (n1 / n) * (1 - n1 / n) * (n - d) / (n - 1)
    return total, variance


def censored(rng, n, shift=0):
    """Steps, on a grid of evaluations, None past the end, and the last steps."""
    steps, last = 10 * rng.integers(2, 12, n) + shift, np.where(rng.random(n) < 0.5, 80, 100)
    return [int(s) if s <= end else None for s, end in zip(steps, last, strict=True)], [int(end) for end in last]


def flat(a, b, last_a, last_b):
    times = np.array([end if steps is None else steps for steps, end in zip([*a, *b], [*last_a, *last_b], strict=True)])
    return times, np.array([steps is not None for steps in (*a, *b)])


def test_few_runs_have_the_p_value_of_all_permutations():
    rng = np.random.default_rng(0)
    for _ in range(5):
        (a, last_a), (b, last_b) = censored(rng, 4), censored(rng, 3, shift=20)
        times, events = flat(a, b, last_a, last_b)
        every = []
        for members in combinations(range(7), 4):
            every.append(numerator(times, events, np.isin(np.arange(7), members))[0])
        ours = every[0]  # the first four
        tail = min(np.mean(np.array(every) <= ours + 1e-9), np.mean(np.array(every) >= ours - 1e-9))
        p, exact = log_rank_test(a, b, last_a, last_b)
        assert exact
        assert p == pytest.approx(min(1, 2 * tail), rel=1e-9)


def test_scores_add_up_to_observed_less_expected():
    (a, last_a), (b, last_b) = censored(np.random.default_rng(1), 12), censored(np.random.default_rng(2), 9)
    times, events = flat(a, b, last_a, last_b)
    group = np.arange(21) < 12
    scores = log_rank_scores(times, events)
    assert scores[group].sum() == pytest.approx(numerator(times, events, group)[0], rel=1e-10)
    assert scores.sum() == pytest.approx(0, abs=1e-10)


def test_many_runs_have_the_p_value_of_the_normal_distribution():
    rng = np.random.default_rng(3)
    (a, last_a), (b, last_b) = censored(rng, 40), censored(rng, 30, shift=15)
    times, events = flat(a, b, last_a, last_b)
    total, variance = numerator(times, events, np.arange(70) < 40)
    p, exact = log_rank_test(a, b, last_a, last_b)
    assert not exact
    assert p == pytest.approx(2 * norm.sf(abs(total) / np.sqrt(variance)), rel=1e-9)


def test_the_exact_test_comes_to_scipys_as_runs_get_more():
    rng = np.random.default_rng(4)
    for _ in range(5):
        (a, last_a), (b, last_b) = censored(rng, 7), censored(rng, 7, shift=10)
        times, events = flat(a, b, last_a, last_b)
        data = [
            CensoredData(uncensored=times[group & events], right=times[group & ~events])
            for group in (np.arange(14) < 7, np.arange(14) >= 7)
        ]
        p, exact = log_rank_test(a, b, last_a, last_b)
        assert exact
        assert p == pytest.approx(logrank(*data).pvalue, abs=0.08)


@pytest.mark.parametrize("n", [1, 3, 12])
def test_runs_that_never_got_there_or_all_at_once_do_not_differ(n):
    assert log_rank_test([None] * n, [None] * n, [90] * n, [100] * n)[0] == 1
    assert log_rank_test([60] * n, [60] * n, [100] * n, [100] * n)[0] == 1


@pytest.mark.parametrize(("n", "p"), [(1, 1), (2, 1 / 3), (3, 0.1), (4, 2 / 70)])
def test_a_few_seeds_cannot_show_more_than_there_are_permutations(n, p):
    assert log_rank_test([10] * n, [None] * n, [200] * n, [200] * n) == (pytest.approx(p), True)
