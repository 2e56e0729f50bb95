import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.stats import norm


@pytest.fixture(scope="module")
def arms(tmp_path_factory, finished) -> Path:
    """Arms of two seeds: `trained`, whose best networks are one run's best and last, and `fresh`, whose are untrained.

    Runs of the first pass 0.75 at step 8 and 12, of the second at 12 and never.
    """
    folder = tmp_path_factory.mktemp("compare")
    for arm, seed, source, steps in (
        ("trained", "1", "best", 8),
        ("trained", "2", "last", 12),
        ("fresh", "1", "init", 12),
        ("fresh", "2", "init", None),
    ):
        run = folder / arm / seed
        run.mkdir(parents=True)
        shutil.copy(finished / f"{source}.safetensors", run / "best.safetensors")
        log = [{"step": s, "macro_auc": 0.8 if steps is not None and s >= steps else 0.6} for s in range(0, 17, 4)]
        (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
        (run / "metrics.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def predicted(arms, invoke, fundus) -> Path:
    """The same, each run with its predictions."""
    for run in arms.glob("*/*"):
        given = ["--data", fundus, "--predictions", run / "predictions.csv", "--bootstrap", 0, "--threads", 1]
        invoke("eval", run / "best.safetensors", *given)
    return arms


def copied(arms: Path, folder: Path) -> Path:
    return Path(shutil.copytree(arms, folder / "arms"))


def test_steps_and_aucs_of_two_arms(predicted, invoke, fundus):
    given = [predicted / "trained", predicted / "fresh", "--threshold", 0.75, "--bootstrap", 200, "--json"]
    result = json.loads(invoke("compare", *given).stdout)
    assert [run["steps"] for run in (*result["a"], *result["b"])] == [8, 12, 12, None]
    assert [run["censored_at"] for run in result["b"]] == [None, 16]
    assert result["paired_by_seed"]
    steps = result["steps"]
    assert steps["differences"] == [[-4, -4], [None, -5]]
    assert steps["medians"] == [[10, 10], [14.5, None]]
    assert (steps["test"], steps["p"]) == ("sign-flip", 0.5)
    assert steps["sooner"] == {"a": 2, "b": 0, "undecided": 0}
    auc = result["auc"]
    assert (auc["n"], auc["independent"], auc["units"], auc["bootstrap"]) == (42, "patients", 21, 200)
    for a, b in ((1, 1), (2, 2)):
        evaluated = []
        for arm, seed in (("trained", a), ("fresh", b)):
            path = predicted / arm / str(seed) / "best.safetensors"
            evaluated.append(json.loads(invoke("eval", path, "--data", fundus, "--json", "--threads", 1).stdout))
        for name in evaluated[0]["labels"]:
            test = auc["labels"][name]["delong"][a - 1]
            assert (test["seed_a"], test["seed_b"]) == (str(a), str(b))
            expected = [result["labels"][name]["auc"] for result in evaluated]
            assert [test["a"], test["b"]] == expected
            assert test["p"] == pytest.approx(2 * norm.sf(abs(test["z"])))
        macro = [result["macro_auc"] for result in evaluated]
        assert auc["macro"]["delong"][a - 1]["difference"] == macro[0] - macro[1]
        referable = [result["referable"]["auc"] for result in evaluated]
        assert auc["referable"]["delong"][a - 1]["difference"] == referable[0] - referable[1]
    macro = auc["macro"]
    assert macro["difference"] == pytest.approx(np.mean([test["difference"] for test in macro["delong"]]))
    assert macro["bootstrap_ci"][0] < macro["difference"] < macro["bootstrap_ci"][1]
    assert macro["seeds"]["kind"] == "range"


def test_networks_evaluated_on_the_spot_give_what_their_predictions_give(predicted, invoke, fundus):
    given = ["compare", predicted / "trained" / "1", predicted / "fresh" / "2", "--bootstrap", 100, "--json"]
    read = json.loads(invoke(*given).stdout)
    run = json.loads(invoke(*given, "--data", fundus, "--threads", 1, "--device", "cpu").stdout)
    assert read["auc"] == run["auc"]
    assert not read["paired_by_seed"]
    assert (read["steps"]["test"], read["steps"]["p"], read["steps"]["exact"]) == ("log-rank", 1, True)


def test_one_auc_of_probabilities_that_are_written_as_1_whoever_prints_it(predicted, invoke, fundus, tmp_path):
    """Logits apart, whose probabilities are all the same in float64: eval, its predictions, compare and report agree."""
    folder = copied(predicted, tmp_path).parent / "runs"
    shutil.move(tmp_path / "arms", folder)
    for run in folder.glob("*/*"):
        with safe_open(run / "best.safetensors", "pt") as file:
            metadata = file.metadata()
        state = load_file(run / "best.safetensors")
        state["fc.bias"] += 60
        save_file(state, run / "best.safetensors", metadata=metadata)
        given = ["--data", fundus, "--threads", 1, "--bootstrap", 0, "--force"]
        done = ["--predictions", run / "predictions.csv", "--beside", "eval.json"]
        invoke("eval", run / "best.safetensors", *given, *done)
    compared = json.loads(invoke("compare", folder / "trained", folder / "fresh", "--bootstrap", 0, "--json").stdout)
    report = json.loads(invoke("report", tmp_path, "-o", tmp_path / "page.html", "--json").stdout)
    reported = {arm["arm"]: arm["test_macro_auc"]["values"] for arm in report["arms"]}
    for side, arm in (("a", "trained"), ("b", "fresh")):
        for seed in (0, 1):
            run = folder / arm / f"{seed + 1}"
            found = json.loads((run / "eval.json").read_text())
            with (run / "predictions.csv").open(newline="") as stream:
                rows = list(csv.DictReader(stream))
            for name, label in found["labels"].items():
                assert {float(row[f"p_{name}"]) for row in rows} == {1}
                x, y = ([float(row[f"logit_{name}"]) for row in rows if row[name] == value] for value in "10")
                twice = sum(2 * (one > other) + (one == other) for one in x for other in y)
                assert label["auc"] == twice / (2 * len(x) * len(y))
                assert compared["auc"]["labels"][name]["delong"][seed][side] == label["auc"]
            assert compared["auc"]["macro"]["delong"][seed][side] == found["macro_auc"]
            assert compared["auc"]["referable"]["delong"][seed][side] == found["referable"]["auc"]
            assert reported[arm][seed] == found["macro_auc"]
    assert reported["trained"] != reported["fresh"]
    assert report["arms"][0]["test_samples"] == [{"n": 42, "independent": "patients", "units": 21}] * 2
    assert "Test AUC: of 42 images of 21 patients; its spread over seeds" in (tmp_path / "page.html").read_text()


def test_the_table_says_what_was_censored_and_how_few_seeds_there_are(predicted, invoke):
    shown = invoke("compare", predicted / "trained", predicted / "fresh", "--threshold", 0.75, "--bootstrap", 50).stdout
    assert "12, > 16" in shown
    words = " ".join(shown.split())
    assert (
        "pairs of one seed: n = 2; A sooner in 2, B in 0, undecided 0; A takes 0.69 times the steps of B, a run"
        in words
    )
    assert "p = 0.25 that A is sooner, 1 that B is; 2 pairs can give 0.25 at least" in words
    assert "42 images of 21 patients, taken as independent: clustered DeLong (Obuchowski 1997)" in " ".join(
        shown.split()
    )
    assert "means of 2 pairs of runs" in shown
    one = [predicted / "trained" / "1", predicted / "fresh" / "1"]
    assert "95 %, DeLong" in invoke("compare", *one, "--bootstrap", 0).stdout


@pytest.mark.parametrize("threshold", ["90", "-1", "nan"])
def test_a_threshold_that_is_no_auc_is_refused(threshold, predicted, invoke):
    given = ["compare", predicted / "trained", predicted / "fresh", f"--threshold={threshold}"]
    refused = invoke(*given, check=False)
    assert refused.exit_code == 2
    assert "is no AUC: give 0 to 1" in refused.stderr


def test_a_run_does_not_differ_from_itself(predicted, invoke):
    run = predicted / "trained" / "1"
    result = json.loads(invoke("compare", run, run, "--threshold", 0.75, "--json").stdout)
    assert result["steps"]["differences"] == [[0, 0]]
    assert result["steps"]["p"] == 1
    for row in (*result["auc"]["labels"].values(), result["auc"]["macro"], result["auc"]["referable"]):
        assert (row["difference"], row["bootstrap_ci"]) == (0, [0, 0])
        assert [(test["z"], test["p"], test["se"]) for test in row["delong"]] == [(0, 1, 0)]
    assert invoke("compare", run, run, "--threshold", 0.75).stderr == ""


def test_without_predictions_steps_are_compared_alone(predicted, invoke, tmp_path):
    folder = copied(predicted, tmp_path)
    for path in folder.glob("*/*/predictions.csv"):
        path.unlink()
    done = invoke("compare", folder / "trained", folder / "fresh", "--threshold", 0.75, "--json")
    result = json.loads(done.stdout)
    assert (result["auc"], result["steps"]["p"]) == (None, 0.5)
    assert "give --data SPEC" in done.stderr
    assert "sign flips" in invoke("compare", folder / "trained", folder / "fresh").stdout


def test_other_images_are_refused_by_name(predicted, invoke, tmp_path):
    folder = copied(predicted, tmp_path)
    file = folder / "fresh" / "2" / "predictions.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:5], *lines[6:]]))
    refused = invoke("compare", folder / "trained", folder / "fresh", check=False)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert f"image {lines[5].split(',')[0]} is in" in refused.stderr
    file.unlink()
    refused = invoke("compare", folder / "trained", folder / "fresh", check=False)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "2/predictions.csv is missing" in refused.stderr


def test_what_is_no_run_or_has_not_ended_is_refused(predicted, invoke, tmp_path):
    folder = copied(predicted, tmp_path)
    (tmp_path / "empty").mkdir()
    refused = invoke("compare", tmp_path / "empty", folder / "fresh", check=False)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "empty holds no runs" in refused.stderr
    (folder / "fresh" / "2" / "metrics.json").unlink()
    for side in (folder / "fresh", folder / "fresh" / "2"):
        refused = invoke("compare", folder / "trained", side, check=False)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert "fresh/2 has not ended" in refused.stderr


def test_the_names_of_folders_drive_no_terminal(predicted, invoke, tmp_path):
    run = tmp_path / "r\u202eu\x1b[2Jn"
    shutil.copytree(predicted / "trained" / "1", run)
    for options in ([], ["--json"]):
        shown = invoke("compare", run, run, "--bootstrap", 0, *options).stdout
        assert all(line.isprintable() for line in shown.splitlines())
    assert json.loads(shown)["a"][0]["run"] == str(run)
