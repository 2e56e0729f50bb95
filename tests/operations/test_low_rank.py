"""`low-rank` against Eckart and Young: no matrix of the rank is nearer, and its error is that of the singular values left out."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_info, threadpool_limits

from tests.conftest import small_resnet
from wsurgery.errors import WsurgeryError
from wsurgery.operations.low_rank import low_rank

SHAPES = [(30, 20), (20, 30), (8, 3, 5, 5), (64, 1, 3, 3), (1, 7), (7, 1), (1, 1)]
DTYPES = [np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), np.dtype(ml_dtypes.bfloat16)]


def singular_values(x: np.ndarray) -> np.ndarray:
    return np.linalg.svd(x.reshape(len(x), -1).astype(float), compute_uv=False)


def matrix(shape: tuple[int, ...], dtype: object = "f4") -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(0.1, 1, shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_is_eckart_and_youngs(shape, dtype):
    x = matrix(shape, dtype)
    singular = singular_values(x)
    for rank in range(1, len(singular) + 1):
        y = low_rank(x, rank=rank)
        assert y.shape == shape
        error = np.linalg.norm((x.astype(float) - y).ravel())
        assert error == pytest.approx(np.sqrt((singular[rank:] ** 2).sum()), abs=1e-12 * singular[0])
        np.testing.assert_allclose(
            singular_values(y), [*singular[:rank], *singular[rank:] * 0], atol=1e-12 * singular[0]
        )


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("energy", [0, 0.1, 0.5, 0.9, 0.999, 1])
def test_energy_is_kept_by_the_least_rank_that_does(shape, energy):
    x = matrix(shape)
    squares = singular_values(x) ** 2
    y = low_rank(x, energy=energy)
    rank = np.linalg.matrix_rank(y.reshape(len(y), -1), tol=1e-9)
    assert squares[:rank].sum() >= (energy - 1e-12) * squares.sum()
    assert squares[: rank - 1].sum() < energy * squares.sum() or rank == 1
    assert (y.astype(float) ** 2).sum() == pytest.approx(squares[:rank].sum())


def test_singular_values_far_below_the_first_are_told_apart_in_float64():
    left, _ = np.linalg.qr(matrix((12, 12), "f8"))
    right, _ = np.linalg.qr(matrix((15, 12), "f8"))
    singular = 10.0 ** -np.arange(12)
    y = low_rank(left * singular @ right.T, rank=11)
    np.testing.assert_allclose(singular_values(y)[:11], singular[:11], rtol=1e-3)


def test_a_matrix_of_no_higher_rank_and_one_of_zeros_are_left():
    x = matrix((5, 9))
    assert low_rank(x, rank=5) is x
    assert not low_rank(x * 0, energy=0.9).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_has_no_singular_values_is_refused(bad):
    x = matrix((5, 9))
    x[2, 3] = bad
    with pytest.raises(WsurgeryError, match="--except"):
        low_rank(x, rank=2)


def test_blas_does_not_decide_the_bits():
    code = (
        "import numpy as np; from wsurgery.operations.low_rank import low_rank; from hashlib import sha256\n"
        "x = np.random.default_rng(800).normal(0.1, 1, (300, 500)).astype('f4')\n"
        "print(sha256(low_rank(x, energy=0.8).tobytes()).hexdigest())"
    )
    expected = subprocess.run(
        [sys.executable, "-c", code], env={"OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    ).stdout.strip()
    x = matrix((300, 500))
    with threadpool_limits(2, user_api="blas"), ThreadPoolExecutor(8) as pool:  # in and out of it at any time
        found = {
            hashlib.sha256(y.tobytes()).hexdigest() for y in pool.map(lambda _: low_rank(x, energy=0.8), range(40))
        }
        assert {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"} == {2}
    assert found == {expected}


def test_the_command_cuts_convolutions_and_linear_layers(invoke, resnet, tmp_path):
    invoke("low-rank", resnet, "--rank", 5, "-o", tmp_path / "y")
    before, after = small_resnet(), load_file(tmp_path / "y")
    ranks = {name: np.linalg.matrix_rank(y.reshape(len(y), -1), tol=1e-4) for name, y in after.items() if y.ndim > 1}
    assert set(ranks.values()) == {5}
    for name, x in before.items():
        assert (x.tobytes() == after[name].tobytes()) == (x.ndim < 2), name


def test_tables_are_cut_where_they_are_chosen(invoke, tmp_path):
    x = {"embed.weight": matrix((40, 8)), "fc.weight": matrix((8, 8)), "fc.bias": matrix((8,))}
    save_file(x, tmp_path / "x")
    for part, changed in (([], {"fc.weight"}), (["--only", "*"], {"embed.weight", "fc.weight"})):
        invoke("low-rank", tmp_path / "x", "--rank", 2, *part, "-o", tmp_path / "y", "--force")
        y = load_file(tmp_path / "y")
        assert {name for name in x if x[name].tobytes() != y[name].tobytes()} == changed


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "Give one of --rank R and --energy E"),
        (["--rank", 2, "--energy", 0.5], 2, "Give one of --rank R and --energy E"),
        (["--rank", 0], 2, "--rank"),
        (["--energy", 1.5], 2, "--energy"),
        (["--rank", 2, "--role", "depthwise"], 2, "no tensor has the role"),
        (["--rank", 2, "--only", "bn1.num_batches_tracked"], 2, "no weight of a convolution or linear layer"),
    ],
)
def test_a_mistake_leaves_no_file(arguments, status, words, invoke, resnet, tmp_path):
    done = invoke("low-rank", resnet, *arguments, "-o", tmp_path / "y", check=False)
    assert done.exit_code == status
    assert words in done.stderr
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("beyond", "what"), [(np.nan, "NaN or infinity"), (np.finfo(np.float64).max, "numbers near the end of float64")]
)
def test_a_tensor_without_singular_values_is_named(beyond, what, invoke, tmp_path):
    save_file({"a.weight": matrix((4, 4)), "fc.weight": np.full((4, 4), beyond)}, tmp_path / "x")
    done = invoke("low-rank", tmp_path / "x", "--rank", 2, "-o", tmp_path / "y", check=False)
    assert done.exit_code == 1
    assert done.stderr == (
        f"wsurgery low-rank: fc.weight holds {what}, so it has no singular values: leave it out with --except\n"
    )
    assert not (tmp_path / "y").exists()
