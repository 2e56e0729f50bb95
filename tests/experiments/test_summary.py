from collections.abc import Callable

import pytest

from wsurgery.experiments.summary import Arm, Median, against


@pytest.mark.parametrize(
    ("mine", "random", "words"),
    [
        (Median(100, True), Median(210, True), "2.1× fewer steps"),
        (Median(210, True), Median(100, True), "2.1× more steps"),
        (Median(100, True), Median(100, True), "as many steps"),
        (Median(100, True), Median(200, False), "> 2.0× fewer steps"),
        (Median(200, True), Median(100, False), "unknown: too few steps to say"),
        (Median(200, False), Median(100, True), "> 2.0× more steps"),
        (Median(50, False), Median(100, True), "unknown: too few steps to say"),
        (Median(200, False), Median(200, False), "unknown: neither passed"),
        (Median(0, True), Median(100, True), "passed before training"),
        (Median(100, True), Median(0, True), "random passed before training"),
    ],
)
def test_ratio_to_random_in_words(mine: Median, random: Median, words: str) -> None:
    assert against(mine, random) == words


def test_median_steps_with_runs_that_never_passed(make_arm: Callable[..., Arm]) -> None:
    assert make_arm("a", 20, None, 40).median_steps == (40, True)  # the middle one is known
    assert make_arm("a", 20, None).median_steps == (110, False)  # at least (20 + 200) / 2
    assert make_arm("a", 20, None).steps_in_words() == "20, > 200"


def test_an_arm_of_which_one_seed_passed_is_not_said_to_have_none(make_arm: Callable[..., Arm]) -> None:
    none, one, two = make_arm("random", None, None), make_arm("b", None, 60), make_arm("c", 20, 40)
    assert one.against(none) == none.against(one) == "unknown: too few seeds passed"
    assert none.against(make_arm("d", None, None)) == "unknown: neither passed"
    assert two.against(one) == "> 4.3× fewer steps"
