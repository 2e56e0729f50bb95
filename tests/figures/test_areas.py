"""The map of blocks: what is drawn is in proportion, in order, and fills the map once."""

from itertools import pairwise

import numpy as np
import pytest

from wsurgery.anatomy.roles import ROLES
from wsurgery.figures.areas import ROLE_COLOURS, change_word, colourings, strips, together


@pytest.mark.parametrize("sizes", [[1], [1, 1], [5, 1, 1, 1], [1e9, 1, 1], list(range(1, 60)), [1] * 500])
@pytest.mark.parametrize("aspect", [0.5, 2])
def test_areas_are_in_proportion_and_tile_the_map_in_order(sizes, aspect):
    places = np.array(strips(sizes, aspect))
    left, top, width, height = places.T
    np.testing.assert_allclose(width * height / 1e4, np.array(sizes) / sum(sizes))
    assert (left >= 0).all()
    assert (left + width < 100 + 1e-6).all()
    assert (top + height < 100 + 1e-6).all()
    for before, after in pairwise(places):  # right of it, or at the left of the row below
        if after[0] > 0:
            np.testing.assert_allclose(after[:2], [before[0] + before[2], before[1]], atol=1e-9)
        else:
            np.testing.assert_allclose(after[1], before[1] + before[3], atol=1e-9)


def test_equal_blocks_are_nearly_square():
    _, _, width, height = np.array(strips([1] * 50, 2.0)).T
    assert (np.maximum(2 * width / height, height / width / 2) < 3).all()


def test_cells_add_up_and_integers_have_none():
    rows = [
        {"role": role, "dtype": dtype, "state": "trained", "parameters": n}
        for n, (role, dtype) in enumerate([("conv", "F32"), ("conv", "F32"), ("bias", "F16"), ("conv", "F32")])
    ]
    ways = colourings(rows)
    assert [way.key for way in ways] == ["role", "dtype", "state"]
    assert sorted(together(rows, ways).values()) == [2, 4]


def test_every_role_that_has_parameters_has_its_own_colour():
    assert ROLE_COLOURS.keys() == set(ROLES) - {"buffer", "integer", "other"}
    assert len(set(ROLE_COLOURS.values())) == len(ROLE_COLOURS)


def test_changes_fall_in_classes_whose_words_are_true():
    assert [change_word(value) for value in (None, 0.0, 0.01, 0.02, 0.5, 1.0, 1.1)] == [
        "undefined: from 0, or no counterpart", "unchanged", "up to 0.01", "up to 0.1", "up to 0.5", "up to 1", "above 1",
    ]  # fmt: skip
