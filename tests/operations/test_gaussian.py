"""Laws of the float32 normal numbers."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from wsurgery.operations.gaussian import float32_normal


def draw(size: int, seed: int = 0) -> np.ndarray:
    out = np.full(size, np.nan, np.float32)
    float32_normal(np.random.Generator(np.random.SFC64(seed)), out)
    return out


@pytest.mark.parametrize("size", [1, 2, 1001, 200_001])
def test_the_numbers_are_box_and_mullers_in_float32(size):
    half = -(-size // 2)
    words = np.random.Generator(np.random.SFC64(0)).integers(1 << 64, size=half, dtype=np.uint64).view(np.uint32)
    radius, angle = words[:half], words[half:]
    r = np.sqrt(-2 * np.log((radius | 1).astype(np.float32) / 2.0**32))
    v = (angle << np.uint32(1)).view(np.int32) * (np.pi / 2**32)
    cosine = np.where(angle >> np.uint32(31), -np.cos(v), np.cos(v))
    np.testing.assert_allclose(draw(size), np.concatenate([r * np.sin(v), r * cosine])[:size], rtol=0, atol=2e-6)


def test_they_are_normal_also_in_their_tails_and_pairs():
    x = draw(4_000_000)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    for limit in (1, 2, 3, 4):
        beyond = 2 * stats.norm.sf(limit)
        assert stats.binomtest(int((abs(x) > limit).sum()), x.size, beyond).pvalue > 1e-3
    pairs = x.reshape(2, -1)
    angles = (np.arctan2(*pairs) / np.pi + 1) / 2
    assert stats.kstest(angles, "uniform").pvalue > 1e-3
    assert stats.kstest((pairs.astype(float) ** 2).sum(0) / 2, "expon").pvalue > 1e-3


def test_the_largest_and_smallest_radius_are_finite():
    class Words:
        """A generator whose words are all zeros, or all ones."""

        def __init__(self, word: int) -> None:
            self.word = word

        def integers(self, _high: int, *, size: int, dtype: type) -> np.ndarray:
            return np.full(size, self.word, dtype)

    for word, radius in ((0, np.sqrt(64 * np.log(2))), ((1 << 64) - 1, 0)):
        out = np.empty(2, np.float32)
        float32_normal(Words(word), out)
        assert np.hypot(*out) == pytest.approx(radius, rel=1e-6)


def test_every_machine_draws_the_same_bits():
    assert hashlib.sha256(draw(100_001, seed=7).astype("<f4").tobytes()).hexdigest()[:16] == "29b7da423d6f8510"
