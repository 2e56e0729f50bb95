"""The first words of many of numpy's generators at once: what `SFC64(seed).random_raw(n)` gives, without an object for each.

Numpy takes some 15 µs to seed one generator, which is all that a tensor of one element costs.
"""

import numpy as np
from numpy.typing import NDArray

_ALL_BITS = 0xFFFFFFFF


def raw_words(seeds: NDArray[np.uint32], count: int) -> NDArray[np.uint64]:
    """Return the first `count` words of a generator for each seed.

    The seeding is numpy's `SeedSequence` (after M. E. O'Neill's `seed_seq_fe`), the generator C. Doty-Humphrey's small fast
    counting generator, `sfc64`.

    Args:
        seeds: (n, 4).
        count: how many words of each.

    Returns:
        (n, count).
    """
    a, b, c = _states(seeds.T)
    words = np.empty((count, len(seeds)), np.uint64)
    for i in range(-12, count):  # twelve are dropped
        word = a + b + np.uint64(i + 13)
        a = b ^ (b >> np.uint64(11))
        b = c + (c << np.uint64(3))
        c = ((c << np.uint64(24)) | (c >> np.uint64(40))) + word
        if i >= 0:
            words[i] = word
    return words.T


def _states(entropy: NDArray[np.uint32]) -> list[NDArray[np.uint64]]:
    pool, constant = [], 0x43B0D7E5
    for part in entropy:
        hashed, constant = _hashed(part, constant, 0x931E8875)
        pool.append(hashed)
    for source in range(4):
        for target in range(4):
            if source != target:
                hashed, constant = _hashed(pool[source], constant, 0x931E8875)
                mixed = pool[target] * np.uint32(0xCA01F9DD) - hashed * np.uint32(0x4973F715)
                pool[target] = mixed ^ (mixed >> np.uint32(16))
    halves, constant = [], 0x8B51F9DD
    for i in range(6):
        hashed, constant = _hashed(pool[i % 4], constant, 0x58F38DED)
        halves.append(hashed.astype(np.uint64))
    return [halves[i] | (halves[i + 1] << np.uint64(32)) for i in (0, 2, 4)]


def _hashed(words: NDArray[np.uint32], constant: int, factor: int) -> tuple[NDArray[np.uint32], int]:
    following = constant * factor & _ALL_BITS
    words = (words ^ np.uint32(constant)) * np.uint32(following)
    return words ^ (words >> np.uint32(16)), following
