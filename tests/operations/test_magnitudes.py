import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from wsurgery.operations.magnitudes import magnitude, of_ranks


@given(
    st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e-45]), min_size=1, max_size=60),
    st.integers(1, 7),
    st.data(),
)
def test_they_stand_where_a_sort_puts_them(values, parts, data):
    sizes = magnitude(np.array(values))
    ranks = data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=4))

    def visit(look):
        for part in np.array_split(sizes, parts):
            look(part)

    np.testing.assert_array_equal(of_ranks(ranks, visit), np.sort(sizes)[ranks])
