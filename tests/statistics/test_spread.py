import numpy as np
import pytest

from wsurgery.statistics.spread import spread


@pytest.mark.parametrize("n", [2, 3, 4, 7])
def test_spread_is_the_range_of_few_and_the_standard_deviation_of_more(n: int) -> None:
    values = np.random.default_rng(n).random(n)
    found = spread(list(values))
    assert found.mean == pytest.approx(values.mean())
    half = values.std(ddof=1)
    expected = (values.min(), values.max()) if n < 4 else (values.mean() - half, values.mean() + half)
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.kind == ("range" if n < 4 else "sd")


def test_one_value_has_no_spread() -> None:
    assert spread([0.5]) == (0.5, 0.5, 0.5, "")
