"""Products of matrices that are exact sums: the same whatever the order in which they are added."""

import os
import subprocess
import sys

import numpy as np
import pytest

from wsurgery.operations.products import halves, product

# Shapes where LAPACK's and BLAS's own results change with the number of threads or the kind of processor.
MADE = """
import hashlib
import numpy as np
from wsurgery.operations.covariance import covariance
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.spectrum import spectrum
x = np.random.default_rng(0).normal(size=(512, 300, 1, 1)).astype("f4")
random = RandomStream(0, "test", 0, "w")
covariances = [covariance(each, of="filter", random=random) for each in (x, x.reshape(60, 2560))]
for y in (*covariances, spectrum(x, random=random)):
    print(hashlib.sha256(y.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("inner", [1, 9, 200, 5000])
@pytest.mark.parametrize("spread", [0, 30])
def test_a_product_is_right_and_does_not_depend_on_the_order_of_its_sums(inner, spread):
    rng = np.random.default_rng(inner)
    left = rng.normal(size=(20, inner)) * np.exp2(rng.integers(-spread, spread + 1, (20, 1)))
    right = rng.normal(size=(inner, 30)) * np.exp2(rng.integers(-spread, spread + 1, (1, 30)))
    left[3], right[:, 4] = 0, 0
    found = product(halves(left, axis=1), halves(right, axis=0))
    exact = (left.astype(np.longdouble) @ right.astype(np.longdouble)).astype(float)
    scale = np.abs(left).max(1)[:, None] * np.abs(right).max(0) * inner
    assert (np.abs(found - exact) <= scale * 2.0**-36).all()
    for _ in range(3):
        order = rng.permutation(inner)
        again = product(halves(left[:, order], axis=1), halves(right[order], axis=0))
        assert again.tobytes() == found.tobytes()


def test_neither_threads_nor_the_processor_change_a_bit():
    results = set()
    for threads, kind in (("1", ""), ("2", ""), ("8", "Haswell"), ("1", "Nehalem")):
        env = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OPENBLAS_CORETYPE": kind}
        done = subprocess.run([sys.executable, "-c", MADE], env=env, capture_output=True, text=True, check=True)
        results.add(done.stdout)
    assert len(results) == 1
