"""What the runs do and do not show of the paper's claims, in words computed from the numbers.

The rule is strict because seeds are few: fewer than five never show anything, they suggest it.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from wsurgery.figures.runs import LayerScore
from wsurgery.figures.summary import Arm, against

ENOUGH_SEEDS = 5
SHOWN, NOT_SHOWN = "shown here", "not shown here"
PRETRAINED_PAIR, RANDOM_PAIR = "pretrained-pair", "random-pair"


class Claim(NamedTuple):
    """A claim of the paper, the numbers found here, and the verdict on them."""

    claim: str
    evidence: str
    verdict: str


class PairDifference(NamedTuple):
    """Similarity of the pretrained pair less that of the random pair at one layer, with its standard error if known."""

    layer: str
    difference: float
    se: float | None


def judge(low: Sequence[float], high: Sequence[float]) -> str:
    """Judge the claim that what gave `low` lies below what gave `high`, one number a seed.

    With five seeds or more on each side, ranges that do not overlap show it, and overlapping ones whose medians agree
    suggest it. With fewer, ranges that do not overlap suggest it, and nothing else does.
    """
    seeds = min(len(low), len(high))
    apart = max(low) < min(high)
    if seeds >= ENOUGH_SEEDS:
        if apart:
            return SHOWN
        return f"suggestive only ({seeds} seeds, ranges overlap)" if median(low) < median(high) else NOT_SHOWN
    if not apart:
        return NOT_SHOWN
    return f"suggestive: every seed agrees ({seeds} seeds)" if seeds > 1 else "suggestive only (1 seed)"


def claims(arms: Mapping[str, Arm], pairs: Mapping[str, Sequence[LayerScore]], threshold: float) -> list[Claim]:
    """Judge those claims of the paper that there is data for.

    Args:
        arms: what `summarise` returned.
        pairs: cca results by name, of which `pretrained-pair` and `random-pair` are used.
        threshold: the AUC that the steps in `arms` are counted to.
    """
    found = [
        _faster(text, arms[name], arms["random"], arms.get("transfer"), threshold)
        for name, text in (
            ("transfer", "Transfer converges faster than random initialisation."),
            ("meanvar", "Pretrained scale alone (meanvar) converges faster than random initialisation."),
            ("transfuse-block1", "Pretrained weights up to block1 alone capture part of transfer's gain."),
            ("gabor", "Gabor filters in the first layer converge faster than random initialisation."),
        )
        if name in arms and "random" in arms
    ]
    if "transfer" in arms and (claim := _lowest_moves_least(arms["transfer"])):
        found.append(claim)
    if PRETRAINED_PAIR in pairs and RANDOM_PAIR in pairs:
        found += _pair_claims(pair_differences(pairs))
    return found


def pair_differences(pairs: Mapping[str, Sequence[LayerScore]]) -> list[PairDifference]:
    """Subtract the random pair from the pretrained pair at each layer that both have, as in the paper's Table 5."""
    random = {layer.layer: layer for layer in pairs[RANDOM_PAIR]}
    differences = []
    for a in pairs[PRETRAINED_PAIR]:
        b = random.get(a.layer)
        if b and a.value is not None and b.value is not None:
            se = None if a.se is None or b.se is None else (a.se**2 + b.se**2) ** 0.5
            differences.append(PairDifference(a.layer, a.value - b.value, se))
    return differences


def _faster(text: str, arm: Arm, random: Arm, transfer: Arm | None, threshold: float) -> Claim:
    evidence = (
        f"Steps to a validation AUC of {threshold:g}: {arm.steps_in_words()} with {arm.name}, "
        f"{random.steps_in_words()} with random ({against(arm.median_steps, random.median_steps)}, by medians)."
    )
    if transfer and arm.name.startswith("transfuse-"):
        full, part, none = transfer.median_steps, arm.median_steps, random.median_steps
        if full.exact and part.exact and none.exact and full.steps < none.steps:
            gain = (none.steps - part.steps) / (none.steps - full.steps)
            evidence += f" That is {gain:.0%} of the steps that transfer saves."
    return Claim(text, evidence, judge(arm.latest_steps, random.earliest_steps))


def _lowest_moves_least(arm: Arm) -> Claim | None:
    """Compare the lowest layer with the most alike of those above it, in each seed."""
    fields = ("normalised", "value")
    usable = (f for f in fields if all(getattr(x, f) is not None for scores in arm.init_scores for x in scores))
    field = next(usable, None)
    if field is None or not arm.init_scores or any(len(scores) < 2 for scores in arm.init_scores):
        return None
    lowest = [getattr(scores[0], field) for scores in arm.init_scores]
    above = [max(getattr(x, field) for x in scores[1:]) for scores in arm.init_scores]
    kind = "Similarity between floor and ceiling" if field == "normalised" else "Similarity"
    evidence = (
        f"{kind} of {arm.name}'s {arm.init_scores[0][0].layer} to its own initialisation, by seed: {_list(lowest)}; "
        f"the most alike of the layers above it: {_list(above)}."
    )
    return Claim("The lowest layer moves least from the pretrained weights.", evidence, judge(above, lowest))


def _pair_claims(differences: Sequence[PairDifference]) -> list[Claim]:
    """Judge the two pairs: one pair of each kind, so that nothing is more than suggestive."""
    if len(differences) < 2:
        return []
    everywhere = all(x.difference > 2 * (x.se or 0) for x in differences)
    largest = max(differences, key=lambda x: x.difference)
    listed = ", ".join(f"{x.layer} {x.difference:+.3f}" for x in differences)
    suggestive = "suggestive only (1 pair of each kind)"
    return [
        Claim(
            "Two networks trained from the same pretrained weights are more alike than two from random ones.",
            f"Difference of similarity by layer: {listed}. To count, each must exceed twice its standard error.",
            suggestive if everywhere else NOT_SHOWN,
        ),
        Claim(
            "That difference is largest in the lowest layer.",
            f"It is largest in {largest.layer}; the lowest is {differences[0].layer}.",
            suggestive if largest is differences[0] and largest.difference > 2 * (largest.se or 0) else NOT_SHOWN,
        ),
    ]


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)
