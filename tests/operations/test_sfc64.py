"""Many generators at once against numpy's own, one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsurgery.operations.sfc64 import raw_words

WORD = st.integers(0, 2**32 - 1)


@given(seeds=st.lists(st.lists(WORD, min_size=4, max_size=4), min_size=1, max_size=20), count=st.integers(1, 40))
def test_the_words_are_those_of_numpys_generators(seeds, count):
    own = np.array(seeds, np.uint32)
    expected = [np.random.SFC64(seed).random_raw(count) for seed in own]
    np.testing.assert_array_equal(raw_words(own, count), expected)
