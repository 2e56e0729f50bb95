import numpy as np
import pytest
import torch

from wsurgery.similarity.moments import CHUNK, Moments, Varying


def moments_of(*parts):
    moments = Moments()
    for part in parts:
        moments.update(torch.as_tensor(part))
    return moments


def test_covariance_is_numpys():
    x = np.random.default_rng(0).standard_normal((CHUNK + 100, 5)) @ np.diag([1, 10, 1e-3, 1e-6, 1e4])
    np.testing.assert_allclose(moments_of(x).covariance(), np.cov(x.T, bias=True), rtol=1e-9)


def test_a_large_mean_does_not_cancel():
    x = np.random.default_rng(0).standard_normal((3000, 3)) + 1e7
    np.testing.assert_allclose(moments_of(x).covariance(), np.cov(x.T, bias=True), rtol=1e-8)


def test_two_halves_add_up_to_the_whole():
    x = np.random.default_rng(0).standard_normal((1000, 4)) + np.linspace(0, 50, 1000)[:, None]
    together = moments_of(x[:300]) + moments_of(x[300:])
    assert together.rows == 1000
    np.testing.assert_allclose(together.covariance(), np.cov(x.T, bias=True), rtol=1e-10)


@pytest.mark.parametrize("cut", [1, 7, 999])
def test_batches_do_not_matter(cut):
    x = np.random.default_rng(0).standard_normal((1000, 4))
    np.testing.assert_allclose(moments_of(x[:cut], x[cut:]).covariance(), np.cov(x.T, bias=True), rtol=1e-10)


def test_a_constant_channel_is_exactly_zero_and_a_faint_one_is_not():
    x = np.random.default_rng(0).standard_normal((5000, 4)).astype(np.float32)
    x[:, 1] = 0.1
    x[:, 2] = 1e8
    x[-1, 2] = np.nextafter(np.float32(1e8), np.float32(2e8))
    covariance = moments_of(x).covariance()
    assert (covariance[1] == 0).all()
    assert (covariance[:, 1] == 0).all()
    np.testing.assert_allclose(covariance[2, 2], x[:, 2].var(dtype=np.float64), rtol=1e-6)


def test_what_is_constant_in_each_half_can_vary_between_them():
    x = torch.tensor([[1.0, 2.0]] * 5 + [[1.0, 3.0]] * 5)
    assert (moments_of(x[:5]) + moments_of(x[5:])).covariance()[1, 1] == 0.25
    varying = Varying()
    varying.update(x[:5])
    assert varying.mask.tolist() == [False, False]
    varying.update(x[5:])
    assert varying.mask.tolist() == [False, True]
