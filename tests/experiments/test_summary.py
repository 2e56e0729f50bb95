from collections.abc import Callable

import pytest

from wsurgery.experiments.summary import Arm, times

MakeArm = Callable[..., Arm]


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ([50, 20], [100, 80], "0.35"),  # the geometric mean of 1/2 and 1/4
        ([100], [100], "1.00"),
        ([50], [None], "≤ 0.25"),  # it passed at 201 at the earliest
        ([None], [100], "≥ 2.01"),
        ([None, 50], [100, None], "~ 0.71"),
        ([None], [None], "neither passed"),
        ([0], [100], "0.01"),  # before training counts as the first step
        ([10, 20, 30, 40, 50], [100] * 5, "0.26 (0.10 to 0.50)"),
    ],
)
def test_the_ratio_of_steps_in_words(
    mine: list[int | None], theirs: list[int | None], words: str, make_arm: MakeArm
) -> None:
    assert times(make_arm("a", *mine), make_arm("random", *theirs), {}) == words


@pytest.mark.parametrize(
    ("mine", "theirs", "words"),
    [
        ((500, 1000), (250, 300), "≥ 1.20"),  # 2, of which nothing is seen beyond 300
        ((250, 300), (500, 1000), "≤ 0.83"),
        ((500, 1000), (None, 280), "neither passed"),  # in 280
        ((200, 1000), (250, 300), "0.80"),
    ],
)
def test_arms_that_were_watched_for_different_lengths_are_compared_as_long_as_both_were(
    mine: tuple[int | None, int], theirs: tuple[int | None, int], words: str, make_arm: MakeArm
) -> None:
    (a, last_a), (b, last_b) = mine, theirs
    assert times(make_arm("a", a, last=last_a), make_arm("random", b, last=last_b), {}) == words


def test_a_seed_that_is_not_compared_changes_no_mark(make_arm: MakeArm) -> None:
    assert times(make_arm("a", 50, 50), make_arm("random", 100, 100, None), {}) == "0.50"


def test_without_a_common_seed_there_is_no_ratio(make_arm: MakeArm) -> None:
    other = make_arm("b", 10, 20)
    other.runs[:] = [run.__class__(run.folder, run.arm, f"9{run.seed}", run.auc, run.loss) for run in other.runs]
    assert times(make_arm("a", 10, 20), other, {}) == "no seed has both"


def test_who_never_passed_is_listed_with_the_step_up_to_which_it_was_watched(make_arm: MakeArm) -> None:
    assert make_arm("a", 20, None).steps_in_words() == "20, > 200"
