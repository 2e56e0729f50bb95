import numpy as np
import pytest
import torch

from wsurgery.similarity.moments import CHUNK, Moments, Varying


def moments_of(*batches, sides=None, **options):
    """The moments of all channels, of two sides of them, or of more."""
    places = np.split(np.arange(batches[0].shape[1])[None], sides or [], axis=1)
    moments = Moments(*places, channels=batches[0].shape[1], **options)
    for rows in batches:
        moments.update(rows)
    return moments


def covariance(moments):
    """Of channels that are all one side."""
    (pair,) = moments.pairs(0, 0)
    return pair.xx[0]


def test_covariance_is_numpys():
    x = np.random.default_rng(0).standard_normal((CHUNK[np.float64] + 100, 5)) @ np.diag([1, 10, 1e-3, 1e-6, 1e4])
    np.testing.assert_allclose(covariance(moments_of(x)), np.cov(x.T, bias=True), rtol=1e-9)


def test_a_large_mean_does_not_cancel():
    x = np.random.default_rng(0).standard_normal((3000, 3)) + 1e7
    np.testing.assert_allclose(covariance(moments_of(x)), np.cov(x.T, bias=True), rtol=1e-8)


def test_two_halves_add_up_to_the_whole():
    x = np.random.default_rng(0).standard_normal((1000, 4)) + np.linspace(0, 50, 1000)[:, None]
    together = moments_of(x[:300]) + moments_of(x[300:])
    assert together.rows == 1000
    np.testing.assert_allclose(covariance(together), np.cov(x.T, bias=True), rtol=1e-10)


@pytest.mark.parametrize("cut", [1, 7, 999])
def test_batches_do_not_matter(cut):
    x = np.random.default_rng(0).standard_normal((1000, 4))
    np.testing.assert_allclose(covariance(moments_of(x[:cut], x[cut:])), np.cov(x.T, bias=True), rtol=1e-10)


def test_a_constant_channel_is_exactly_zero_and_a_faint_one_is_not():
    x = np.random.default_rng(0).standard_normal((5000, 4)).astype(np.float32)
    x[:, 1] = 0.1
    x[:, 2] = 1e8
    x[-1, 2] = np.nextafter(np.float32(1e8), np.float32(2e8))
    found = covariance(moments_of(x))
    assert (found[1] == 0).all()
    assert (found[:, 1] == 0).all()
    np.testing.assert_allclose(found[2, 2], x[:, 2].var(dtype=np.float64), rtol=1e-6)


def test_what_is_constant_in_each_half_can_vary_between_them():
    x = np.array([[1.0, 2.0]] * 5 + [[1.0, 3.0]] * 5)
    assert covariance(moments_of(x[:5]) + moments_of(x[5:]))[1, 1] == 0.25
    varying = Varying()
    varying.update(x[:5])
    assert varying.mask.tolist() == [False, False]
    varying.update(x[5:])
    assert varying.mask.tolist() == [False, True]


def test_parts_add_up_to_one_pass_with_the_norms_of_sides():
    # A drift: the parts' own shifts differ, so nothing but the algebra of moved moments makes them agree.
    x = np.random.default_rng(0).standard_normal((900, 6)) + np.linspace(0, 5, 900)[:, None]
    parts = [moments_of(piece, sides=[4], norms=True) for piece in np.split(x, [200, 350])]
    together = parts[0] + parts[1] + parts[2]
    assert together.rows == 900
    (found,), (whole,) = (moments.pairs(0, 1) for moments in (together, moments_of(x, sides=[4], norms=True)))
    for name in ("xx", "yy", "xy", "norms"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12)
    squares = np.stack([((side - side.mean(0)) ** 2).sum(1) for side in (x[:, :4], x[:, 4:])])
    np.testing.assert_allclose(whole.norms[0], squares @ squares.T / 900, rtol=1e-12)


def test_rows_of_unlike_kinds():
    x = np.random.default_rng(1).standard_normal((700, 3))
    for kind in (np.float16, np.float32, np.float64):
        rows = x.astype(kind)
        np.testing.assert_allclose(covariance(moments_of(rows)), np.cov(rows.T.astype(float), bias=True), rtol=1e-9)


def test_fast_products_are_of_float32():
    x = np.random.default_rng(2).standard_normal((5000, 8)).astype(np.float32) + 3
    error = abs(covariance(moments_of(x, fast=True)) - covariance(moments_of(x))).max()
    assert 0 < error < 1e-6


@pytest.mark.parametrize("kind", ["numpy", "fast", "tensors"])
@pytest.mark.parametrize("channels", [12, 200])
def test_draws_are_moments_of_their_channels(channels, kind):
    # Three draws of 5 + 4 of 12 channels are sub-blocks of one matrix; of 200, a matrix each.
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, channels)) + 1
    draws_x, draws_y = (np.stack([rng.permutation(channels)[:d] for _ in range(3)]) for d in (5, 4))
    drawn = Moments(draws_x, draws_y, channels=channels, norms=True, fast=kind == "fast")
    for batch in np.split(x, [100, 101]):
        drawn.update(torch.from_numpy(batch) if kind == "tensors" else batch)
    drawn = drawn.gathered()
    assert drawn._products.shape == ((1, 12, 12) if channels == 12 else (3, 9, 9))
    close = {"atol": 1e-4} if kind == "fast" else {"rtol": 1e-10, "atol": 1e-12}
    for first, second, parts in ((0, 1, (draws_x, draws_y)), (1, 0, (draws_y, draws_x)), (0, 0, (draws_x, draws_x))):
        (pair,) = drawn.pairs(first, second)
        for r in range(3):
            u, v = (x[:, part[r]] - x[:, part[r]].mean(0) for part in parts)
            norms = np.stack([(side**2).sum(1) for side in (u, v)])
            expected = u.T @ u / 500, v.T @ v / 500, u.T @ v / 500, norms @ norms.T / 500
            for found, matrix in zip((pair.xx[r], pair.yy[r], pair.xy[r], pair.norms[r]), expected, strict=True):
                np.testing.assert_allclose(found, matrix, **close)


@pytest.mark.parametrize("channels", [9, 200])
def test_without_each_are_the_others_alone(channels):
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((900, channels)) * np.geomspace(1e-3, 1e3, channels) + 5
    rows[300:, 4] = 2.0  # varies in the first part only
    draws = [np.stack([rng.permutation(channels)[:3] for _ in range(4)]) for _ in range(2)]
    draws[0][:, 0] = 4

    def of(*batches):
        moments = Moments(*draws, channels=channels, norms=True)
        for batch in batches:
            moments.update(batch)
        return moments

    batches = np.split(rows, 3)
    for i, rest in enumerate(Moments.without_each([of(batch) for batch in batches], draws=2)):
        alone = of(*(batch for j, batch in enumerate(batches) if j != i))
        assert rest.rows == alone.rows == 600
        (found,), (expected,) = rest.pairs(0, 1), alone.pairs(0, 1)
        assert len(found.xx) == 2
        scale_x, scale_y = (
            np.where(variances > 0, variances, np.inf) ** -0.5
            for variances in (x[:2].diagonal(axis1=1, axis2=2) for x in (expected.xx, expected.yy))
        )
        for a, b, left, right in (
            (found.xx, expected.xx, scale_x, scale_x),
            (found.yy, expected.yy, scale_y, scale_y),
            (found.xy, expected.xy, scale_x, scale_y),
        ):
            scale = left[:, :, None] * right[:, None]
            np.testing.assert_allclose(a * scale, b[:2] * scale, rtol=0, atol=1e-11)
        np.testing.assert_allclose(found.norms, expected.norms[:2], rtol=1e-11)
        assert (found.xx[:, 0, 0] == 0).all() == (i == 0)
