"""Claims in files: what a line says, and what runs and comparisons show of it."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsurgery.data.chexpert import LABELS as CHEXPERT
from wsurgery.errors import UsageError
from wsurgery.experiments.claim_lines import KINDS, Line, read_claims
from wsurgery.experiments.claims import Basis, Claim, NotJudged, corrected, judge, not_judged_in_words
from wsurgery.experiments.report import read_report
from wsurgery.experiments.summary import Arm
from wsurgery.experiments.thresholds import Thresholds
from wsurgery.statistics.permutation import NOT_SHOWN, SHOWN

BASIS = Basis(Thresholds([0.9]), {})
MakeArm = Callable[..., Arm]
RECIPES = Path(__file__).parents[2] / "recipes"


def judged(kind: str, *arms: Arm, **options: str) -> Claim:
    line = Line(kind, tuple(arm.name for arm in arms[:2]), options, "So it is.", "here")
    (claim,), _ = judge([line], {arm.name: arm for arm in arms}, {}, BASIS)
    assert claim.claim == "So it is."
    return claim


def test_a_run_that_never_passed_is_neither_fast_nor_dropped(make_arm: MakeArm) -> None:
    seeds = (60, 80, 60, 60, 60)
    never = make_arm("random", *[None] * 5)
    assert judged("faster", make_arm("a", *seeds), never).p == pytest.approx(1 / 32)
    assert judged("faster", make_arm("a", *seeds[:4], None), never).p == pytest.approx(1 / 16)  # one pair is a tie
    assert judged("faster", make_arm("a", *[None] * 5), make_arm("random", *[100] * 5)).p == 1
    # Trained for 50 steps only, random might have passed at 51: that is no slower than 60.
    assert judged("faster", make_arm("a", *seeds), make_arm("random", *[None] * 5, last=50)).p == 1
    # Passing at the last step beats never passing.
    assert judged("faster", make_arm("a", *[200] * 5), never).verdict.startswith(SHOWN)
    assert "as if who never passed had at the next step" in judged("faster", make_arm("a", *seeds), never).evidence


def test_nothing_is_alike_that_was_cut_where_the_other_was_no_longer_watched(make_arm: MakeArm) -> None:
    slow, fast = make_arm("slow", *[500] * 5, last=1000), make_arm("fast", *[250] * 5, last=300)
    for a, b in ((slow, fast), (fast, slow)):
        assert judged("as-fast", a, b, margin="1.25").verdict.startswith(NOT_SHOWN)
    assert judged("faster", fast, slow).verdict.startswith(SHOWN)


def test_arms_that_stopped_where_they_were_to_are_as_fast_as_they_are(make_arm: MakeArm) -> None:
    def stopped(name: str, *steps: int) -> Arm:
        arms = [make_arm(name, at, last=at) for at in steps]
        runs = [replace(arm.runs[0], seed=f"{i}", stopped=0.9) for i, arm in enumerate(arms)]
        return Arm(name, runs, [None] * len(steps), list(steps))

    quick, slow = stopped("quick", 100, 110, 120, 130, 140), make_arm("slow", *[500] * 5, last=1000)
    assert judged("as-fast", quick, stopped("too", 101, 111, 121, 131, 141)).verdict.startswith(SHOWN)
    claim = judged("faster", quick, slow)
    assert f"{math.exp(np.mean([math.log(x / 500) for x in quick.steps])):.2f} (90% interval" in claim.evidence
    assert "as if" not in claim.evidence


def test_speed_is_compared_within_seeds(make_arm: MakeArm) -> None:
    # Seeds differ by more than the arms do: only the pairing shows it.
    slow = [20, 40, 80, 120, 160]
    claim = judged("faster", make_arm("a", *(x - 4 for x in slow)), make_arm("b", *slow))
    assert claim.verdict == f"{SHOWN} (p = 0.031, 5 pairs)"
    mean = math.exp(np.mean([math.log((x - 4) / x) for x in slow]))
    assert f"{mean:.2f} (90% interval 0.80 to 0.97) times as many" in claim.evidence
    others = make_arm("b", *slow)
    others.runs[:] = [run.__class__(run.folder, run.arm, f"other{run.seed}", run.auc, run.loss) for run in others.runs]
    line = Line("faster", ("a", "b"), {}, "x", "")
    found = judge([line], {"a": make_arm("a", *slow), "b": others}, {}, BASIS)
    assert found == ([], [NotJudged("x", ["a seed of both a and b"])])


def test_a_claim_on_a_label_counts_the_steps_of_its_auc(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    ends = {"easy": 0.9, "very hard": 0.6}  # and the mean of both at 0.75
    for arm, passed in (("a", {"easy": 40, "very hard": 90}), ("b", {"easy": 80, "very hard": 30}), ("twin", {})):
        for seed in "12345":
            folder = write_run(tmp_path / "runs" / arm / seed, {0: 0.5})
            curves = {x: {s: ends[x] if s >= passed.get(x, 10) else 0.5 for s in range(0, 200, 10)} for x in ends}
            lines = [{"step": s, "macro_auc": 0.75, "auc": {x: curves[x][s] for x in ends}} for s in range(0, 200, 10)]
            (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = [Line("faster", ("a", "b"), {"label": x}, x, "") for x in ("easy", "very_hard", "other")]
    found = read_report(tmp_path, threshold="90%", plateau="twin", claims=lines)
    easy, hard = found.claims
    assert found.not_judged == [NotJudged("other", ["the label other"])]
    assert easy.evidence.startswith(
        "Steps to a validation AUC of 0.86 for easy, by seed: 40, 40, 40, 40, 40 with a, 80,"
    )
    assert hard.evidence.startswith(
        "Steps to a validation AUC of 0.59 for very hard, by seed: 90, 90, 90, 90, 90 with a, 30,"
    )
    assert (easy.verdict[: len(SHOWN)], hard.verdict[: len(NOT_SHOWN)]) == (SHOWN, NOT_SHOWN)
    (claim,) = read_report(tmp_path, threshold="0.8", arms=["a", "b"], claims=lines[:1]).claims
    assert "AUC of 0.8 for easy, by seed: 40" in claim.evidence


def test_as_fast_needs_steps_within_the_margin_and_all_known(make_arm: MakeArm) -> None:
    a, b = make_arm("a", *[100, 104, 96, 100, 102]), make_arm("b", *[100] * 5)
    assert judged("as-fast", a, b).verdict == f"{SHOWN}, within a factor of 1.25 (p = 0.031, 5 pairs)"
    assert judged("as-fast", a, b, margin="1.02").verdict.startswith(NOT_SHOWN)
    assert judged("as-fast", make_arm("a", *[130] * 5), b).verdict.startswith(NOT_SHOWN)
    assert judged("as-fast", make_arm("a", 100, 100), make_arm("b", 100, 100)).verdict.startswith("too few seeds")
    never = judged("as-fast", make_arm("a", *[None] * 5), make_arm("b", *[None] * 5))
    assert (never.verdict.startswith(NOT_SHOWN), never.p) == (True, None)
    assert "> 200 with b; neither passed. Mean AUC" in never.evidence


def test_auc_is_compared_within_seeds_and_against_a_margin(make_arm: MakeArm) -> None:
    def arm(name: str, *aucs: float | None) -> Arm:
        return make_arm(name, *[9] * len(aucs), test_auc=aucs)

    base = [0.80, 0.85, 0.90, 0.70, 0.75]
    a, b = arm("a", *(x + 0.004 for x in base)), arm("b", *base)
    claim = judged("higher-auc", a, b)
    assert claim.p == pytest.approx(1 / 32)
    assert "difference +0.004 (90% interval +0.004 to +0.004)" in claim.evidence
    assert judged("as-high", a, b).verdict == f"{SHOWN}, within 0.01 of AUC (p = 0.031, 5 pairs)"
    assert judged("as-high", a, b, margin="0.003").verdict.startswith(NOT_SHOWN)
    assert judged("as-high", b, a).verdict.startswith(SHOWN)  # it has no direction
    assert judged("higher-auc", arm("a", 0.9, None), arm("b", 0.8, 0.9)).verdict.startswith("too few seeds")
    lines = [Line("higher-auc", ("a", "b"), {}, "x", "")]
    found = judge(lines, {"a": arm("a", None), "b": b}, {}, BASIS)
    assert found == ([], [NotJudged("x", ["a seed of both a and b that was evaluated"])])


@pytest.mark.parametrize("kind", ["faster", "higher-auc"])
def test_one_true_null_in_twenty_at_most_is_shown(kind: str, make_arm: MakeArm) -> None:
    rng, shown = np.random.default_rng(0), 0
    for _ in range(400):
        seed = rng.normal(size=5)  # what two arms of one seed share
        arms = []
        for name in ("a", "b"):
            own = np.exp(4 + seed + rng.normal(size=5))
            steps = [int(x) if x <= 200 else None for x in np.maximum(own, 1)]
            arms.append(make_arm(name, *steps, test_auc=list(0.8 + seed / 100 + rng.normal(size=5) / 100)))
        shown += judged(kind, *arms).verdict.startswith(SHOWN)
    assert shown <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_a_file_of_claims_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "claims.txt"
    file.write_text("# what I think\n\n  faster a b : A is : faster.\nas-high a b margin=0.02 : As good.\n")
    first, second = read_claims(file)
    assert first[:4] == ("faster", ("a", "b"), {}, "A is : faster.")
    assert (second.options, second.margin(0.5), first.margin(0.5)) == ({"margin": "0.02"}, 0.02, 0.5)
    assert second.where.endswith("claims.txt, line 4")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("better a b : x", "better is no kind of claim; there are faster, as-fast"),
        ("faster a : x", "is `faster ARM ARM [label=VALUE] : SENTENCE`"),
        ("faster a b", "is `faster ARM ARM [label=VALUE] : SENTENCE`"),
        ("faster a b : ", "is `faster ARM ARM [label=VALUE] : SENTENCE`"),
        ("faster a b margin=2 : x", "is `faster ARM ARM [label=VALUE] : SENTENCE`"),
        ("as-fast a b margin=0.9 : x", "margin=0.9: give a factor above 1"),
        ("as-high a b margin=none : x", "margin=none: give a factor above 1"),
        ("as-high a b margin=nan : x", "margin=nan: give a factor above 1"),
        ("as-high a b margin=-1 : x", "margin=-1: give a factor above 1"),
        ("as-fast a b margin=inf : x", "margin=inf: give a factor above 1"),
        ("as-fast a b margin=2 margin=3 : x", "is `as-fast ARM ARM [margin=VALUE] : SENTENCE`"),
        ("faster a b label= : x", "label=: give a label, with _ for each space"),
        ("more-alike a b layers=top0 : x", "layers=top0: give all, top2 for the two topmost, or names"),
        ("more-alike a b layers=conv1,,block1 : x", "layers=conv1,,block1: give all, top2"),
        ("larger-gain a b except= : x", "except=: give networks"),
        ("larger-gain a b exept=c : x", "is `larger-gain ARM ARM [except=VALUE] : SENTENCE`"),
    ],
)
def test_a_line_that_is_no_claim_is_named(line: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "claims.txt"
    file.write_text(f"# comment\n{line}\n")
    with pytest.raises(UsageError, match=r"claims\.txt, line 2: ") as refused:
        read_claims(file)
    assert words in str(refused.value)


def test_the_recipes_claims_are_read_and_every_kind_is_explained() -> None:
    used = {line.kind for path in RECIPES.glob("*/claims.txt") for line in read_claims(path)}
    assert used == set(KINDS)
    page = (RECIPES.parent / "docs" / "claims.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in page for kind in KINDS)


def test_the_labels_of_the_recipes_are_those_of_the_data() -> None:
    used = {
        line.options["label"] for line in read_claims(RECIPES / "meanvar" / "claims.txt") if "label" in line.options
    }
    assert used == {label.replace(" ", "_") for label in CHEXPERT} - {"cardiomegaly"}


def test_what_is_not_judged_is_said_in_one_line_of_bounded_length() -> None:
    assert not_judged_in_words([]) == ""
    one = NotJudged("A.", ["arm-x"])
    assert not_judged_in_words([one]) == "Not judged here, for want of arm-x: 1 claim."
    several = [one, NotJudged("B.", ["arm-x", "arm-y"])]
    assert not_judged_in_words(several) == "Not judged here, for want of arm-x, arm-y: 2 claims."
    many = not_judged_in_words([NotJudged("C.", [f"{i}" * 300]) for i in range(100)])
    assert "and 92 more: 100 claims." in many
    assert len(many) < 1000


def test_p_is_corrected_for_the_claims_of_the_page() -> None:
    ps = [0.01, 0.04, None, 0.03]
    found = corrected([Claim("c", "e", f"{SHOWN} (p = {p}, 5 pairs)", p) for p in ps])
    # Holm's own words: p ordered, times what is left, and never below the one before.
    assert [claim.holm for claim in found] == pytest.approx([0.03, 0.06, None, 0.06])
    assert found[0].verdict == f"{SHOWN} (p = 0.01, Holm 0.03, 5 pairs)"
    assert found[1].verdict.endswith(
        "(p = 0.04, Holm 0.06, 5 pairs); not once p is corrected for the 3 claims of this page"
    )
    (alone,) = corrected([Claim("c", "e", f"{SHOWN} (p = 0.01, 5 pairs)", 0.01)])
    assert (alone.holm, alone.verdict) == (0.01, f"{SHOWN} (p = 0.01, 5 pairs)")


def test_a_correction_holds_for_all_nulls_together() -> None:
    """Of pages of true nulls, one in twenty at most has a claim that is below .05 after the correction."""
    rng = np.random.default_rng(0)
    for m in (1, 4, 10):
        pages = [corrected([Claim("", "", "", float(p)) for p in rng.random(m)]) for _ in range(400)]
        wrong = sum(min(claim.holm for claim in page if claim.holm is not None) < 0.05 for page in pages)
        assert wrong <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)
    for page in pages:
        ordered = sorted(page, key=lambda claim: claim.p or 0)
        assert all((a.holm or 0) <= (b.holm or 0) for a, b in itertools.pairwise(ordered))
