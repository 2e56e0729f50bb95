"""Laws of the edits that every toolkit has, each operation a pure function of tensors or names."""

import math
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from wsurgery.commands.add_noise import add_noise
from wsurgery.commands.scale import scale
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.operations.average import weighted_sum
from wsurgery.operations.cast import cast, overflow_count
from wsurgery.operations.names import aliases_after, frozen_after, new_names
from wsurgery.operations.random_streams import CHUNK, RandomStream
from wsurgery.operations.tensors import edit_array

BF16, E4M3, E5M2 = (np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2))
TORCH = {
    np.dtype("f8"): torch.float64, np.dtype("f4"): torch.float32, np.dtype("f2"): torch.float16, BF16: torch.bfloat16,
    E5M2: torch.float8_e5m2, E4M3: torch.float8_e4m3fn,
}  # fmt: skip


def every(dtype: np.dtype) -> np.ndarray:
    """Every value of a type of one or two bytes, NaN and infinities too."""
    return np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)


def finite(dtype: np.dtype) -> np.ndarray:
    """Every finite value of a type of one or two bytes, in order, as float64."""
    with np.errstate(invalid="ignore"):
        values = every(dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


def to_torch(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.view(f"i{x.dtype.itemsize}").copy()).view(TORCH[x.dtype])


def floats(size: int, seed: int = 0) -> np.ndarray:
    """float32 over all exponents, with ties and neighbours of ties for the narrower types."""
    bits = np.random.default_rng(seed).integers(0, 2**32, size, dtype=np.uint32)
    bits[::3] &= np.uint32(0xFFFF8000)
    bits[1::3] &= np.uint32(0xFFF80000)
    return bits.view(np.float32)


@pytest.mark.parametrize("target", [np.dtype("f2"), np.dtype("f4"), np.dtype("f8"), BF16, E5M2], ids=str)
@pytest.mark.parametrize("source", [np.dtype("f2"), BF16, E4M3, E5M2, np.dtype("f4")], ids=str)
def test_a_cast_rounds_as_torch_does(source, target):
    x = floats(300_000) if source == np.float32 else every(source)
    expected = to_torch(x).to(TORCH[target]).to(torch.float64).numpy()
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(cast(x, dtype=target).astype(np.float64), expected)


def test_e4m3_rounds_as_torch_does_within_its_range_and_is_nan_beyond():
    x = floats(300_000)
    x = x[np.isfinite(x)]
    y = cast(x, dtype=E4M3).astype(np.float32)
    inside = abs(x) <= 464  # halfway between the largest value, 448, and what would follow it
    np.testing.assert_array_equal(y[inside], to_torch(x[inside]).to(torch.float8_e4m3fn).to(torch.float32).numpy())
    assert np.isnan(y[~inside]).all()


@pytest.mark.parametrize("target", [np.dtype("f2"), BF16, E4M3, E5M2], ids=str)
def test_float64_is_rounded_once_to_the_nearest_value(target):
    grid = finite(target)
    middles = (grid[:-1] + grid[1:]) / 2
    nudge = abs(middles) * 2.0**-45 + np.finfo(float).tiny
    np.testing.assert_array_equal(cast(middles + nudge, dtype=target).astype(np.float64), grid[1:])
    np.testing.assert_array_equal(cast(middles - nudge, dtype=target).astype(np.float64), grid[:-1])
    ties = cast(middles, dtype=target)
    assert (ties.view(f"u{target.itemsize}") & 1 == 0).all()


def test_float16_has_numpys_bytes_for_all_its_values_ties_and_their_neighbours():
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = np.append((exact[:-1] + exact[1:]) / 2, np.float32(65520))  # exact in float32
    ties = ties.view(np.uint32)
    bits = np.concatenate([exact.view(np.uint32), ties - 1, ties, ties + 1])
    bits = np.concatenate([bits, bits | np.uint32(1 << 31)])
    finite_result = np.tile(bits[bits.view(np.float32) < 65520], 4)  # more than one block, without an overflow
    special = np.uint32([0x7F800000, 0xFF800000, 0x7FC01234, 0xFFC00001, 0x7F801FFF])  # infinities and NaN
    for x in (finite_result, bits, np.concatenate([finite_result, special]), special, finite_result[:0]):
        with np.errstate(over="ignore", invalid="ignore"):
            expected = x.view(np.float32).astype(np.float16)
        assert cast(x.view(np.float32), dtype=np.dtype("f2")).tobytes() == expected.tobytes()


def test_half_precision_survives_the_way_through_float32():
    x = every(np.dtype("f2"))
    x = x[~np.isnan(x)]
    assert cast(cast(x, dtype=np.dtype("f4")), dtype=np.dtype("f2")).tobytes() == x.tobytes()


@pytest.mark.parametrize("target", [np.dtype("f2"), BF16, E5M2], ids=str)
def test_overflows_are_counted_as_the_values_beyond_the_largest(target):
    x = np.concatenate([floats(CHUNK), np.float32([np.inf, np.nan])])
    largest = float(ml_dtypes.finfo(target).max)
    half_step = (largest - float(np.nextafter(ml_dtypes.finfo(target).max, target.type(0)))) / 2
    expected = int((abs(x[np.isfinite(x)].astype(np.float64)) >= largest + half_step).sum())
    assert expected > 0
    assert overflow_count(x, cast(x, dtype=target)) == expected


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", BF16], ids=str)
def test_scale_is_the_product_in_the_working_precision(dtype):
    x = np.random.default_rng(0).normal(size=1000).astype(dtype)
    working = np.float64 if x.dtype == np.float64 else np.float32
    np.testing.assert_array_equal(edit_array(scale, x, by=0.3), (x.astype(working) * working(0.3)).astype(dtype))
    assert edit_array(scale, x, by=1).tobytes() == x.tobytes()
    assert edit_array(scale, x, by=-2).dtype == x.dtype


def test_noise_is_gaussian_of_the_given_deviation_in_every_chunk():
    x = np.random.default_rng(0).normal(3, 2, 2 * CHUNK + 17)
    for relative, expected in ((False, 0.1), (True, 0.1 * x.std())):
        noise = edit_array(add_noise, x, std=0.1, relative=relative, random=RandomStream(0, "n", 0, "w")) - x
        for start in (0, CHUNK):
            assert stats.kstest(noise[start : start + CHUNK], "norm", (0, expected)).pvalue > 1e-4
    assert (edit_array(add_noise, x, std=0, relative=False, random=RandomStream(0, "n", 0, "w")) == x).all()


def test_noise_relative_to_what_has_no_deviation_is_an_error():
    with pytest.raises(WsurgeryError, match="--except"):
        edit_array(add_noise, np.array([1, np.nan]), std=1, relative=True, random=RandomStream(0, "n", 0, "w"))


def test_threads_do_not_change_the_result():
    x = floats(3 * CHUNK + 17)
    x[~np.isfinite(x)] = 1
    operations = [
        lambda run: cast(x, dtype=BF16, run=run),
        lambda run: edit_array(scale, x, by=0.7, run=run),
        lambda run: edit_array(add_noise, x, std=2, relative=False, random=RandomStream(0, "n", 0, "w"), run=run),
        lambda run: weighted_sum([x, x[::-1], x], [0.3, 0.6, 0.1], dtype=x.dtype, run=run)[0],
    ]
    with ThreadPoolExecutor(8) as pool:
        for operation in operations:
            assert operation(map).tobytes() == operation(pool.map).tobytes()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20), st.integers(1, 9))
@settings(deadline=None)
def test_the_average_of_equal_tensors_is_the_tensor_bit_for_bit(values, copies):
    x = np.array(values, np.float32)
    average, lost = weighted_sum([x] * copies, [1 / copies] * copies, dtype=x.dtype)
    assert (average.tobytes(), lost) == (x.tobytes(), 0)


@pytest.mark.parametrize("dtype", [np.dtype("f2"), BF16, E4M3], ids=str)
def test_a_narrow_sum_is_the_exact_one_rounded_once(dtype):
    rng = np.random.default_rng(0)
    parts = [(rng.normal(size=300).astype(dtype), weight) for weight in (0.5, 0.25, 0.25)]
    y, _ = weighted_sum(*zip(*parts, strict=True), dtype=dtype)
    exact = np.array([math.fsum(float(x[i]) * weight for x, weight in parts) for i in range(300)])
    above = np.searchsorted(finite(dtype), exact)
    distance = np.minimum(finite(dtype)[above] - exact, exact - finite(dtype)[above - 1])
    np.testing.assert_array_equal(abs(y.astype(np.float64) - exact), distance)


def test_names_are_rewritten_as_re_sub_does():
    names = ["module.layer1.0.w", "module.layer2.0.w", "fc.w"]
    assert new_names(names, r"^module\.layer(\d)", r"stages.\1", chosen=names) == {
        "module.layer1.0.w": "stages.1.0.w",
        "module.layer2.0.w": "stages.2.0.w",
        "fc.w": "fc.w",
    }
    assert list(new_names(names, r"\.w", ".v", chosen=names[2:]).values()) == [*names[:2], "fc.v"]


@pytest.mark.parametrize(
    ("pattern", "replacement", "error", "words"),
    [
        (r"\d", "x", WsurgeryError, "a1 and a2 would both be called ax"),
        ("^a1$", "b", WsurgeryError, "a1 and b would both be called b"),
        ("^.*$", "", WsurgeryError, "a1 would be called ''"),
        ("^a1$", "__metadata__", WsurgeryError, "a1 would be called '__metadata__'"),
        ("z", "y", UsageError, "matches no tensor: the names here are like a1, a2, b"),
        ("(", "y", UsageError, "not a regular expression"),
        ("a", r"\3", UsageError, "not a regular expression"),
        ("a", r"\g<x>", UsageError, "not a regular expression"),
    ],
)
def test_names_that_cannot_be_are_refused(pattern, replacement, error, words):
    with pytest.raises(error) as caught:
        new_names(["a1", "a2", "b"], pattern, replacement, chosen=["a1", "a2", "b"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_freeze_specification_follows_the_names():
    assert set(frozen_after(["a.*"], {"a.1": "x.1", "a.2": "x.2", "b": "b"})) == {"x.*"}
    assert frozen_after(["a.*", "b"], {"a.1": "a.1"}) == ("a.*",)
    assert frozen_after(["b"], {"a.1": "a.1"}) == ()
    assert frozen_after(["a.*"], {"a.1": "q", "b": "a.1"}) == ("q",)  # the old glob would catch another tensor


def test_aliases_of_tied_tensors_follow_their_tensor():
    metadata, aliases = {"format": "pt", "head.weight": "embed.weight"}, {"head.weight": "embed.weight"}
    names = {"embed.weight": "model.embed.weight", "head.weight": "model.head.weight"}
    assert aliases_after(metadata, aliases, names) == {"format": "pt", "model.head.weight": "model.embed.weight"}
    assert aliases_after(metadata, aliases, {"head.weight": "head.weight"}) == {"format": "pt"}
