"""Laws of singular values with other singular vectors."""

from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from wsurgery.errors import WsurgeryError
from wsurgery.operations.cast import cast
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.spectrum import _rotate, spectrum

KEEP = ("none", "left", "right")
SHAPES = [(40, 5, 3, 3), (100, 7), (300, 1, 3, 3), (7, 500), (1, 6, 2), (3, 1), (1, 1, 1, 2)]


def stream(tensor: str = "w") -> RandomStream:
    return RandomStream(0, "test", 0, tensor)


def weights(shape: tuple[int, ...], dtype=np.float64) -> np.ndarray:
    """Weights of a steep spectrum, with a mean."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(shape[0], int(np.prod(shape[1:]))))
    left, values, right = np.linalg.svd(x, full_matrices=False)
    return (left * values**3 / values[0] ** 3 @ right + 0.01).reshape(shape).astype(dtype)


def matrix(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1).astype(float)


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_singular_values_stay_and_so_does_the_side_that_is_kept(shape, keep):
    x = weights(shape)
    y = spectrum(x, keep=keep, random=stream())
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    before, after = matrix(x), matrix(y)
    expected = np.linalg.svd(before, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(after, compute_uv=False), expected, rtol=0, atol=1e-9 * expected[0])
    outputs, inputs = after @ after.T - before @ before.T, after.T @ after - before.T @ before
    if keep != "none":  # U S^2 U^T, or V S^2 V^T
        kept, replaced = (outputs, inputs) if keep == "left" else (inputs, outputs)
        assert np.abs(kept).max() < 1e-9 * expected[0] ** 2
        assert len(replaced) == 1 or np.abs(replaced).max() > 0.1 * expected[0] ** 2 / len(replaced)


@pytest.mark.parametrize("keep", KEEP)
def test_replaced_vectors_have_nothing_to_do_with_the_old_ones(keep):
    x = weights((12, 4, 2, 2))
    left, _, right = np.linalg.svd(matrix(x))
    overlaps = []
    for i in range(400):
        new_left, _, new_right = np.linalg.svd(matrix(spectrum(x, keep=keep, random=stream(f"{i}"))))
        overlaps.append([(new_left[:, 0] @ left[:, 0]) ** 2, (new_right[0] @ right[0]) ** 2])
    for side, kept, size in zip(np.transpose(overlaps), ("left", "right"), (12, 16), strict=True):
        if keep == kept:
            np.testing.assert_allclose(side, 1, rtol=1e-9)
        else:  # of a vector that is uniform on the sphere
            assert stats.kstest(side, "beta", (1 / 2, (size - 1) / 2)).pvalue > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_rotations_are_distributed_as_scipys_orthogonal_matrices(size):
    found = np.array([np.eye(size) for _ in range(2000)])
    for i, each in enumerate(found):
        _rotate(each, random=stream(f"{i}"), first=0, run=map)
    np.testing.assert_allclose(found @ found.transpose(0, 2, 1), np.broadcast_to(np.eye(size), found.shape), atol=1e-10)
    assert stats.binomtest(int((np.linalg.det(found) > 0).sum()), len(found)).pvalue > 1e-3
    if size > 1:
        expected = stats.ortho_group.rvs(size, 2000, random_state=1)
        for of in (lambda q: q[:, 0, 0], lambda q: q[:, -1, 0], lambda q: q[:, 0, -1], lambda q: q[:, -1, -1]):
            assert stats.ks_2samp(of(found), of(expected)).pvalue > 1e-3
        for power in (found, expected), (found @ found, expected @ expected):
            one, other = (np.trace(each, axis1=1, axis2=2).round(9) for each in power)  # often 0
            assert stats.ks_2samp(one, other).pvalue > 1e-3


@pytest.mark.parametrize("size", [128, 129, 400])
def test_a_large_rotation_is_orthogonal_and_spreads_evenly(size):
    q = np.eye(size)
    _rotate(q, random=stream(), first=0, run=map)
    assert np.abs(q @ q.T - np.eye(size)).max() < 1e-10
    assert stats.kstest(q.ravel() * size**0.5, "norm").pvalue > 1e-3
    assert stats.kstest(np.diagonal(q) * size**0.5, "norm").pvalue > 1e-3


@pytest.mark.parametrize("keep", KEEP)
@pytest.mark.parametrize("shape", [(7, 3, 3, 3), (300, 2000), (2000, 300)])
def test_threads_do_not_change_the_result(keep, shape):
    x = weights((7, 3, 3, 3)) if shape[0] == 7 else np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with ThreadPoolExecutor(8) as pool:
        together = spectrum(x, keep=keep, random=stream(), run=pool.map)
    assert spectrum(x, keep=keep, random=stream()).tobytes() == together.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_narrow_types_are_rounded_once_from_float64(dtype):
    x = weights((20, 5, 3, 3), dtype)
    wide = spectrum(x.astype(np.float64), random=stream())
    assert spectrum(x, random=stream()).tobytes() == cast(wide, dtype=np.dtype(dtype)).tobytes()


def test_a_vector_is_left_alone_and_what_is_no_number_refused():
    x = np.arange(5, dtype=np.float32)
    assert spectrum(x, random=stream()).tobytes() == x.tobytes()
    signalling = np.array([[0x7F800001]], np.uint32).view(np.float32)
    for beyond in (np.array([[np.inf]], np.float32), signalling, np.array([[np.finfo(np.float64).max, 1]])):
        with pytest.raises(WsurgeryError, match="--except"):
            spectrum(beyond, random=stream())
    assert np.isfinite(spectrum(np.full((9, 4), 1e305), random=stream())).all()
