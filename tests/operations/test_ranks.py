import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsurgery.operations.ranks import magnitude_keys, of_ranks

VALUES = [0.0, 1.0, -1.0, 1e-45, float("nan"), float("inf")]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(values=st.lists(st.floats(width=32) | st.sampled_from(VALUES), min_size=1, max_size=60), data=st.data())
def test_they_stand_where_a_sort_puts_them(dtype, values, data):
    values = np.array(values, dtype) * dtype(1 + 2**-40)
    ranks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=4))
    parts = np.array_split(values, data.draw(st.integers(1, 7)))

    def visit(look):
        for part in parts:
            look(magnitude_keys(part, wide=dtype is np.float64))

    found = of_ranks(ranks, visit, bits=dtype().itemsize * 8)
    # NaNs of several bits are told apart by those, and not by a sort.
    in_order = np.sort(magnitude_keys(values, wide=dtype is np.float64))
    np.testing.assert_array_equal(np.sort(abs(values)), in_order.view(dtype))
    for rank, (key, before, alike) in zip(ranks, found, strict=True):
        assert key == in_order[rank]
        assert before == rank - np.searchsorted(in_order, key)
        assert alike == (in_order == key).sum()
