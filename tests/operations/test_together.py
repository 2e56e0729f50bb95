"""Small tensors that are computed together come out as each does alone, bit for bit."""

import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wsurgery
from wsurgery.operations.difference import _together, difference
from wsurgery.operations.statistics import summaries, summary

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
SHAPES = [(), (1,), (2,), (3,), (0, 4), (7, 5), (130,)]


def small(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        f"m{i}.{dtype}.v": np.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3)).astype(kind)
        for i, shape in enumerate(SHAPES * 2)
        for dtype, kind in DTYPES.items()
    } | {"counter": np.array(3)}


def bits(state: dict[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...], bytes]]:
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in state.items()}


EDITS = {
    "scale": lambda a, b: wsurgery.open(a).scale(by=1 / 3),
    "add-noise": lambda a, b: wsurgery.open(a).add_noise(std=0.1, seed=3),
    "add-noise relative": lambda a, b: wsurgery.open(a).add_noise(std=0.1, relative=True),
    "cast": lambda a, b: wsurgery.open(a).cast(to="bf16"),
    "cast to float8": lambda a, b: wsurgery.open(a).cast(to="fp8_e4m3"),
    "average": lambda a, b: wsurgery.average(a, b, weights="0.3,0.7"),
    "lerp": lambda a, b: wsurgery.lerp(a, b, t=-1.5),
    "a chain": lambda a, b: wsurgery.lerp(a, b, t=0.3).scale(by=3.1).rename("$", ".w").add_noise(std=1).cast(to="fp16"),
}


@pytest.mark.filterwarnings("ignore:.*finite values")
@pytest.mark.parametrize("make", EDITS.values(), ids=EDITS)
def test_all_at_once_is_each_alone(make):
    a, b = small(0), small(1)
    alone = [make({name: a[name]}, {name: b[name]}).state_dict() for name in a]
    assert bits(make(a, b).state_dict()) == bits({name: x for one in alone for name, x in one.items()})


def test_what_is_computed_together_is_rounded_as_numpy_does():
    a = {f"x{i}": np.float32(i) + np.arange(i, dtype=np.float32) / 7 for i in range(50)}
    for name, x in wsurgery.open(a).scale(by=1 / 3).state_dict().items():
        np.testing.assert_array_equal(x, a[name] * np.float32(1 / 3))


@pytest.mark.parametrize("value", [60000, np.inf, np.nan])
def test_an_overflow_among_many_is_reported_with_its_name(value, tmp_path):
    a = {f"x{i}": np.full(3, i, np.float16) for i in range(50)}
    a["x30"][1] = value
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = wsurgery.open(a).scale(by=2)
        state = result.state_dict()
        result.write(tmp_path / "x")
    expected = ["1 finite values in 1 tensors became infinite, first in x30"] if value == 60000 else []
    assert [str(line.message).partition(":")[0] for line in said] == expected
    np.testing.assert_array_equal(state["x30"], np.float16([60, np.nan if np.isnan(value) else np.inf, 60]))


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(list(DTYPES)), size=st.integers(0, 300), count=st.integers(1, 6), seed=st.integers(0, 99),
    special=st.sampled_from([None, np.nan, np.inf, -np.inf, 0.0]),
)  # fmt: skip
def test_summaries_and_differences_of_many_are_those_of_each(dtype, size, count, seed, special):
    rng = np.random.default_rng(seed)
    sides = rng.normal(size=(2, count, size)) * 10.0 ** rng.integers(-2, 3, size=(1, count, 1))
    sides[1] = np.where(rng.random((count, size)) < 0.5, sides[0], sides[1])
    if special is not None and size:
        sides[:, 0, size // 2] = special
    a, b = ([row.astype(DTYPES[dtype]) for row in side] for side in sides)
    assert summaries(a) == [summary(x) for x in a]
    pairs = [(x.tobytes(), y.tobytes()) for x, y in zip(a, b, strict=True)]
    found = _together(pairs, dtype, len(pairs[0][0]))
    assert repr(found) == repr([difference(x, y, dtype) for x, y in pairs])  # repr: NaN is NaN
