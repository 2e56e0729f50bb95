import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wsurgery.errors import WsurgeryError
from wsurgery.experiments.report import as_json, read_report
from wsurgery.experiments.runs import Baseline, read_evaluation
from wsurgery.figures.page import render_page
from wsurgery.figures.tables import arms_note, markdown

Make = Callable[..., Path]
CURVE = {0: 0.5, 20: 0.92, 40: 0.95}


def held(
    folder: Path, arm: str, seed: int, auc: float, baseline: float, p: float | None, name: str = "thumbnail"
) -> None:
    """Write what `eval --baseline` leaves beside a run."""
    found = {"name": name, "macro_auc": baseline, "difference": auc - baseline, "p": p, "labels": {}, "trained_on": 9}
    content = {"labels": {}, "macro_auc": auc, "n": 9, "baseline": found}
    (folder / "runs" / arm / str(seed) / "eval.json").write_text(json.dumps(content))


@pytest.fixture
def experiment(make_experiment: Make) -> Path:
    folder = make_experiment({"random": [CURVE, CURVE], "transfer": [CURVE, CURVE], "gabor": [CURVE, CURVE]})
    held(folder, "random", 1, 0.80, 0.70, 0.001)
    held(folder, "random", 2, 0.74, 0.72, 0.2)
    held(folder, "transfer", 1, 0.71, 0.70, 0.04)
    held(folder, "transfer", 2, 0.70, 0.72, 0.03)  # below, and surely so
    return folder


def test_the_note_says_how_high_it_is_who_is_above_it_and_which_arm_is_not(experiment: Path) -> None:
    report = read_report(experiment, threshold="0.9")
    words = (
        "Without a network: logistic regression on 16-pixel thumbnails of the same training images has a test AUC of "
        "0.710 (0.700 to 0.720); 2 of 4 networks are above it (DeLong's paired test, p < 0.05, not corrected). In the "
        "mean transfer does not beat it: on these images no claim about it is worth much."
    )
    assert words in arms_note(report)
    assert words in markdown(report, title="x")
    assert words.replace("'", "&#x27;").replace("<", "&lt;") in render_page(report, title="x")


def test_all_arms_above_one_baseline_have_no_such_sentence(make_experiment: Make) -> None:
    folder = make_experiment({"random": [CURVE], "gabor": [CURVE]})
    held(folder, "random", 1, 0.8, 0.7, 0.001, "histogram")
    note = arms_note(read_report(folder, threshold="0.9"))
    assert (
        "on colour histograms of the same training images has a test AUC of 0.700; 1 of 1 networks is above it" in note
    )
    assert "beat" not in note


def test_several_arms_that_do_not_beat_it_are_listed(make_experiment: Make) -> None:
    folder = make_experiment({arm: [CURVE] for arm in ("random", "transfer", "gabor")})
    for arm in ("random", "transfer", "gabor"):
        held(folder, arm, 1, 0.7, 0.7, None)
    note = arms_note(read_report(folder, threshold="0.9"))
    assert "0 of 3 networks are above it" in note
    assert "random, transfer and gabor do not beat it: on these images no claim about them is worth much." in note


def test_each_baseline_has_its_own_sentence(make_experiment: Make) -> None:
    folder = make_experiment({"random": [CURVE, CURVE]})
    held(folder, "random", 1, 0.8, 0.7, 0.001)
    held(folder, "random", 2, 0.8, 0.9, 0.001, "histogram")
    note = arms_note(read_report(folder, threshold="0.9"))
    assert "on 16-pixel thumbnails of the same training images has a test AUC of 0.700; 1 of 1" in note
    assert "on colour histograms of the same training images has a test AUC of 0.900; 0 of 1" in note


def test_json_has_the_numbers_of_each_seed_and_null_where_nothing_is_known(experiment: Path) -> None:
    arms = {arm["arm"]: arm["baseline"] for arm in as_json(read_report(experiment, threshold="0.9"))["arms"]}
    assert arms["gabor"] is None
    assert arms["random"]["names"] == ["thumbnail", "thumbnail"]
    assert arms["random"]["values"] == [0.7, 0.72]
    assert arms["random"]["differences"] == pytest.approx([0.1, 0.02])
    assert arms["random"]["p"] == [0.001, 0.2]


def test_without_a_baseline_no_word_is_said_of_one(make_experiment: Make) -> None:
    assert "Without a network" not in arms_note(read_report(make_experiment({"random": [CURVE]}), threshold="0.9"))


@pytest.mark.parametrize("wrong", [{"macro_auc": 1.2}, {"difference": float("nan")}, {"p": -0.1}, {"name": "x"}])
def test_a_baseline_that_cannot_be_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    found = {"name": "thumbnail", "macro_auc": 0.7, "difference": 0.1, "p": 0.2}
    (tmp_path / "eval.json").write_text(json.dumps({"macro_auc": 0.8, "baseline": found}))
    assert read_evaluation(tmp_path).baseline == Baseline(**found)
    (tmp_path / "eval.json").write_text(json.dumps({"macro_auc": 0.8, "baseline": {**found, **wrong}}))
    with pytest.raises(WsurgeryError, match=r"eval\.json"):
        read_evaluation(tmp_path)
