from collections.abc import Callable, Sequence
from itertools import combinations

import pytest

from wsurgery.experiments.claims import Claim, arm_claims
from wsurgery.experiments.summary import Arm
from wsurgery.statistics.permutation import NOT_SHOWN, SHOWN

MakeArm = Callable[..., Arm]


def judged(*arms: Arm) -> list[Claim]:
    return arm_claims({arm.name: arm for arm in arms}, 0.9)


def test_a_run_that_never_passed_is_neither_fast_nor_dropped(make_arm: MakeArm) -> None:
    def on(first: Arm, second: Arm) -> Claim:
        (claim,) = judged(first, second)
        return claim

    seeds = (60, 80, 60, 60, 60)
    assert on(make_arm("transfer", *seeds), make_arm("random", *[None] * 5)).p == pytest.approx(1 / 252)
    assert on(make_arm("transfer", *seeds[:4], None), make_arm("random", *[None] * 5)).p > 1 / 252
    assert on(make_arm("transfer", *[None] * 5), make_arm("random", *[100] * 5)).p == 1
    # Trained for 50 steps only, random might have passed at 51: that is no slower than 60.
    assert on(make_arm("transfer", *seeds), make_arm("random", *[None] * 5, last=50)).p == 1
    # Passing at the last step beats never passing.
    assert on(make_arm("transfer", *[200] * 5), make_arm("random", *[None] * 5)).verdict.startswith(SHOWN)


@pytest.mark.parametrize("block", ["conv1", "block1"])
def test_transfusion_says_what_part_of_the_gain_it_gets(make_arm: MakeArm, block: str) -> None:
    arms = [make_arm("random", 200, 200), make_arm("transfer", 100, 100), make_arm(f"transfuse-{block}", 125, 125)]
    (text,) = (claim.evidence for claim in judged(*arms) if block in claim.claim)
    assert "75%" in text


def test_shuffled_weights_that_both_ways_might_be_faster_show_no_difference(make_arm: MakeArm) -> None:
    meanvar = make_arm("meanvar", *[100] * 5)
    (claim,) = judged(meanvar, make_arm("shuffle", *[100] * 5))
    assert claim.verdict == "no difference found (p = 1, 5 and 5 seeds)"
    (claim,) = judged(meanvar, make_arm("sample", *[150] * 5))
    assert claim.verdict == "a difference found (p = 0.0079, 5 and 5 seeds)"
    # Neither passed: nothing is known, and nothing is found.
    (claim,) = judged(make_arm("meanvar", *[None] * 5), make_arm("shuffle", *[None] * 5))
    assert claim.p == 1


def test_each_claim_needs_its_two_arms_and_unknown_arms_get_none(make_arm: MakeArm) -> None:
    faster = {"bn-identity": "bn-transfer", "slim-transfuse-block2": "slim-random", "gabor": "random"}
    arms = {name: make_arm(name, *[50 if name in faster else 150] * 5) for pair in faster.items() for name in pair}
    for a, b in combinations(arms, 2):
        claims = judged(arms[a], arms[b])
        assert len(claims) == (faster.get(a) == b), (a, b)
        assert all(claim.verdict.startswith(SHOWN) for claim in claims)
    assert judged(make_arm("random", 1), make_arm("transfuse-block2", 1), make_arm("mine", 1)) == []
    (hybrid,) = judged(make_arm("slim-transfuse-block2", 9), make_arm("transfer", 9))
    assert "as fast as transfer" in hybrid.claim


def test_meanvar_stands_in_for_batch_norm_at_the_identity(make_arm: MakeArm) -> None:
    arms = [make_arm("meanvar", *[50] * 5), make_arm("bn-meanvar", *[70] * 5), make_arm("bn-transfer", *[90] * 5)]
    (claim,) = judged(*arms)
    assert claim.verdict.startswith(SHOWN)
    assert "With bn-meanvar: 70, 70" in claim.evidence
    (claim,) = judged(*arms, make_arm("bn-identity", *[60] * 5))
    assert "with bn-identity" in claim.evidence


def freeze(make_arm: MakeArm, low: str, **aucs: Sequence[float]) -> dict[str, Claim]:
    names = {"all": f"freeze-{low}", "top": "freeze-block4", "hybrid": f"freeze-hybrid-{low}", "transfer": "transfer"}
    names["random"] = "freeze-random-block4"
    arms = [make_arm(names[key], *[9] * len(values), test_auc=values) for key, values in aucs.items()]
    return {" ".join(claim.claim.split()[:2]): claim for claim in judged(*arms)}


@pytest.mark.parametrize("low", ["conv1", "block1"])
def test_frozen_features_are_judged_by_test_auc(make_arm: MakeArm, low: str) -> None:
    good, fair, bad = [0.9, 0.91, 0.92, 0.93, 0.94], [0.8, 0.81, 0.82, 0.83, 0.84], [0.6, 0.61, 0.62, 0.63, 0.64]
    found = freeze(make_arm, low, transfer=good, all=good, hybrid=good, top=fair, random=bad)
    assert list(found) == ["Freezing pretrained", "Above features", "Freezing them", "Random features"]
    assert found["Above features"].verdict == "no difference found (p = 1, 5 and 5 seeds)"
    assert found["Freezing them"].claim == "Freezing them up to block4 costs a lot."
    assert found["Freezing them"].verdict.startswith(SHOWN)
    assert "difference of the means -0.100" in found["Freezing them"].evidence
    assert found["Random features"].verdict.startswith(SHOWN)
    assert freeze(make_arm, low, all=fair, top=fair, random=good)["Random features"].verdict.startswith(NOT_SHOWN)
    little = freeze(make_arm, low, transfer=good, all=good)["Freezing pretrained"]
    assert little.claim == f"Freezing pretrained features up to {low} costs little."
    assert little.verdict.startswith("no difference found")
    assert freeze(make_arm, low, transfer=good, random=good, hybrid=good) == {}


def test_runs_that_were_not_evaluated_are_left_out(make_arm: MakeArm) -> None:
    arms = [make_arm("transfer", 9, 9, test_auc=[0.9, None]), make_arm("freeze-conv1", 9, test_auc=[None])]
    assert judged(*arms) == []
