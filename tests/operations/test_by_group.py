"""Laws of resampling by filter, channel or position: each group of numbers is treated by itself."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from wsurgery.errors import WsurgeryError
from wsurgery.operations.meanvar import meanvar
from wsurgery.operations.random_streams import CHUNK, RandomStream
from wsurgery.operations.shuffle import shuffle, shuffle_axis

STREAM = RandomStream(0, "test", 0, "w")
SHAPES = [(40, 30, 3, 3), (300, 400), (5, 20_000, 4), (200_000, 3), (64, 1, 5, 5), (6, 5, 3, 3, 3)]
BY = {
    "meanvar per filter": partial(meanvar, per="filter"),
    "meanvar per channel": partial(meanvar, per="channel"),
    "shuffle within filter": partial(shuffle, within="filter"),
    "shuffle within position": partial(shuffle, within="position"),
}


def filters(x: np.ndarray) -> list[np.ndarray]:
    return [x[i].ravel() for i in range(x.shape[0])]


def channels(x: np.ndarray) -> list[np.ndarray]:
    return [x[:, i].ravel() for i in range(x.shape[1])]


def positions(x: np.ndarray) -> list[np.ndarray]:
    return [x[(slice(None), slice(None), *at)].ravel() for at in np.ndindex(x.shape[2:])]


def uneven(shape: tuple[int, ...], dtype=np.float32) -> np.ndarray:
    """Weights of which each filter and each channel has a mean and a scale of its own."""
    rng = np.random.default_rng(0)
    behind = (1,) * (len(shape) - 2)
    scale = rng.gamma(1, 1, (shape[0], 1, *behind)) + rng.gamma(1, 1, (1, shape[1], *behind))
    return (rng.gamma(2, 1, shape) * scale + rng.normal(size=scale.shape)).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("per", "groups"), [("filter", filters), ("channel", channels)])
def test_each_group_is_gaussian_with_its_own_mean_and_variance(per, groups, shape):
    x = uneven(shape)
    y = meanvar(x, random=STREAM, per=per)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    before = [group.astype(float) for group in groups(x)]
    standard = [(new - old.mean()) / old.std() for old, new in zip(before, groups(y), strict=True)]
    assert stats.kstest(np.concatenate(standard), "norm").pvalue > 1e-3
    if len(before[0]) > 20:
        p = [stats.kstest(group, "norm").pvalue for group in standard]
        assert min(p) > 1e-4 / len(p)


def test_two_groups_are_two():
    x = np.concatenate([np.full((1, 500), 3.0), np.random.default_rng(0).normal(-50, 1, (1, 500))]).astype(np.float32)
    y = meanvar(x, random=STREAM, per="filter")
    np.testing.assert_array_equal(y[0], 3)
    assert abs(y[1].mean() + 50) < 0.5
    assert 0.7 < y[1].std() < 1.4


@pytest.mark.parametrize("shape", [(50,), (64, 1, 5, 5)])
def test_one_group_is_the_whole_tensor(shape):
    x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
    assert meanvar(x, random=STREAM, per="channel").tobytes() == meanvar(x, random=STREAM).tobytes()
    assert meanvar(x, random=STREAM, per="tensor").tobytes() == meanvar(x, random=STREAM).tobytes()


def test_a_vector_has_no_filters():
    x = np.random.default_rng(0).normal(2, 3, 50).astype(np.float32)
    assert meanvar(x, random=STREAM, per="filter").tobytes() == meanvar(x, random=STREAM).tobytes()
    assert shuffle(x, random=STREAM, within="filter").tobytes() == shuffle(x, random=STREAM).tobytes()


def test_a_group_of_equal_numbers_stays():
    x = np.arange(5, dtype=np.float32).repeat(20).reshape(5, 4, 5)
    np.testing.assert_array_equal(meanvar(x, random=STREAM, per="filter"), x)


@pytest.mark.parametrize("operation", BY.values(), ids=BY)
@pytest.mark.parametrize("shape", [(7, 3, 3), (4 * CHUNK // 30, 5, 6), (6, CHUNK // 2)])
def test_threads_do_not_change_the_result(operation, shape):
    x = uneven(shape)
    with ThreadPoolExecutor(8) as pool:
        assert operation(x, random=STREAM).tobytes() == operation(x, random=STREAM, run=pool.map).tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn], ids=lambda d: d.__name__)
@pytest.mark.parametrize("per", ["filter", "channel"])
def test_half_precision_is_rounded_once_from_float32(per, dtype):
    x = uneven((20, 30, 3, 3), dtype)
    wide = meanvar(x.astype(np.float32), random=STREAM, per=per)
    largest = float(ml_dtypes.finfo(dtype).max)
    expected = np.clip(wide, -largest, largest).astype(dtype)
    np.testing.assert_array_equal(meanvar(x, random=STREAM, per=per), expected)


def test_one_number_that_is_none_is_an_error_wherever_it_stands():
    x = np.ones((4, 3, 2), np.float32)
    x[2, 1, 0] = np.inf
    for per in ("filter", "channel"):
        with pytest.raises(WsurgeryError, match="NaN or infinity"):
            meanvar(x, random=STREAM, per=per)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("within", "groups"), [("filter", filters), ("position", positions)])
def test_values_stay_in_their_group_and_change_places_in_it(within, groups, shape):
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    y = shuffle(x, random=STREAM, within=within)
    before, after = np.array(groups(x)), np.array(groups(y))
    np.testing.assert_array_equal(np.sort(before, axis=1), np.sort(after, axis=1))
    stayed = (before == after).sum()  # one of each group, on average
    assert stats.poisson.sf(stayed - 1, len(before)) > 1e-4
    ranks = after[:, :100].argsort(axis=1)  # no two groups have one permutation
    assert len(np.unique(ranks, axis=0)) > 0.9 * min(len(ranks), 6)


def test_within_small_groups_every_permutation_is_equally_frequent():
    y = shuffle(np.tile(np.arange(3.0), (6000, 1)), random=STREAM, within="filter")
    assert stats.chisquare(np.unique(y, axis=0, return_counts=True)[1]).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(9, 10, 3, 3), (9, 10), (50,), (8, 7, 3, 2, 2)])
@pytest.mark.parametrize("axis", ["out", "in", "space"])
def test_what_lies_on_an_axis_changes_places_as_a_whole(axis, shape):
    x = np.arange(np.prod(shape)).reshape(shape)
    y = shuffle_axis(x, axis=axis, random=STREAM)
    groups = {"out": filters, "in": channels, "space": positions}[axis]
    if axis == "out" or x.ndim > 1:
        np.testing.assert_array_equal(np.sort(np.stack(groups(x)), 0), np.sort(np.stack(groups(y)), 0))
        assert {tuple(group) for group in groups(x)} == {tuple(group) for group in groups(y)}
    moves = axis == "out" or x.ndim > (1 if axis == "in" else 2)
    assert (y != x).any() == moves


def test_the_axis_reaches_every_permutation_equally_often():
    counts: dict[bytes, int] = {}
    for i in range(3000):
        y = shuffle_axis(np.arange(3.0), axis="out", random=RandomStream(0, "test", 0, f"{i}"))
        counts[y.tobytes()] = counts.get(y.tobytes(), 0) + 1
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
