"""A tensor in a few numbers, against numpy's own histogram and singular values."""

import ml_dtypes
import numpy as np
import pytest

from wsurgery.operations.profile import BINS, POINTS, WIDEST, profile
from wsurgery.operations.statistics import summary


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize("shape", [(1,), (50,), (6, 5, 3, 3), (64, 200), (300, 7)])
def test_it_is_what_numpy_says(shape, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    found = profile(x)
    assert found.summary == summary(x)
    values = x.astype(np.float64)
    assert sum(found.counts) == x.size
    expected = np.histogram(values, BINS)[0]
    moved = np.abs(np.cumsum(np.array(found.counts) - expected)).max()  # values on an edge, which rounding moves
    assert moved <= (x.size // 20 if dtype not in (np.float64, np.float32) else 1)
    if len(shape) == 1:
        assert found.singular == ()
        return
    singular = np.linalg.svd(values.reshape(len(x), -1), compute_uv=False)
    assert found.rank == len(singular)
    assert found.all_of_them
    assert len(found.singular) == min(POINTS, len(singular))
    assert set(np.round(found.singular, 6)) <= set(np.round(singular, 6))
    np.testing.assert_allclose([found.singular[0], found.singular[-1]], [singular[0], singular[-1]], rtol=1e-6)


def test_a_matrix_too_large_for_all_of_them_has_its_largest():
    rng = np.random.default_rng(0)
    n = WIDEST + 100
    left, right = (np.linalg.qr(rng.standard_normal((n + more, 60)))[0] for more in (0, 30))
    x = ((left * np.geomspace(50, 0.5, 60)) @ right.T).astype(np.float32)
    found = profile(x)
    assert not found.all_of_them
    assert found.rank == n
    np.testing.assert_allclose(found.singular, np.geomspace(50, 0.5, 60)[:POINTS], rtol=1e-3)
    assert profile(x) == found


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_the_scale_does_not_matter(scale):
    x = np.random.default_rng(0).standard_normal((20, 30))
    found, plain = profile(x * scale), profile(x)
    np.testing.assert_allclose(np.array(found.singular) / scale, plain.singular, rtol=1e-9)
    assert sum(abs(a - b) for a, b in zip(found.counts, plain.counts, strict=True)) <= 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_left_out_and_ends_the_singular_values(value):
    x = np.arange(60, dtype=np.float32).reshape(6, 10)
    x[0, 0] = value
    found = profile(x)
    assert sum(found.counts) == 59
    assert found.singular == ()


@pytest.mark.parametrize("x", [np.zeros((0, 3)), np.zeros(0), np.full((2, 2), np.nan), np.array([1e308, -1e308])])
def test_extremes_are_no_error(x):
    assert sum(profile(x.astype(np.float64)).counts) == np.isfinite(x).sum()


def test_zeros_have_singular_values_of_zero():
    assert set(profile(np.zeros((4, 9), np.float32)).singular) == {0.0}
