"""Thresholds: what may be asked for, and what shares are of."""

from collections.abc import Callable
from pathlib import Path

import pytest

from wsurgery.errors import UsageError
from wsurgery.experiments.report import read_report
from wsurgery.experiments.runs import Run
from wsurgery.experiments.thresholds import read_thresholds, resolve


def run(*auc: float) -> Run:
    return Run(Path("x"), "twin", "1", dict(enumerate(auc)), {})


def test_numbers_and_shares() -> None:
    assert read_thresholds("0.9") == [(0.9, False)]
    assert read_thresholds("80%, 90%,95%") == [(0.8, True), (0.9, True), (0.95, True)]
    found = resolve(read_thresholds("0.7,0.75,0.8"), [])
    assert (found.tested, found.others, found.origin) == (0.75, [0.7, 0.8], "")


@pytest.mark.parametrize(
    "text", ["90", "0", "-0.5", "nan", "inf", "x", "", "0.8,0.9", "0.8,90%,0.95", "0.9,0.8,0.7", "0.8,0.8,0.9", "101%"]
)
def test_what_is_no_threshold_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--threshold .*: give|is no AUC"):
        read_thresholds(text)


def test_a_share_is_of_the_way_from_chance_to_where_the_plateau_ends() -> None:
    ends = [run(*[0.5] * 6, 0.7, 0.8, 0.9), run(*[0.5] * 6, 0.9, 0.9, 0.9)]  # means of the last three: 0.8 and 0.9
    found = resolve(read_thresholds("50%,80%,100%"), ends)
    assert found.aucs == pytest.approx([0.675, 0.78, 0.85])
    assert "chance to 0.850, where 2 runs of twin, which no claim is about, end" in found.origin
    with pytest.raises(UsageError, match="90%: of what"):
        resolve(read_thresholds("90%"), [])
    found = resolve(read_thresholds("90%"), [run(0.5, 0.4)])
    assert (found.aucs, found.origin.partition(",")[2]) == (
        [0.545],
        " for 1 run of twin, which no claim is about, end at 0.400, hardly above it",
    )


def test_the_plateau_is_of_an_arm_that_is_not_on_the_page(make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment(
        {"random": [{0: 0.5, 20: 0.7}], "twin": [{0: 0.5, 20: 0.9}], "meanvar": [{0: 0.5, 20: 0.8}]}
    )
    found = read_report(folder, threshold="50%", plateau="twin")
    assert list(found.arms) == ["random", "meanvar"]
    assert found.thresholds.aucs == [0.7]
    assert found.arms["random"].steps == [20]
    with pytest.raises(UsageError, match="--plateau random is on the page"):
        read_report(folder, threshold="50%", plateau="random", arms=["random", "meanvar"])
    with pytest.raises(UsageError, match="no runs of nobody"):
        read_report(folder, threshold="50%", plateau="nobody")


def test_claims_are_tested_at_the_middle_one_and_shown_at_the_others(make_experiment: Callable[..., Path]) -> None:
    curve = {0: 0.5, 20: 0.6, 40: 0.7, 60: 0.8}
    found = read_report(make_experiment({"a": [curve], "b": [curve]}), threshold="0.6,0.7,0.8")
    assert found.arms["a"].steps == [40]
    assert [found.arms["a"].at(auc).steps for auc in (0.6, 0.8)] == [[20], [60]]
