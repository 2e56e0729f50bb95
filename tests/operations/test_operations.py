"""Laws of the operations, each a pure function of one tensor."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage.filters import gabor_kernel
from skimage.transform import resize

from wsurgery.errors import WsurgeryError
from wsurgery.operations.batch_norm import batch_norm_identity
from wsurgery.operations.gabor import _spread, gabor, gabor_bank
from wsurgery.operations.meanvar import meanvar
from wsurgery.operations.random_init import random_init
from wsurgery.operations.random_streams import CHUNK, RandomStream
from wsurgery.operations.sample import sample
from wsurgery.operations.shuffle import shuffle
from wsurgery.operations.statistics import moments, summary

RESAMPLINGS = [meanvar, shuffle, sample]


def stream(tensor: str = "w", seed: int = 0, occurrence: int = 0) -> RandomStream:
    return RandomStream(seed, "test", occurrence, tensor)


def skewed(size: int, dtype=np.float32) -> np.ndarray:
    return (np.random.default_rng(1).gamma(2.0, 3.0, size) - 1).astype(dtype)


def test_meanvar_is_gaussian_with_the_tensors_mean_and_variance():
    x = skewed(3 * CHUNK + 17)
    y = meanvar(x, random=stream())
    assert stats.kstest(y, "norm", (x.mean(dtype=float), x.std(dtype=float))).pvalue > 1e-3
    for start in range(0, x.size, CHUNK):  # every chunk, not only the whole
        assert stats.kstest(y[start : start + CHUNK], "norm", (x.mean(dtype=float), x.std(dtype=float))).pvalue > 1e-4


def test_draws_of_many_tensors_are_one_gaussian_sample_once_standardised():
    rng = np.random.default_rng(2)
    pooled = []
    for i in range(300):  # independent streams: the tests' own p-values are uniform, and so is the pool's
        x = rng.normal(rng.normal(), rng.gamma(1.0), 2000).astype(np.float32)
        pooled.append((meanvar(x, random=stream(f"layer{i}.weight")) - x.mean(dtype=float)) / x.std(dtype=float))
    values = [stats.kstest(draws, "norm").pvalue for draws in pooled]
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert stats.kstest(np.concatenate(pooled), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(pooled) - np.eye(300)).max() < 6 / 2000**0.5


def test_a_resampled_variance_is_positive_and_keeps_mean_and_variance():
    x = np.abs(skewed(400_000)) + np.float32(0.01)
    y = meanvar(x, random=stream(), positive=True)
    assert (y > 0).all()
    assert y.mean() == pytest.approx(x.mean(), rel=0.01)
    assert y.std() == pytest.approx(x.std(), rel=0.05)


@pytest.mark.parametrize("dtype", ["u2:f2", "u4:f4"])
def test_a_signalling_nan_is_counted_without_a_warning(dtype):
    bits, real = dtype.split(":")
    x = np.array([0x7D00, 0, 0x3C00] if bits == "u2" else [0x7F810000, 0, 0x3F800000], bits).view(real)
    with ThreadPoolExecutor(2) as pool:
        found = summary(x, pool.map)
    assert (found.nan, found.zeros, found.mean, found.max) == (1, 1, 0.5, 1.0)
    with pytest.raises(WsurgeryError, match="NaN"):
        meanvar(x, random=stream())


@pytest.mark.parametrize("operation", RESAMPLINGS)
@pytest.mark.parametrize("size", [5, CHUNK, 3 * CHUNK + 17])
def test_threads_do_not_change_the_result(operation, size):
    x = skewed(size)
    alone = operation(x, random=stream(), run=map)
    with ThreadPoolExecutor(8) as pool:
        together = operation(x, random=stream(), run=pool.map)
    assert alone.tobytes() == together.tobytes()


@pytest.mark.parametrize("operation", RESAMPLINGS)
def test_seed_tensor_and_occurrence_each_change_the_draws(operation):
    x = skewed(1000)
    results = [
        operation(x, random=random).tobytes()
        for random in (stream(), stream("v"), stream(seed=1), stream(occurrence=1))
    ]
    assert len(set(results)) == 4


@given(st.integers(1, 300), st.sampled_from(["f2", "f4", "f8", "bf16", "fp8"]))
@settings(deadline=None)
def test_shuffle_keeps_the_sorted_bytes(size, kind):
    dtype = {"bf16": ml_dtypes.bfloat16, "fp8": ml_dtypes.float8_e4m3fn}.get(kind, kind)
    x = skewed(size).astype(dtype).reshape(size, 1)
    y = shuffle(x, random=stream())
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    raw = f"u{x.dtype.itemsize}"
    np.testing.assert_array_equal(np.sort(x.view(raw), 0), np.sort(y.view(raw), 0))


def test_a_large_shuffle_is_a_permutation_that_moves_everything_everywhere():
    n = 4 * CHUNK
    y = shuffle(np.arange(n, dtype=np.float64), random=stream()).astype(int)
    np.testing.assert_array_equal(np.sort(y), np.arange(n))
    table = np.histogram2d(np.arange(n), y, bins=16)[0]  # from where to where: uniform
    assert stats.chisquare(table.ravel()).pvalue > 1e-3
    assert abs(np.corrcoef(y[:-1], y[1:])[0, 1]) < 0.01


def test_a_small_shuffle_reaches_every_permutation_equally_often():
    counts: dict[tuple[float, ...], int] = {}
    for i in range(6000):
        y = tuple(shuffle(np.arange(3.0), random=stream(f"t{i}")))
        counts[y] = counts.get(y, 0) + 1
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_sample_draws_with_replacement_from_the_values():
    x = skewed(CHUNK + 5)
    y = sample(x, random=stream())
    assert np.isin(y, x).all()
    assert len(np.unique(y)) / len(np.unique(x)) == pytest.approx(1 - np.exp(-1), abs=0.01)
    assert stats.ks_2samp(x, y).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_resampling_keeps_shape_and_dtype(dtype):
    x = skewed(60, dtype).reshape(3, 4, 5)
    for operation in RESAMPLINGS:
        y = operation(x, random=stream())
        assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_half_precision_is_rounded_once_from_float32():
    x = skewed(1000, np.float16)
    wide = meanvar(x.astype(np.float32), random=stream())
    np.testing.assert_array_equal(meanvar(x, random=stream()), wide.astype(np.float16))


def test_no_mean_and_variance_is_an_error():
    with pytest.raises(WsurgeryError, match="NaN"):
        meanvar(np.array([1.0, np.nan], np.float32), random=stream())


def test_moments_survive_a_large_offset():
    x = 1e8 + np.random.default_rng(0).normal(size=3 * CHUNK)
    assert moments(x, map).std == pytest.approx(x.std(), rel=1e-9)
    assert moments(x, map).mean == pytest.approx(x.mean(), rel=1e-15)


def test_summary_counts_what_is_not_a_number():
    x = np.array([0, 0, 1, 3, np.nan, np.inf, -np.inf], np.float32)
    s = summary(x)
    assert (s.zeros, s.nan, s.inf, s.min, s.max, s.mean) == (2, 1, 2, 0, 3, 1)
    assert s.std == pytest.approx(np.std([0, 0, 1, 3]))


@pytest.mark.parametrize("first", [True, False])
def test_a_whole_chunk_of_nan_or_infinity_changes_nothing_of_the_finite_rest(first):
    bad, finite = np.array([np.nan, np.inf], np.float32).repeat(CHUNK // 2), np.array([0.25, 0.5, 1.25], np.float32)
    s = summary(np.concatenate([bad, np.append(finite, np.full(CHUNK - 3, np.nan, np.float32))][:: 1 if first else -1]))
    assert (s.zeros, s.nan, s.inf) == (0, CHUNK // 2 + CHUNK - 3, CHUNK // 2)
    assert (s.min, s.max, s.mean) == (0.25, 1.25, pytest.approx(finite.mean(dtype=float)))
    assert s.std == pytest.approx(finite.std(dtype=float))


@pytest.mark.parametrize(("part", "value"), [("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)])
def test_batch_norm_identity(part, value):
    assert (batch_norm_identity(skewed(5), part=part) == np.full(5, value, np.float32)).all()


def papers_filters(size: int) -> np.ndarray:
    """The snippet of the paper's appendix F.3, with the crop applied to the resized kernel (as its text says)."""
    kernels = []
    for frequency in (0.08, 0.16, 0.25, 0.32):
        for theta in range(16):
            kernel = np.real(gabor_kernel(frequency, theta=theta / 16 * np.pi, sigma_x=2, sigma_y=2))
            if kernel.shape[0] > 10:
                kernel = resize(kernel, (10, 10))
            delta = 10 - size
            kernels.append(kernel[delta // 2 : -(delta - delta // 2), delta // 2 : -(delta - delta // 2)])
    return np.stack(kernels)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gabor_filters_take_no_scale_that_is_not_finite(value):
    x = np.ones((4, 3, 7, 7), np.float32)
    x[0, 0, 0, 0] = value
    with pytest.raises(WsurgeryError, match="holds NaN or infinity"), np.errstate(invalid="ignore"):
        gabor(x)


def test_the_gabor_bank_is_the_papers():
    np.testing.assert_allclose(gabor_bank(7), papers_filters(7), atol=1e-7)


@pytest.mark.parametrize("size", [3, 11, 16, 31])
def test_the_gabor_bank_of_another_size_is_cut_from_kernels_resized_by_as_much(size):
    resized = round(size * 10 / 7)
    start = (resized - size) // 2
    middle = slice(start, start + size)
    kernel = np.real(gabor_kernel(0.16, theta=np.pi / 4, sigma_x=2, sigma_y=2))
    expected = resize(kernel, (resized, resized))[middle, middle]
    np.testing.assert_allclose(gabor_bank(size)[16 + 4], expected, atol=1e-7)


@pytest.mark.parametrize("shape", [(64, 3, 7, 7), (32, 1, 5, 5), (100, 4, 3, 3), (8, 3, 16, 16)])
def test_gabor_filters_have_the_scale_of_what_they_replace_in_every_channel(shape):
    x = skewed(int(np.prod(shape))).reshape(shape)
    y = gabor(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert y.std(dtype=float) == pytest.approx(x.std(dtype=float), rel=1e-5)
    assert (y == y[:, :1]).all()
    assert len(np.unique(y[:64].round(5), axis=0)) == min(shape[0], 64)


@pytest.mark.parametrize("count", [8, 16, 32])
def test_fewer_gabor_filters_still_cover_the_angles_evenly(count):
    angles = sorted(index % 16 for index in _spread(count))
    gaps = np.diff([*angles, angles[0] + 16])
    assert gaps.max() <= 16 / count * 2
    assert len(set(_spread(count))) == count


def test_random_init_has_the_scales_of_timm_and_torch():
    conv = random_init(np.zeros((256, 64, 3, 3), np.float32), role="conv", fan_in=576, random=stream("c.weight"))
    assert conv.std() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    linear = random_init(np.zeros((100, 400), np.float32), role="linear", fan_in=400, random=stream("fc.weight"))
    assert abs(linear).max() <= 1 / 20
    assert linear.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    norm = random_init(np.zeros(4, np.float32), role="norm", fan_in=0, random=stream("n.weight"))
    assert (norm == 1).all()
    scale = random_init(np.zeros(4, np.float32), role="layer_scale", fan_in=0, random=stream("ls1.gamma"))
    assert (scale == np.float32(1e-5)).all()
    bare = random_init(np.ones(4, np.float32), role="bias", fan_in=0, random=stream("attn.q_bias"))
    assert (bare == 0).all()
