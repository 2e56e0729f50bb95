"""Every metric against its definition on the data itself, in float64, without moments."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.similarity.test_moments import moments_of
from wsurgery.errors import UsageError
from wsurgery.similarity.canonical import TOLERANCE
from wsurgery.similarity.metrics import METRICS, check_metrics, similarities

N = 400


def ours(x, y, metrics=METRICS):
    (pair,) = moments_of(np.hstack([x, y]), sides=[x.shape[1]], norms=True).pairs(0, 1)
    return {metric: values[0] for metric, values in similarities(pair, metrics)[0].items()}


def basis(a):
    a = a[:, np.ptp(a, axis=0) > 1e-14 * abs(a).max()]
    u, s, _ = scipy.linalg.svd(a / a.std(0), full_matrices=False)
    return u[:, s**2 > TOLERANCE * s[0] ** 2]


def principal(a):
    u, s, _ = scipy.linalg.svd(a, full_matrices=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    return u[:, : np.argmax(share >= 0.99) + 1]


def unbiased_hsic(gram_x, gram_y):
    """Song et al. 2012, equation 5, up to its factor."""
    n = len(gram_x)
    k, m = (gram - np.diag(np.diag(gram)) for gram in (gram_x, gram_y))
    return np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ m.sum(1))


def oracle(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    gram_x, gram_y = (x + x.std()) @ (x + x.std()).T, (y - y.std()) @ (y - y.std()).T  # the estimator centres
    u, v = basis(x), basis(y)
    left, rho, _ = scipy.linalg.svd(u.T @ v, full_matrices=False)
    weights = abs((u @ left).T @ x).sum(1)
    r2, chance = np.mean(rho**2), max(u.shape[1], v.shape[1]) / (len(x) - 1)
    hsic = [unbiased_hsic(*grams) for grams in ((gram_x, gram_y), (gram_x, gram_x), (gram_y, gram_y))]
    norm = np.linalg.norm
    return {
        "mean_cca": rho.mean(),
        "svcca": scipy.linalg.svdvals(principal(x).T @ principal(y)).mean(),
        "pwcca": (weights * rho).sum() / weights.sum(),
        "r2_cca": r2,
        "adjusted_r2_cca": 1 - (1 - r2) / (1 - chance),
        "linear_cka": norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y)),
        "unbiased_cka": hsic[0] / np.sqrt(hsic[1] * hsic[2]),
        "procrustes": scipy.linalg.svdvals(x.T @ y).sum() / (norm(x) * norm(y)),
    }


def case(name):
    rng = np.random.default_rng(1)
    shared = rng.standard_normal((N, 8))
    x, y = (shared @ rng.standard_normal((8, c)) + 2 * rng.standard_normal((N, c)) + 3 for c in (12, 9))
    if name == "badly scaled":
        x, y = x * np.geomspace(1, 1e-6, 12), y * np.geomspace(1e-6, 1, 9)
    elif name == "condition 1e4":  # of the data: 1e8 of its covariance
        x, y = (
            scipy.linalg.svd(a, full_matrices=False)[0] * np.geomspace(1, 1e-4, a.shape[1])
            @ scipy.linalg.orth(rng.standard_normal((a.shape[1],) * 2))
            for a in (x, y)
        )  # fmt: skip
    elif name == "dead, constant, duplicated":
        x[:, 0], x[:, 1], x[:, 2], y[:, 4], y[:, 1] = 0, 0.1, x[:, 5], 7, -3 * y[:, 2]
    elif name == "rank deficient":
        x, y = x[:, :4] @ rng.standard_normal((4, 12)), y[:, :3] @ rng.standard_normal((3, 9))
    elif name == "large mean":
        x, y = x + 1e4, y - 1e4
    elif name == "drifting":  # the first chunk's mean is far from that of all
        x = x + np.linspace(0, 50, N)[:, None]
    return x, y


CASES = (
    "well conditioned", "badly scaled", "condition 1e4", "dead, constant, duplicated", "rank deficient", "large mean",
    "drifting",
)  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_its_definition_on_the_data(name, metric):
    x, y = case(name)
    assert ours(x, y, [metric])[metric] == pytest.approx(oracle(x, y)[metric], abs=1e-9)


def test_together_they_are_what_they_are_alone():
    x, y = case("rank deficient")
    together = ours(x, y)
    assert list(together) == list(METRICS)
    for metric in METRICS:
        assert together[metric] == pytest.approx(ours(x, y, [metric])[metric], abs=1e-13)


sizes = {"seed": st.integers(0, 2**32 - 1), "c_x": st.integers(1, 7), "c_y": st.integers(1, 7)}


def related(seed, c_x, c_y):
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((60, 3))
    x, y = (shared @ rng.standard_normal((3, c)) + rng.standard_normal((60, c)) for c in (c_x, c_y))
    return x, y, rng


@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_a_representation_is_itself(seed, c_x, c_y):
    x, *_ = related(seed, c_x, c_y)
    assert all(value == pytest.approx(1, abs=1e-9) for value in ours(x, x).values())


@settings(max_examples=40, deadline=None)
@given(**sizes)
def test_all_but_pwcca_are_symmetric(seed, c_x, c_y):
    x, y, _ = related(seed, c_x, c_y)
    metrics = [metric for metric in METRICS if metric not in ("pwcca", "unbiased_cka")]
    assert ours(x, y, metrics) == pytest.approx(ours(y, x, metrics), abs=1e-9)


ORDER, ROTATION, LINEAR = range(3)  # kinds of maps, each among those that follow
PAGE = Path(__file__).parents[2] / "docs" / "similarity.md"
BLIND_TO = dict(re.findall(r"^\| `(\w+)` \|.*\| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
OF_A_AND_B = {
    "any invertible linear map of the channels": (LINEAR, LINEAR),
    "rotations and one scale": (ROTATION, ROTATION),
    "of B any invertible linear map; of A the order of channels, their signs and one scale": (ORDER, LINEAR),
}


def mapped(a, kind, rng):
    c = a.shape[1]
    rotation = np.linalg.qr(rng.standard_normal((c, c)))[0]
    matrix = rng.permutation(np.eye(c)) * rng.choice([-1, 1], c) if kind == ORDER else rotation
    stretch = np.geomspace(1, 30, c) if kind == LINEAR else np.full(c, rng.lognormal(0, 3))
    return (a * stretch) @ matrix + 5


def test_the_page_says_of_every_metric_what_it_is_blind_to():
    assert list(BLIND_TO) == list(METRICS)


@settings(max_examples=20, deadline=None)
@given(**sizes)
@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_blind_to_what_the_page_says(metric, seed, c_x, c_y):
    x, y, rng = related(seed, c_x, c_y)
    of_a, of_b = OF_A_AND_B[BLIND_TO[metric]]
    for kind_a, kind_b in itertools.product(range(of_a + 1), range(of_b + 1)):
        assert ours(mapped(x, kind_a, rng), mapped(y, kind_b, rng), [metric])[metric] == pytest.approx(
            ours(x, y, [metric])[metric], abs=1e-9
        )


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_sees_all_else(metric):
    x, y = case("well conditioned")
    rng, before = np.random.default_rng(0), ours(x, y, [metric])[metric]
    of_a, of_b = OF_A_AND_B[BLIND_TO[metric]]
    seen = [(mapped(x, kind, rng), y) for kind in range(of_a + 1, LINEAR + 1)]
    seen += [(x, mapped(y, kind, rng)) for kind in range(of_b + 1, LINEAR + 1)]
    assert all(abs(ours(*sides, [metric])[metric] - before) > 1e-3 for sides in seen)


def test_pwcca_weighs_by_the_first_side():
    x, y = case("well conditioned")
    # A channel of x that y shares, a million times as large as the others, has all the weight.
    x[:, 0] = 1e6 * y[:, 0]
    assert ours(x, y)["pwcca"] > 0.99
    assert ours(y, x)["pwcca"] < 0.9


def test_unrelated_data_scores_nothing_where_chance_is_taken_off():
    rng = np.random.default_rng(2)
    found = [ours(rng.standard_normal((100, 12)), rng.standard_normal((100, 20))) for _ in range(40)]
    for metric, chance in (("unbiased_cka", "linear_cka"), ("adjusted_r2_cca", "r2_cca")):
        values = [scores[metric] for scores in found]
        assert abs(np.mean(values)) < 4 * np.std(values) / len(values) ** 0.5
        assert np.mean([scores[chance] for scores in found]) > 0.1


def test_never_nan():
    x, y = case("well conditioned")
    assert set(ours(np.ones_like(x), y).values()) == {None}
    assert set(ours(x, np.zeros_like(y)).values()) == {None}
    assert ours(np.ones_like(x), y, ["google_svcca"]) == {"google_svcca": None}


def google_svcca(x, y, epsilon=1e-10):
    """cca_coef1 of google/svcca, from the description of its algorithm."""
    covariance, c = np.cov(x.T, y.T), x.shape[1]
    xx, xy, yy = covariance[:c, :c], covariance[:c, c:], covariance[c:, c:]
    most_x, most_y = abs(xx).max(), abs(yy).max()
    xx, yy, xy = xx / most_x, yy / most_y, xy / np.sqrt(most_x * most_y)
    live_x, live_y = abs(np.diag(xx)) >= epsilon, abs(np.diag(yy)) >= epsilon
    xx, yy, xy = xx[live_x][:, live_x], yy[live_y][:, live_y], xy[live_x][:, live_y]

    def inverse_root(m):
        values, vectors = np.linalg.eigh(np.linalg.pinv(m + epsilon * np.eye(len(m))))
        return vectors @ np.diag(np.sqrt(values)) @ vectors.T

    return np.linalg.svd(inverse_root(xx) @ xy @ inverse_root(yy))[1]


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("rank deficient", "condition 1e4")])
def test_googles_code_is_reproduced(name):
    x, y = case(name)
    assert ours(x, y, ["google_svcca"])["google_svcca"] == pytest.approx(google_svcca(x, y).mean(), abs=1e-7)


def test_googles_mean_is_over_channels_and_ours_over_the_rank():
    x, y = case("dead, constant, duplicated")  # y has 8 channels that vary, of rank 7
    found = ours(x, y, ["google_svcca", "mean_cca"])
    assert 8 * found["google_svcca"] == pytest.approx(7 * found["mean_cca"], abs=1e-6)


def test_unknown_metrics_are_named():
    with pytest.raises(UsageError, match=r"metrics are mean_cca, svcca, .*, not 'cka'"):
        check_metrics(["mean_cca", "cka"])
