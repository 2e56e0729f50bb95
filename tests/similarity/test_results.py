import numpy as np
import pytest

from wsurgery.similarity.results import _jackknife

GROUPS, DRAWS = 2000, 40


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_a_few_draws_tell_the_error_of_the_mean_of_all(common):
    # An error that the draws share, and one of each draw's own, which averages out over all of them.
    rng = np.random.default_rng(0)
    errors = common * rng.standard_normal((GROUPS, 1)) + 3 * rng.standard_normal((GROUPS, DRAWS))
    values = [[0.5] * DRAWS]
    every, _ = _jackknife(values, [errors.tolist()], same_rows=True)
    assert every == pytest.approx(((GROUPS - 1) * errors.mean(1).var()) ** 0.5)
    some, bias = _jackknife(values, [errors[:, :20].tolist()], same_rows=True)
    assert some == pytest.approx(every, rel=0.1)
    assert bias == pytest.approx((GROUPS - 1) * (errors[:, :20].mean() - 0.5))


def test_passes_over_the_same_rows_are_one_and_over_others_are_independent():
    rng = np.random.default_rng(1)
    errors = rng.standard_normal((GROUPS, 4))
    values, left_out = [[0.0, 0.0], [0.0, 0.0]], [errors[:, :2].tolist(), errors[:, 2:].tolist()]
    together, _ = _jackknife(values, left_out, same_rows=True)
    assert together == pytest.approx(_jackknife([[0.0] * 4], [errors.tolist()], same_rows=True)[0])
    apart, _ = _jackknife(values, left_out, same_rows=False)
    alone = [_jackknife([scores], [groups], same_rows=True)[0] for scores, groups in zip(values, left_out, strict=True)]
    assert apart == pytest.approx(np.hypot(*alone) / 2)
    first_only, _ = _jackknife(values, [left_out[0], []], same_rows=False)
    assert first_only == pytest.approx(alone[0] / 2**0.5)
