import numpy as np
import pytest
import torch

from wsurgery.similarity.moments import CHUNK, DrawnMoments, Moments, Varying


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


def test_parts_add_up_to_one_pass_with_the_norms_of_sets():
    # A drift: the parts' own shifts differ, so nothing but the algebra of moved moments makes them agree.
    x = np.random.default_rng(0).standard_normal((900, 6)) + np.linspace(0, 5, 900)[:, None]
    sets = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1]])
    parts = []
    for piece in np.split(x, [200, 350]):
        parts.append(Moments(sets=sets))
        parts[-1].update(torch.from_numpy(piece))
    together, whole = parts[0] + parts[1] + parts[2], Moments(sets=sets)
    whole.update(torch.from_numpy(x))
    assert together.rows == 900
    np.testing.assert_allclose(together.covariance(), whole.covariance(), rtol=1e-12)
    np.testing.assert_allclose(together.norms(), whole.norms(), rtol=1e-12)
    squares = (x - x.mean(0)) ** 2 @ sets.numpy().T
    np.testing.assert_allclose(whole.norms(), squares.T @ squares / 900, rtol=1e-12)


def test_parts_of_unlike_kinds_of_rows():
    x = np.random.default_rng(1).standard_normal((700, 3))
    for kind in (np.float16, np.float32, np.float64):
        rows = x.astype(kind)
        np.testing.assert_allclose(moments_of(rows).covariance(), np.cov(rows.T.astype(float), bias=True), rtol=1e-9)


def test_fast_products_are_of_float32():
    x = np.random.default_rng(2).standard_normal((5000, 8)).astype(np.float32) + 3
    fast = Moments(fast=True)
    fast.update(torch.from_numpy(x))
    error = (fast.covariance() - moments_of(x).covariance()).abs().max()
    assert 0 < error < 1e-6


@pytest.mark.parametrize("channels", [12, 200])
@pytest.mark.parametrize("fast", [False, True])
def test_draws_are_moments_of_their_channels(channels, fast):
    # Three draws of 5 + 4 of 12 channels are sub-blocks of one matrix; of 200, a matrix each.
    rng = np.random.default_rng(3)
    x = rng.standard_normal((500, channels)) + 1
    draws_x, draws_y = (torch.from_numpy(np.stack([rng.permutation(channels)[:d] for _ in range(3)])) for d in (5, 4))
    drawn = DrawnMoments(draws_x, draws_y, channels=channels, norms=True, fast=fast)
    for batch in np.split(x, [100, 101]):
        drawn.update(torch.from_numpy(batch))
    assert (len(drawn._moments) == 1) == (channels == 12)
    for first, second, parts in ((0, 1, (draws_x, draws_y)), (1, 0, (draws_y, draws_x)), (0, 0, (draws_x, draws_x))):
        (pair,) = drawn.pairs(first, second)
        for r in range(3):
            u, v = (x[:, part[r]] - x[:, part[r]].mean(0) for part in parts)
            norms = np.stack([(side**2).sum(1) for side in (u, v)])
            expected = u.T @ u / 500, v.T @ v / 500, u.T @ v / 500, norms @ norms.T / 500
            for found, matrix in zip((pair.xx[r], pair.yy[r], pair.xy[r], pair.norms[r]), expected, strict=True):
                np.testing.assert_allclose(
                    found, matrix, **({"atol": 1e-4} if fast else {"rtol": 1e-10, "atol": 1e-12})
                )


def test_without_each_is_the_others_alone():
    rng = np.random.default_rng(3)
    rows = torch.from_numpy(rng.standard_normal((900, 7)) * [1, 1e-3, 1e3, 1, 1, 1, 1] + 5)
    rows[300:, 4] = 2.0  # varies in the first part only
    sets = torch.zeros(2, 7)
    sets[0, :3], sets[1, 3:] = 1, 1
    parts = [Moments(sets=sets) for _ in range(3)]
    for part, some in zip(parts, rows.split(300), strict=True):
        part.update(some)
    for i, rest in enumerate(Moments.without_each(parts)):
        alone = Moments(sets=sets)
        alone.update(torch.cat([some for j, some in enumerate(rows.split(300)) if j != i]))
        assert rest.rows == alone.rows == 600
        scale = alone.covariance().diagonal().clamp_min(1e-300).rsqrt()
        torch.testing.assert_close(
            rest.covariance() * scale * scale[:, None], alone.covariance() * scale * scale[:, None], rtol=0, atol=1e-11
        )
        torch.testing.assert_close(rest.norms(), alone.norms(), rtol=1e-11, atol=0)
        assert (rest.covariance()[4, 4] == 0) == (i == 0)
