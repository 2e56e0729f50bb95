"""What runs do and do not show of the paper's claims, in words computed from the numbers."""

from collections.abc import Mapping
from statistics import fmean
from typing import NamedTuple

from wsurgery.experiments.runs import arm_order
from wsurgery.experiments.summary import Arm
from wsurgery.statistics.permutation import Significance, mann_whitney, two_sided, verdict, verdict_of_equality


class Claim(NamedTuple):
    """A claim of the paper, the numbers found here, and the verdict on them.

    Attributes:
        claim: one sentence.
        evidence: one or more.
        verdict: in words.
        p: of the test behind the verdict; None where there was none.
        tests: how many were made for it.
    """

    claim: str
    evidence: str
    verdict: str
    p: float | None = None
    tests: int = 0


_FASTER = (  # arm, than, claim
    ("transfer", "random", "Transfer converges faster than random initialisation."),
    ("meanvar", "random", "Pretrained scale alone (meanvar) converges faster than random initialisation."),
    ("transfuse-conv1", "random", "Pretrained weights up to conv1 alone capture part of transfer's gain."),
    ("transfuse-block1", "random", "Pretrained weights up to block1 alone capture part of transfer's gain."),
    ("gabor", "random", "Gabor filters in the first layer converge faster than random initialisation."),
    (
        "bn-identity",
        "bn-transfer",
        "Under meanvar, batch norm at the identity converges faster than batch norm transferred.",
    ),
    (
        "meanvar",
        "bn-transfer",
        "Under meanvar, batch norm at the identity converges faster than batch norm transferred.",
    ),
    (
        "slim-transfuse-block2",
        "slim-random",
        "The slim hybrid converges faster than the slim network from random weights.",
    ),
)
_AS_FAST = (
    ("shuffle", "meanvar", "Shuffled weights converge as fast as meanvar."),
    ("sample", "meanvar", "Sampled weights converge as fast as meanvar."),
    ("slim-transfuse-block2", "transfer", "The slim hybrid converges as fast as transfer of the whole network."),
)


def arm_claims(arms: Mapping[str, Arm], threshold: float) -> list[Claim]:
    """Judge those claims on the arms that there are runs for.

    Args:
        arms: what `summarise` returned.
        threshold: the AUC that the steps in `arms` are counted to.
    """
    found = [
        _faster(text, arms[a], arms[b], arms, threshold)
        for a, b, text in _FASTER
        if a in arms and b in arms and not (b == "bn-transfer" and a == "meanvar" and "bn-identity" in arms)
    ]  # meanvar is bn-identity by another name
    found += [_as_fast(text, arms[a], arms[b], threshold) for a, b, text in _AS_FAST if a in arms and b in arms]
    return found + _freeze_claims(arms)


def _steps(a: Arm, b: Arm, threshold: float) -> str:
    ratio = a.against(b)
    return (
        f"Steps to a validation AUC of {threshold:g}: {a.steps_in_words()} with {a.name}, "
        f"{b.steps_in_words()} with {b.name} ({ratio}, by medians)."
    )


def _faster(text: str, arm: Arm, other: Arm, arms: Mapping[str, Arm], threshold: float) -> Claim:
    evidence = _steps(arm, other, threshold)
    if arm.name.startswith("transfuse-") and "transfer" in arms:
        full, part, none = arms["transfer"].median_steps, arm.median_steps, other.median_steps
        if full.exact and part.exact and none.exact and full.steps < none.steps:
            gain = (none.steps - part.steps) / (none.steps - full.steps)
            evidence += f" That is {gain:.0%} of the steps that transfer saves."
    if other.name == "bn-transfer" and "bn-meanvar" in arms:
        evidence += f" With bn-meanvar: {arms['bn-meanvar'].steps_in_words()}."
    test = mann_whitney(arm.latest_steps, other.earliest_steps)
    return Claim(text, evidence, verdict(test), test.p, 1)


def _as_fast(text: str, arm: Arm, other: Arm, threshold: float) -> Claim:
    test = two_sided(
        mann_whitney(arm.latest_steps, other.earliest_steps), mann_whitney(other.latest_steps, arm.earliest_steps)
    )
    return Claim(text, _steps(arm, other, threshold), verdict_of_equality(test), test.p, 1)


def _freeze_claims(arms: Mapping[str, Arm]) -> list[Claim]:
    """Judge fixed features by test AUC, at the lowest and the highest block that they are frozen up to."""
    evaluated = {name: [auc for auc in arm.test_auc if auc is not None] for name, arm in arms.items()}
    aucs = {name: values for name, values in evaluated.items() if values}
    variants = ("freeze-hybrid-", "freeze-random-")
    frozen = sorted((x for x in aucs if x.startswith("freeze-") and not x.startswith(variants)), key=arm_order)
    if not frozen:
        return []
    lowest, top = (name.removeprefix("freeze-") for name in (frozen[0], frozen[-1]))
    claims = []

    def judge(text: str, a: str, b: str, *, equal: bool) -> None:
        if a not in aucs or b not in aucs:
            return
        lower, higher = mann_whitney(aucs[a], aucs[b]), mann_whitney(aucs[b], aucs[a])
        test: Significance = two_sided(lower, higher) if equal else lower
        words = verdict_of_equality(test) if equal else verdict(test)
        evidence = (
            f"Test AUC: {_list(aucs[a])} with {a}, {_list(aucs[b])} with {b}; "
            f"difference of the means {fmean(aucs[a]) - fmean(aucs[b]):+.3f}."
        )
        claims.append(Claim(text, evidence, words, test.p, 1))

    if lowest in ("conv1", "block1"):
        judge(f"Freezing pretrained features up to {lowest} costs little.", frozen[0], "transfer", equal=True)
        judge(
            f"Above features frozen up to {lowest}, random weights do as well as pretrained ones.",
            f"freeze-hybrid-{lowest}", frozen[0], equal=True,
        )  # fmt: skip
    if top != lowest or top not in ("conv1", "block1"):
        judge(f"Freezing them up to {top} costs a lot.", frozen[-1], "transfer", equal=False)
        judge(
            f"Random features frozen up to {top} are worse than pretrained ones.",
            f"freeze-random-{top}", frozen[-1], equal=False,
        )  # fmt: skip
    return claims


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
