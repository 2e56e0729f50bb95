"""Against singular values of the data itself, which never squares it as moments do."""

import numpy as np
import pytest
import scipy.linalg

from tests.similarity.test_moments import covariance, moments_of
from wsurgery.similarity.canonical import TOLERANCE, canonical_correlations, mean_cca

N = 2000


def oracle(x, y):
    """Mean CCA, float64, from orthonormal bases of the centred, unit-variance columns."""

    def basis(a):
        a = a - a.mean(0)
        a = a[:, np.ptp(a, axis=0) > 0]
        u, s, _ = scipy.linalg.svd(a / a.std(0), full_matrices=False)
        return u[:, s**2 > TOLERANCE * s[0] ** 2]

    u, v = basis(x), basis(y)
    rank = min(u.shape[1], v.shape[1])
    return np.clip(scipy.linalg.svdvals(u.T @ v), 0, 1).sum() / rank, u.shape[1], v.shape[1]


def blocks(x, y):
    s, c = covariance(moments_of(np.hstack([x, y]))), x.shape[1]
    return s[:c, :c], s[c:, c:], s[:c, c:]


def ours(x, y):
    value, rank_x, rank_y = mean_cca(*blocks(x, y))
    return float(value), int(rank_x), int(rank_y)


def related(rng, c_x=24, c_y=16):
    shared = rng.standard_normal((N, 12))
    x, y = (shared @ rng.standard_normal((12, c)) + 2 * rng.standard_normal((N, c)) for c in (c_x, c_y))
    return x + rng.standard_normal(c_x), y - 3


def with_condition(x, condition):
    u, _, vt = scipy.linalg.svd(x - x.mean(0), full_matrices=False)
    return u @ np.diag(np.geomspace(1, 1 / condition, x.shape[1])) @ vt


def case(name, rng):
    x, y = related(rng)
    if name == "badly scaled":
        x, y = x * np.geomspace(1, 1e-6, x.shape[1]), y * np.geomspace(1e-6, 1, y.shape[1])
    elif name == "dead":
        x[:, [0, 5]] = 0
        y[:, 3] = 0
    elif name == "constant":
        x[:, 2] = 0.1
        y[:, 7] = 1e6
    elif name == "duplicated":
        x[:, 4] = x[:, 9]
        y[:, 1] = -3 * y[:, 2]
    elif name == "rank deficient":
        x = x[:, :6] @ rng.standard_normal((6, 24))
        y = y[:, :9] @ rng.standard_normal((9, 16))
    elif name == "float32":
        x, y = x.astype(np.float32).astype(np.float64), y.astype(np.float32).astype(np.float64)
    return x, y


@pytest.mark.parametrize(
    "name", ["well conditioned", "badly scaled", "dead", "constant", "duplicated", "rank deficient", "float32"]
)
def test_agrees_with_the_singular_values_of_the_data(name):
    x, y = case(name, np.random.default_rng(1))
    value, *ranks = ours(x, y)
    expected, *expected_ranks = oracle(x, y)
    assert ranks == expected_ranks
    assert value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("condition", "within"), [(1e4, 1e-9), (1e8, 2e-8)])
def test_agrees_at_a_high_condition_number(condition, within):
    rng = np.random.default_rng(2)
    x, y = related(rng)
    x, y = with_condition(x, condition), with_condition(y, condition)
    # A direction on the edge of the tolerance may count in one and not in the other: the ranks are not compared. One just
    # above it keeps six digits of its own.
    assert ours(x, y)[0] == pytest.approx(oracle(x, y)[0], abs=within)


def test_invariant_to_invertible_maps_and_to_the_order_of_rows():
    rng = np.random.default_rng(3)
    x, y = related(rng)
    value, *_ = ours(x, y)
    order = rng.permutation(N)
    assert ours(x[order], y[order])[0] == pytest.approx(value, abs=1e-10)
    map_x, map_y = rng.standard_normal((24, 24)), rng.standard_normal((16, 16))
    assert ours(x @ map_x + 5, y @ map_y - 7)[0] == pytest.approx(value, abs=1e-9)


def test_symmetric():
    x, y = related(np.random.default_rng(4))
    assert ours(x, y)[0] == pytest.approx(ours(y, x)[0], abs=1e-12)


def test_one_between_data_and_a_linear_map_of_it():
    rng = np.random.default_rng(5)
    x, _ = related(rng)
    assert ours(x, x @ rng.standard_normal((24, 24)))[0] == pytest.approx(1, abs=1e-10)
    assert ours(x, x @ rng.standard_normal((24, 5)))[0] == pytest.approx(1, abs=1e-10)


def test_known_correlations_come_out_in_order():
    correlations = np.array([0.9, 0.5, 0.1])
    xy = np.zeros((4, 3))
    xy[:3] = np.diag(correlations)[:, [2, 0, 1]]
    found, rank_x, rank_y = canonical_correlations(np.eye(4), np.eye(3), xy)
    np.testing.assert_allclose(found, correlations, rtol=1e-12)
    assert (int(rank_x), int(rank_y)) == (4, 3)


def test_nothing_counts_beyond_the_smaller_rank():
    correlations, rank_x, rank_y = canonical_correlations(*blocks(*case("rank deficient", np.random.default_rng(1))))
    assert (int(rank_x), int(rank_y)) == (6, 9)
    assert (correlations[:6] > 0).all()
    assert (correlations[6:] == 0).all()


@pytest.mark.parametrize(("d", "expected", "within"), [(64, 0.068, 1e-3), (256, 0.136, 1e-3), (512, 0.193, 1e-3)])
def test_independent_gaussians_score_what_theory_says(d, expected, within):
    # Wachter's law of the squared correlations, for p = 10,000 rows.
    rng = np.random.default_rng(6)
    value, *_ = ours(rng.standard_normal((10_000, d)), rng.standard_normal((10_000, d)))
    assert value == pytest.approx(expected, abs=within)


def test_correlations_of_zero_are_zero():
    # Squared, they would be noise of 1e-16, and 1e-8 after the square root.
    rng = np.random.default_rng(10)
    basis = scipy.linalg.orth(rng.standard_normal((N, 16)))
    basis = scipy.linalg.orth(basis - basis.mean(0))
    x, y = basis[:, :8], np.hstack([basis[:, :2] + basis[:, 8:10], basis[:, 10:16]])
    found, *_ = canonical_correlations(*blocks(x, y))
    np.testing.assert_allclose(found, [0.5**0.5] * 2 + [0.0] * 6, atol=1e-12)


def test_nothing_that_varies_has_rank_zero_and_is_never_nan():
    x, y = related(np.random.default_rng(7))
    assert ours(np.ones_like(x), y) == (0.0, 0, 16)
    assert ours(x, np.zeros_like(y)) == (0.0, 24, 0)


def test_a_batch_with_good_and_singular_members_is_the_same_one_by_one():
    rng = np.random.default_rng(8)
    cases = [blocks(*case(name, rng)) for name in ("well conditioned", "duplicated", "dead", "rank deficient")]
    together = canonical_correlations(*(np.stack(part) for part in zip(*cases, strict=True)))
    for i, alone in enumerate(cases):
        for batched, single in zip(together, canonical_correlations(*alone), strict=True):
            np.testing.assert_allclose(batched[i], single, atol=1e-12, rtol=0)
