"""Laws of the difference of two tensors, against numpy in float64 on whole arrays."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from wsurgery.checkpoint import TensorInfo, open_checkpoint
from wsurgery.checkpoint.dtypes import BITS
from wsurgery.checkpoint.writer import write_checkpoint
from wsurgery.operations.difference import Difference, difference, differences
from wsurgery.operations.random_streams import CHUNK

REAL = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def between(a, b, dtype: str) -> Difference:
    return difference(bytearray(a.tobytes()), bytearray(b.tobytes()), dtype)


def compare(a: dict, b: dict, tmp_path, **options) -> dict[str, Difference]:
    save_file(a, tmp_path / "a")
    save_file(b, tmp_path / "b")
    with open_checkpoint(tmp_path / "a") as x, open_checkpoint(tmp_path / "b") as y:
        return differences(x, y, x.tensors, **options)


@pytest.mark.parametrize("dtype", REAL)
def test_measures_equal_numpys(dtype):
    rng = np.random.default_rng(0)
    a = rng.normal(size=5000).astype(REAL[dtype])
    b = np.where(rng.random(5000) < 0.3, a, rng.normal(size=5000).astype(REAL[dtype]))
    x, y = a.astype(float), b.astype(float)
    found = between(a, b, dtype)
    assert found.relative_l2 == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-12)
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    assert found.max_difference == np.abs(y - x).max()
    assert found.equal == np.mean(x == y)
    assert not found.identical


def test_a_tensor_of_many_chunks_is_the_sum_of_its_parts_for_any_number_of_threads(tmp_path):
    rng = np.random.default_rng(0)
    a = {"x": rng.normal(size=3 * CHUNK + 17).astype(np.float32), "y": rng.normal(size=7).astype(np.float16)}
    b = {name: value + value.dtype.type(0.01) for name, value in a.items()}
    found = compare(a, b, tmp_path, threads=1)
    assert found == compare(a, b, tmp_path, threads=3)
    for name in a:
        x, y = a[name].astype(float), b[name].astype(float)
        assert found[name].relative_l2 == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-12)
        assert found[name].elements == x.size


def test_one_changed_element_in_the_last_chunk_is_found(tmp_path):
    a = np.ones(2 * CHUNK + 5, np.float32)
    b = a.copy()
    b[-1] = 3
    found = compare({"x": a}, {"x": b}, tmp_path)["x"]
    assert found.equal_elements == a.size - 1
    assert found.max_difference == 2
    assert found.relative_l2 == pytest.approx(2 / np.sqrt(a.size), rel=1e-12)


@pytest.mark.parametrize("size", [5, 100_000])
def test_the_cosine_of_opposites_is_minus_one(size):
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    y = np.roll(x, 1) - 2 * x
    assert difference(x.tobytes(), (-x).tobytes(), "F32").cosine == pytest.approx(-1)
    expected = np.dot(x.astype(float), y) / np.linalg.norm(x.astype(float)) / np.linalg.norm(y.astype(float))
    assert expected < -0.5
    assert difference(x.tobytes(), y.tobytes(), "F32").cosine == pytest.approx(expected)


def test_a_nan_with_equal_bits_is_equal_and_another_is_not():
    a = np.array([np.nan, np.inf, 3, 4], np.float32)
    same = between(a, a, "F32")
    assert (same.identical, same.relative_l2, same.cosine, same.max_difference) == (True, 0, 1, 0)
    elsewhere = between(a, np.array([np.nan, np.inf, 3, 5], np.float32), "F32")  # the rest is (3, 4) against (3, 5)
    assert elsewhere.relative_l2 == pytest.approx(1 / 5)
    assert elsewhere.cosine == pytest.approx(29 / (5 * np.sqrt(34)))
    assert elsewhere.equal == 0.75
    for other in ([np.inf, np.inf, 3, 4], [np.nan, -np.inf, 3, 4], [np.nan, np.inf, np.nan, 4]):
        changed = between(a, np.array(other, np.float32), "F32")
        assert (changed.relative_l2, changed.max_difference) == (None, None)
        assert changed.equal == 0.75
        assert not changed.identical
    assert (elsewhere + changed).max_difference is None
    assert (changed + elsewhere).relative_l2 is None


def test_norms_of_zero_and_norms_beyond_float64_are_undefined_not_wrong():
    zero, one = np.zeros(2), np.ones(2)
    assert (between(zero, one, "F64").relative_l2, between(zero, one, "F64").cosine) == (None, None)
    assert (between(one, zero, "F64").relative_l2, between(one, zero, "F64").cosine) == (1, None)
    assert between(zero, -zero, "F64").relative_l2 == 0  # equal values, other bits
    assert between(zero, -zero, "F64").equal == 0
    huge = np.full(2, 1e300)
    assert between(huge, one, "F64").relative_l2 is None
    assert (between(huge, huge, "F64") + between(one, zero, "F64")).relative_l2 is None


@pytest.mark.parametrize("dtype", sorted(set(BITS) - set(REAL)))
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_every_other_dtype_is_told_equal_or_not_by_its_bits(dtype, data):
    elements = 8
    size = elements * BITS[dtype] // 8
    a, b = data.draw(st.binary(min_size=size, max_size=size)), data.draw(st.binary(min_size=size, max_size=size))
    b = data.draw(st.sampled_from((a, a[:-1] + b[-1:], b)))
    found = difference(bytearray(a), bytearray(b), dtype)
    x, y = (int.from_bytes(side, "little") for side in (a, b))
    mask = (1 << BITS[dtype]) - 1
    equal = sum((x >> i * BITS[dtype]) & mask == (y >> i * BITS[dtype]) & mask for i in range(elements))
    assert (found.elements, found.equal_elements, found.identical) == (elements, equal, a == b)
    if a != b and not dtype.startswith("F8"):
        assert (found.relative_l2, found.cosine, found.max_difference) == (None, None, None)


def test_a_sub_byte_tensor_of_several_chunks_is_compared_at_whole_elements(tmp_path):
    elements = CHUNK + 4
    data = np.random.default_rng(0).integers(0, 256, elements * 6 // 8, np.uint8).tobytes()
    info = TensorInfo("x", "F6_E2M3", (elements,), 0, 0).placed(0)
    write_checkpoint(tmp_path / "a", [(info, data)], {})
    write_checkpoint(tmp_path / "b", [(info, data[:-1] + bytes([data[-1] ^ 128]))], {})
    with open_checkpoint(tmp_path / "a") as a, open_checkpoint(tmp_path / "b") as b:
        assert differences(a, b, ["x"])["x"].equal_elements == elements - 1


def test_no_elements_are_identical(tmp_path):
    assert compare({"x": np.zeros((0, 3), np.float32)}, {"x": np.zeros((0, 3), np.float32)}, tmp_path)["x"].identical
