import math
from pathlib import Path

import pytest

from wsurgery.figures.runs import LayerScore, Run
from wsurgery.figures.summary import Arm, Median, against
from wsurgery.figures.verdicts import NOT_SHOWN, SHOWN, claims, judge

SOONER, LATER = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (SOONER, LATER, SHOWN),
        (SOONER[:4], LATER, "suggestive: every seed agrees (4 seeds)"),
        (SOONER, LATER[:2], "suggestive: every seed agrees (2 seeds)"),
        (SOONER[:1], LATER[:1], "suggestive only (1 seed)"),
        ([1, 2, 3, 4, 7], LATER, "suggestive only (5 seeds, ranges overlap)"),
        ([1, 2, 3, 6], LATER, NOT_SHOWN),  # a tie is no agreement
        (LATER, SOONER, NOT_SHOWN),
        (LATER[:2], SOONER[:2], NOT_SHOWN),
        (SOONER, SOONER, NOT_SHOWN),
        ([math.inf] * 5, [math.inf] * 5, NOT_SHOWN),
        (SOONER, [math.inf] * 5, SHOWN),
    ],
)
def test_the_rule(low: list[float], high: list[float], verdict: str) -> None:
    assert judge(low, high) == verdict


def arm(name: str, *steps: int | None, last: int = 200, scores: list[list[float]] | None = None) -> Arm:
    runs = [Run(Path(name), name, f"{i}", {last: 0.9}, {}) for i in range(len(steps))]
    layers = [[LayerScore(f"b{i}", x, None, None, None, None) for i, x in enumerate(row)] for row in scores or []]
    return Arm(name, runs, [None] * len(steps), list(steps), layers)


def verdict_on(first: Arm, second: Arm) -> str:
    (claim,) = claims({first.name: first, second.name: second}, {}, 0.9)
    return claim.verdict


def test_a_run_that_never_passed_is_neither_fast_nor_dropped() -> None:
    seeds = (60, 80, 60, 60, 60)
    assert verdict_on(arm("transfer", *seeds), arm("random", *[None] * 5)) == SHOWN
    assert verdict_on(arm("transfer", *seeds[:4], None), arm("random", *[None] * 5)) != SHOWN
    assert verdict_on(arm("transfer", *[None] * 5), arm("random", *[100] * 5)) == NOT_SHOWN
    # Trained for 50 steps only, random might have passed at 51: that is no slower than 60.
    assert verdict_on(arm("transfer", *seeds), arm("random", *[None] * 5, last=50)) == NOT_SHOWN
    # Passing at the last step beats never passing.
    assert verdict_on(arm("transfer", *[200] * 5), arm("random", *[None] * 5)) == SHOWN


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


def test_median_steps_with_runs_that_never_passed() -> None:
    assert arm("a", 20, None, 40).median_steps == (40, True)  # the middle one is known
    assert arm("a", 20, None).median_steps == (110, False)  # at least (20 + 200) / 2
    assert arm("a", 20, None).steps_in_words() == "20, > 200"


def test_transfusion_says_what_part_of_the_gain_it_gets() -> None:
    arms = [arm("random", 200, 200), arm("transfer", 100, 100), arm("transfuse-block1", 125, 125)]
    evidence = {claim.claim: claim.evidence for claim in claims({a.name: a for a in arms}, {}, 0.9)}
    (text,) = (words for claim, words in evidence.items() if "block1" in claim)
    assert "75%" in text


def test_lowest_layer_moves_least_only_if_it_does() -> None:
    for scores, verdict in (
        ([[0.9, 0.5, 0.4]] * 5, SHOWN),
        ([[0.9, 0.5, 0.4]] * 2, "suggestive: every seed agrees (2 seeds)"),
        ([[0.9, 0.5, 0.95]] * 5, NOT_SHOWN),
    ):
        (claim,) = claims({"transfer": arm("transfer", *[50] * len(scores), scores=scores)}, {}, 0.9)
        assert claim.verdict == verdict


@pytest.mark.parametrize(
    ("differences", "more_alike", "most_at_the_bottom"),
    [
        ([0.3, 0.2, 0.1], "suggestive", "suggestive"),
        ([0.1, 0.2, 0.3], "suggestive", "not"),
        ([0.3, 0.2, -0.1], "not", "suggestive"),
        ([0.3, 0.2, 0.02], "not", "suggestive"),  # within twice its standard error, 0.014
        ([0.02, 0.0, 0.0], "not", "not"),
    ],
)
def test_one_pair_of_each_kind_is_never_more_than_suggestive(
    differences: list[float], more_alike: str, most_at_the_bottom: str
) -> None:
    pairs = {
        name: [LayerScore(f"b{i}", 0.4 + x * times, 0.01, None, None, None) for i, x in enumerate(differences)]
        for name, times in (("pretrained-pair", 1), ("random-pair", 0))
    }
    first, second = claims({}, pairs, 0.9)
    assert first.verdict.startswith(more_alike)
    assert second.verdict.startswith(most_at_the_bottom)
