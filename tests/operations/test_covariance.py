"""Laws of weights drawn with a covariance."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from wsurgery.errors import WsurgeryError
from wsurgery.operations.cast import cast
from wsurgery.operations.covariance import _factor, covariance
from wsurgery.operations.meanvar import meanvar
from wsurgery.operations.random_streams import CHUNK, RandomStream

OF = ("space", "filter", "channel")
SHAPES = [(12, 5, 3, 3), (100, 4, 2, 2), (30, 20), (8, 3, 5), (16, 1, 3, 3), (2, 6, 3, 3)]


def stream(seed: int = 0) -> RandomStream:
    return RandomStream(seed, "test", 0, "w")


def samples(x: np.ndarray, of: str) -> np.ndarray:
    """What the covariance is of: a row each."""
    channels = x.reshape(x.shape[0], x.shape[1], -1)
    if of == "space":
        return channels.reshape(-1, channels.shape[2])
    return x.reshape(len(x), -1) if of == "filter" else np.moveaxis(channels, 1, 2).reshape(-1, x.shape[1])


def correlated(shape: tuple[int, ...], dtype=np.float64) -> np.ndarray:
    """Weights with means, scales and correlations among positions, channels and filters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    for axis, length in enumerate(shape):
        mixed = rng.normal(size=(length, length)) + 2 * np.eye(length)
        x = (
            np.moveaxis(np.tensordot(mixed, x, (1, axis)), 0, axis)
            + rng.normal(size=length)[(...,) + (None,) * (len(shape) - 1 - axis)]
        )
    return (x / x.std()).astype(dtype)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("shape", SHAPES)
def test_mean_and_covariance_of_many_draws_are_those_of_the_samples(of, shape):
    x = correlated(shape)
    before = samples(x, of)
    drawn = [samples(covariance(x, of=of, random=stream(seed)), of) for seed in range(400)]
    found = np.concatenate(drawn)
    mean, expected = before.mean(0), np.cov(before, rowvar=False, bias=True).reshape(before.shape[1], -1)
    variance = expected.diagonal()
    error = np.sqrt((np.outer(variance, variance) + expected**2) / len(found)) + 1e-9
    assert np.abs((found.mean(0) - mean) / np.sqrt(variance / len(found) + 1e-18)).max() < 5
    assert np.abs(((found - mean).T @ (found - mean) / len(found) - expected) / error).max() < 5.5
    # Samples of one draw are independent of each other.
    scale = np.sqrt(variance[0])
    first = np.array([(rows[:12, 0] - mean[0]) / scale for rows in drawn])
    between = first.T @ first / len(first)
    assert np.abs(between - np.eye(len(between))).max() < 5.5 * np.sqrt(2 / len(first))


@pytest.mark.parametrize(
    ("of", "shape"), [("space", (60, 50, 3, 3)), ("channel", (200, 8, 3, 3)), ("filter", (2000, 9))]
)
def test_draws_are_gaussian_and_white_once_the_covariance_is_taken_off(of, shape):
    x = correlated(shape, np.float32)
    before, after = samples(x.astype(float), of), samples(covariance(x, of=of, random=stream()).astype(float), of)
    values, vectors = np.linalg.eigh(np.cov(before, rowvar=False, bias=True))
    white = (after - before.mean(0)) @ vectors / np.sqrt(values)
    assert stats.kstest(white.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(white[:, 0], "norm").pvalue > 1e-3


def test_fewer_filters_than_weights_stay_in_the_space_that_they_span():
    x = correlated((6, 4, 3, 3))
    before, after = samples(x, "filter"), samples(covariance(x, of="filter", random=stream()), "filter")
    basis = np.linalg.svd(before - before.mean(0))[2][:5]
    rest = after - before.mean(0)
    assert np.abs(rest - rest @ basis.T @ basis).max() < 1e-9
    assert np.linalg.matrix_rank(rest) == 5


@pytest.mark.parametrize("size", [1, 3, 64, 65, 200])
@pytest.mark.parametrize("rank", [1.0, 0.5])
def test_the_factor_is_a_root_of_the_covariance_of_full_rank_or_not(size, rank):
    rng = np.random.default_rng(size)
    inner = max(1, int(rank * size))
    x = rng.normal(size=(2 * size, inner)) @ rng.normal(size=(inner, size)) * np.exp2(rng.integers(-9, 9, size))
    expected = x.T @ x
    found = _factor(expected.copy())
    assert (found == np.triu(found)).all()
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal()))
    assert np.abs((found.T @ found - expected) / scale).max() < 1e-6


@pytest.mark.parametrize(
    ("of", "shape"),
    [("space", (8, 5, 1, 1)), ("space", (8, 5)), ("filter", (50,)), ("channel", (8, 1, 3, 3)), ("filter", (1, 40))],
)
def test_of_single_numbers_and_of_a_single_sample_it_is_meanvar(of, shape):
    x = correlated(shape, np.float32)
    assert covariance(x, of=of, random=stream()).tobytes() == meanvar(x, random=stream()).tobytes()


@pytest.mark.parametrize("of", OF)
def test_where_the_covariance_is_diagonal_and_equal_it_draws_what_meanvar_draws(of):
    rng = np.random.default_rng(0)
    shape = {"space": (90, 100, 3, 3), "filter": (4000, 3, 3, 1), "channel": (1000, 9, 3, 3)}[of]
    white = rng.normal(size=samples(np.empty(shape), of).shape)
    white -= white.mean(0)
    white = np.linalg.svd(white, full_matrices=False)[0] * len(white) ** 0.5 * 0.3 + 2  # exactly so
    x = np.moveaxis(white.reshape(1000, 9, 9), 1, 2).reshape(shape) if of == "channel" else white.reshape(shape)
    one, other = covariance(x, of=of, random=stream()), meanvar(x, random=stream(1))
    assert stats.kstest(one.ravel(), "norm", (2, 0.3)).pvalue > 1e-3
    assert stats.ks_2samp(one.ravel(), other.ravel()).pvalue > 1e-3


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("shape", [(7, 3, 3, 3), (CHUNK // 8, 10, 3), (3, 2 * CHUNK // 3)])
def test_threads_do_not_change_the_result(of, shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with ThreadPoolExecutor(8) as pool:
        together = covariance(x, of=of, random=stream(), run=pool.map)
    assert covariance(x, of=of, random=stream()).tobytes() == together.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
@pytest.mark.parametrize("of", OF)
def test_narrow_types_are_rounded_once_from_float64(of, dtype):
    x = correlated((20, 5, 3, 3), dtype)
    wide = covariance(x.astype(np.float64), of=of, random=stream())
    assert covariance(x, of=of, random=stream()).tobytes() == cast(wide, dtype=np.dtype(dtype)).tobytes()


def test_equal_samples_stay_and_a_narrow_range_is_not_left():
    x = np.broadcast_to(np.arange(9, dtype=np.float32), (4, 5, 9)).copy()
    np.testing.assert_array_equal(covariance(x, of="space", random=stream()), x)
    full = np.linspace(-448, 448, 360).reshape(10, 4, 9).astype(ml_dtypes.float8_e4m3fn)
    assert np.isfinite(covariance(full, of="space", random=stream()).astype(float)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308, 1e200])
def test_what_has_no_covariance_is_an_error(value):
    x = np.random.default_rng(0).uniform(0.9, 1, (9, 2, 3, 3)) * value
    with pytest.raises(WsurgeryError, match="leave it out with --except"):
        covariance(x, of="space", random=stream())
