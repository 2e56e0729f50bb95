import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from scipy.integrate import trapezoid

from wsurgery.errors import UsageError
from wsurgery.experiments.claim_lines import Line, read_claims
from wsurgery.experiments.report import as_json, read_report
from wsurgery.figures.tables import arms_note

FAST = [{0: 0.5, 20: 0.92, 40: 0.95}, {0: 0.5, 20: 0.8, 40: 0.94}]
SLOW = [{0: 0.5, 20: 0.6, 40: 0.7}, {0: 0.5, 20: 0.55, 40: 0.65}]
HOSTILE = "<script>alert('1')&\x1b[31m"


@pytest.fixture
def experiment(make_experiment: Callable[..., Path]) -> Path:
    return make_experiment({"random": SLOW, "transfer": FAST, "meanvar": FAST, HOSTILE: FAST})


def test_the_numbers_are_those_of_the_files(experiment: Path) -> None:
    lines = read_claims(Path(__file__).parents[2] / "recipes" / "demo" / "claims.txt")
    data = as_json(read_report(experiment, threshold="0.9", claims=lines))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    random, transfer = data["arms"][:2]
    assert random["steps_to_threshold"] == [None, None]
    assert random["watched_until"] == [40, 40]
    assert transfer["steps_to_threshold"] == [20, 40]
    ratio = ((20 / 41) * (40 / 41)) ** 0.5  # as if random had passed at the next step
    assert transfer["against_baseline"] == f"≤ {ratio:.2f}"
    areas = [(0.71 + 0.935) / 2, (0.65 + 0.87) / 2]  # trapezia of 20 steps each
    assert transfer["mean_auc_along_training"]["values"] == pytest.approx(areas)
    assert transfer["test_macro_auc"]["values"] == pytest.approx([0.81, 0.82])
    assert transfer["test_macro_auc"]["mean"] == pytest.approx(0.815)
    assert transfer["valid_macro_auc"]["mean"] == pytest.approx(0.945)
    assert [x["layer"] for x in data["pair_differences"]] == ["block1", "block2", "block3"]
    assert [x["difference"] for x in data["pair_differences"]] == pytest.approx([0.32, 0.16, 0.08])
    verdicts = {claim["claim"].split()[0]: claim["verdict"] for claim in data["claims"]}
    assert verdicts["Transfer"].endswith("suggestive: every seed agrees")
    assert [len(arm["cca_init"]) for arm in data["arms"]] == [2] * 4
    assert set(verdicts) == {"Transfer", "Pretrained", "The", "Two", "That"}


def test_runs_of_different_lengths_are_compared_as_far_as_each_of_them_went(
    make_experiment: Callable[..., Path],
) -> None:
    curve = {0: 0.5, 20: 0.7, 40: 0.9, 60: 0.95, 80: 0.97}
    stopped = {step: auc for step, auc in curve.items() if step <= 40}
    slower = {step: 0.5 + (auc - 0.5) / 2 for step, auc in curve.items()}
    root = make_experiment({"random": [slower] * 2, "long": [curve] * 2, "short": [stopped, curve]}, bare=True)
    lines = [Line("faster", (arm, "random"), {}, arm, "") for arm in ("long", "short")]
    lines.append(Line("faster", ("short", "long"), {}, "each other", ""))
    report = read_report(root, threshold="0.9", claims=lines)
    arms = {arm["arm"]: arm["mean_auc_along_training"] for arm in as_json(report)["arms"]}
    assert {found["up_to_step"] for found in arms.values()} == {40}
    assert arms["short"]["values"] == arms["long"]["values"] == pytest.approx([0.7, 0.7])
    assert arms["random"]["values"] == pytest.approx([0.6, 0.6])
    assert "Mean along training is up to step 40, the last that all runs have." in arms_note(report)
    full = (trapezoid([*curve.values()]) - trapezoid([*slower.values()])) / 4
    long, short, each_other = (claim.evidence for claim in report.claims)
    assert f"Mean AUC along training: {full:+.3f}." in long
    assert f"Mean AUC along training, as far as both of a seed went: {(0.1 + full) / 2:+.3f}." in short
    assert "as far as both of a seed went: +0.000." in each_other
    alike = read_report(root, threshold="0.9", arms=["random", "long"])
    assert as_json(alike)["arms"][0]["mean_auc_along_training"]["up_to_step"] == 80
    assert "Mean along training is" not in arms_note(alike)


def test_the_baseline_is_random_or_the_first_or_the_chosen(experiment: Path) -> None:
    def against(**chosen: object) -> dict[str, str | None]:
        data = as_json(read_report(experiment, threshold="0.9", **chosen))
        return {"baseline": data["baseline"], **{x["arm"]: x["against_baseline"] for x in data["arms"]}}

    assert against(arms=["transfer", "random"])["baseline"] == "random"
    assert against(arms=["transfer", "meanvar"]) == {
        "baseline": "transfer", "transfer": None, "meanvar": "1.00",
    }  # fmt: skip
    assert against(baseline="meanvar")["transfer"] == "1.00"
    with pytest.raises(UsageError, match=r"--baseline nobody: .*; there are: random, transfer"):
        against(baseline="nobody")


def test_seeds_of_arms_that_are_not_on_the_page_are_no_source_networks_of_it(
    make_experiment: Callable[..., Path], invoke: Callable[..., object], tmp_path: Path
) -> None:
    root = make_experiment({"random": SLOW, "transfer": FAST})
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 1, "-o", tmp_path / "given")
    source = tmp_path / "source.safetensors"
    save_file(load_file(tmp_path / "given"), source)  # without a history: a file that somebody else made
    for arm, seeds in (("transfer", ("1", "2")), ("transfer-lr0.01", ("101", "102"))):
        for seed in seeds:
            folder = root / "runs" / arm / seed
            folder.mkdir(parents=True, exist_ok=True)
            invoke("scale", source, "--by", 2, "-o", folder / "init.safetensors", "--force")
    assert set(read_report(root, threshold="0.9", arms=["random", "transfer"]).basis.units.values()) == {"1"}


def test_a_threshold_outside_an_auc_is_refused(experiment: Path) -> None:
    with pytest.raises(UsageError, match="--threshold 90"):
        read_report(experiment, threshold="90")


def test_json_of_a_comparison_is_complete(tmp_path: Path, write_cca: Callable[..., Path]) -> None:
    for seed, values in (("1", [0.5, 0.25]), ("2", [0.75, None])):
        write_cca(tmp_path / "cca" / "a" / f"{seed}.json", values)
    data = as_json(read_report(tmp_path, threshold="0.9", arms=[]))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    (found,) = data["comparisons"]
    assert (found["name"], found["seeds"]) == ("a", ["1", "2"])
    first, second = found["layers"]
    assert first["values"] == pytest.approx([0.5, 0.7])
    assert (first["mean"], first["low"], first["high"]) == pytest.approx((0.6, 0.5, 0.7))
    assert (first["floor"], first["ceiling"]) == (0.1, 0.9)
    assert "mean" not in second


def test_only_chosen_seeds_come_on_the_page(experiment):
    everything = read_report(experiment, threshold="0.9")
    (arm, *_) = everything.arms
    seeds = [run.seed for run in everything.arms[arm].runs]
    (experiment / "runs" / arm / seeds[0] / "metrics.json").unlink()  # a run that goes on, and is not looked at
    found = read_report(experiment, threshold="0.9", arms=[arm], comparisons=[], seeds=seeds[1:])
    assert [run.seed for run in found.arms[arm].runs] == seeds[1:]
    with pytest.raises(UsageError, match=r"no runs of .* with seed 77"):
        read_report(experiment, threshold="0.9", arms=[arm], seeds=["77"])
