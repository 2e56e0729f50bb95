"""`eval --baseline`: what is fitted to which images, and how the network stands against it."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import wsurgery
from tests.conftest import TRAINING
from wsurgery.commands.eval import _against
from wsurgery.data.dataset import load_dataset
from wsurgery.data.manifest import write_manifest
from wsurgery.data.sources import open_data
from wsurgery.errors import UsageError, WsurgeryError
from wsurgery.experiments.comparison import compare_aucs
from wsurgery.training.baseline import fit_baseline
from wsurgery.training.predictions import read_predictions

QUICK = ("--bootstrap", 0, "--threads", 1, "--device", "cpu")


def said(done):
    return " ".join(done.stdout.split())


def changed(fundus, path, rows=slice(None), change=lambda labels, splits: None):
    """The same images with other labels, or some of them."""
    manifest = open_data(fundus)
    chosen = list(range(len(manifest)))[rows] if isinstance(rows, slice) else rows
    manifest = manifest.take(chosen)
    labels = manifest.labels.copy()
    change(labels, np.array(manifest.splits))
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    write_manifest(replace(manifest, paths=paths, labels=labels), path)
    return path


@pytest.fixture(scope="module")
def subset_run(invoke, fresh, fundus, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("subset") / "run"
    invoke("train", fresh, "--data", fundus, "-o", run, *TRAINING, "--subset", 30)
    return run


@pytest.fixture(scope="module")
def fitted(fundus):
    """What a baseline says of the test images, by its name and the size of the subset that it learns from."""

    def fit(name, subset=None):
        train = load_dataset(fundus, split="train", subset=subset)
        valid, test = (load_dataset(fundus, split=split) for split in ("valid", "test"))
        return fit_baseline(name, train.label_names, train, valid, test)

    return fit


@pytest.mark.parametrize("name", ["thumbnail", "histogram"])
def test_the_test_of_the_difference_is_that_of_compare(name, finished, fundus, invoke, fitted, tmp_path):
    given = ("--data", fundus, "--baseline", name, "--predictions", tmp_path / "p.csv", "--json", *QUICK)
    result = json.loads(invoke("eval", finished, *given).stdout)
    found, expected = result["baseline"], fitted(name)
    assert (found["name"], found["trained_on"], found["penalty"]) == (name, 60, expected.penalty)
    assert found["difference"] == result["macro_auc"] - found["macro_auc"]
    network = read_predictions(tmp_path / "p.csv")
    scores = np.column_stack([expected.scores, network.scores[:, network.count]])  # of `referable` none is asked
    macro = compare_aucs([network], [replace(network, scores=scores)], [(0, 0)], resamples=0, seed=0).macro
    (test,) = macro.tests
    assert (found["difference"], found["ci"], found["p"]) == (test.difference, list(test.ci), test.p)
    aucs = [roc_auc_score(network.labels[:, i], expected.scores[:, i]) for i in range(5)]
    assert [label["auc"] for label in found["labels"].values()] == pytest.approx(aucs, rel=1e-12)
    assert found["macro_auc"] == pytest.approx(np.mean(aucs), rel=1e-12)
    assert found["macro_delong_ci"][0] < found["macro_auc"] < found["macro_delong_ci"][1]


def test_nothing_is_held_against_a_network_unasked_and_nothing_else_changes(finished, fundus, invoke):
    given = ("eval", finished, "--data", fundus, "--json", *QUICK)
    alone, both = (json.loads(invoke(*given, *more).stdout) for more in ((), ("--baseline", "histogram")))
    assert both.pop("baseline")["name"] == "histogram"
    assert alone == both


@pytest.mark.slow
def test_of_a_run_with_a_subset_the_baseline_learns_from_that_alone(subset_run, fundus, invoke, fitted, tmp_path):
    given = ("--data", fundus, "--baseline", "thumbnail", "--json", *QUICK)
    small = load_dataset(fundus, split="train", subset=30)
    assert len(small.images) < 60
    for source in (subset_run, subset_run / "last.safetensors"):
        done = invoke("eval", source, *given)
        found = json.loads(done.stdout)["baseline"]
        assert (found["trained_on"], done.stderr) == (len(small.images), "")
        aucs = fitted("thumbnail", 30)
        test = load_dataset(fundus, split="test")
        expected = np.mean([roc_auc_score(test.labels[:, i], aucs.scores[:, i]) for i in range(5)])
        assert found["macro_auc"] == pytest.approx(expected, rel=1e-12)
    shutil.copy(subset_run / "last.safetensors", tmp_path / "alone.safetensors")
    done = invoke("eval", tmp_path / "alone.safetensors", *given)
    assert json.loads(done.stdout)["baseline"]["trained_on"] == 60
    assert "was trained on other rows than the baseline, which learned from 60 of the split train" in done.stderr


def test_runs_that_share_their_images_share_a_fit(finished, subset_run, fundus, invoke, tmp_path, monkeypatch):
    fits = []

    def counted(*arguments):
        fits.append(len(arguments[2].images))
        return fit_baseline(*arguments)

    monkeypatch.setattr("wsurgery.studies._baseline.fit_baseline", counted)
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run, source in zip(runs, (finished, subset_run, finished), strict=True):
        shutil.copytree(source, run)
    given = ("--data", fundus, "--baseline", "histogram", *QUICK)
    invoke("eval", *runs, *given, "--beside", "eval.json")
    assert sorted(fits) == [len(load_dataset(fundus, split="train", subset=30).images), 60]
    for run in runs:
        alone = json.loads(invoke("eval", run, *given, "--json").stdout)
        assert json.loads((run / "eval.json").read_text()) == alone


def test_the_table_has_a_row_for_it_and_the_caption_the_test(finished, fundus, invoke):
    given = ("eval", finished, "--data", fundus, "--baseline", "thumbnail", *QUICK)
    result = json.loads(invoke(*given, "--json").stdout)
    found, shown = result["baseline"], said(invoke(*given))
    low, high = found["macro_delong_ci"]
    assert f"macro, thumbnails {found['macro_auc']:.4f} {low:.4f} – {high:.4f}" in shown
    low, high = found["ci"]
    assert f"logistic regression on 16-pixel thumbnails of 60 training images (penalty {found['penalty']:g}," in shown
    assert f"chosen on valid): {found['difference']:+.4f} ({low:+.4f} to {high:+.4f}), p = {found['p']:.2g}" in shown
    assert low <= 0, "this network is not one to beat anything"
    assert "That the network beats it is not shown: a claim about this network is worth little." in shown


@pytest.mark.parametrize(("ci", "beats"), [([0.001, 0.2], True), ([0.0, 0.2], False), (None, False)])
def test_a_network_beats_a_baseline_where_the_whole_interval_is_above_0(ci, beats):
    known = {"name": "histogram", "penalty": 1.0, "penalty_chosen_on": None, "trained_on": 9, "difference": 0.1}
    words = _against({**known, "ci": ci, "p": 0.03 if ci else None})
    assert ("worth little" in words) != beats
    assert "(penalty 1, not chosen): +0.1000" in words


def test_classes_that_exclude_each_other_have_one_too(invoke, fresh, fundus, fitted, tmp_path):
    invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, "--loss", "softmax")
    given = ("--data", fundus, "--baseline", "histogram", "--json", *QUICK)
    result = json.loads(invoke("eval", tmp_path / "run", *given).stdout)
    test, scores = load_dataset(fundus, split="test"), fitted("histogram").scores
    expected = np.mean([roc_auc_score(test.labels[:, i], scores[:, i]) for i in range(5)])
    assert "top1" in result
    assert result["baseline"]["macro_auc"] == pytest.approx(expected, rel=1e-12)
    assert result["baseline"]["difference"] == result["macro_auc"] - result["baseline"]["macro_auc"]


def test_labels_without_both_classes_among_the_evaluated_are_left_out(finished, fundus, invoke, tmp_path):
    def change(labels, splits):
        labels[splits == "test", 0] = 0
        labels[splits == "train", 0] = 1  # of which nothing could be learned, nor need be

    data = changed(fundus, tmp_path / "m.csv", change=change)
    given = ("--data", data, "--baseline", "histogram", "--json", *QUICK)
    result = json.loads(invoke("eval", finished / "last.safetensors", *given).stdout)
    labels = result["baseline"]["labels"]
    assert list(labels) == list(result["labels"])
    assert labels.pop("none") == {"auc": None, "ci": None}
    assert result["baseline"]["macro_auc"] == pytest.approx(np.mean([label["auc"] for label in labels.values()]))


def test_without_a_validation_split_the_penalty_is_1(finished, fundus, invoke, tmp_path):
    rows = [i for i, split in enumerate(open_data(fundus).splits) if split != "valid"]
    given = ("--data", changed(fundus, tmp_path / "m.csv", rows), "--baseline", "histogram", *QUICK)
    found = json.loads(invoke("eval", finished, *given, "--json").stdout)["baseline"]
    assert (found["penalty"], found["penalty_chosen_on"]) == (1, None)


def test_bad_input_ends_in_one_line(finished, fundus, invoke, tmp_path):
    def one_class(labels, splits):
        labels[splits == "train", 1] = np.nan

    def no_class(labels, splits):
        labels[splits == "test"] = 0

    only_test = [i for i, split in enumerate(open_data(fundus).splits) if split == "test"]
    cases = [
        (2, changed(fundus, tmp_path / "a.csv", only_test), "learns from the split train, and the data have test"),
        (
            2,
            changed(fundus, tmp_path / "b.csv", change=one_class),
            "60 training images do not have both classes of mild",
        ),
        (1, changed(fundus, tmp_path / "c.csv", change=no_class), "no label has both classes in the 42 images"),
    ]
    for status, data, words in cases:
        given = ("eval", finished / "last.safetensors", "--data", data, "--baseline", "thumbnail", "--json", *QUICK)
        refused = invoke(*given, check=False)
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (status, "", 1)
        assert words in refused.stderr


def test_training_images_that_cannot_be_read_are_left_out_on_demand(finished, fundus, invoke, tmp_path):
    changed(fundus, tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    next(row for row in rows if row[2] == "train")[0] = str(tmp_path / "lost.png")
    with (tmp_path / "m.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    given = ("eval", finished, "--data", tmp_path / "m.csv", "--baseline", "histogram", "--json", *QUICK)
    refused = invoke(*given, check=False)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "lost.png cannot be read" in refused.stderr
    done = invoke(*given, "--skip-bad")
    assert "train: 1 images left out" in done.stderr
    assert json.loads(done.stdout)["baseline"]["trained_on"] == 59


def test_a_damaged_subset_is_refused(subset_run, fundus, invoke, tmp_path):
    shutil.copytree(subset_run, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["settings"]["subset"] = "30"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    given = ("eval", tmp_path / "run", "--data", fundus, "--baseline", "histogram", *QUICK)
    refused = invoke(*given, check=False)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "config.json is damaged: its subset is no number of images" in refused.stderr


def test_python_does_the_same(finished, subset_run, fundus, invoke):
    given = {"data": fundus, "baseline": "histogram", "bootstrap": 0, "threads": 1, "device": "cpu"}
    for source in (finished / "best.safetensors", subset_run):
        options = ("--data", fundus, "--baseline", "histogram", "--json", *QUICK)
        expected = json.loads(invoke("eval", source, *options).stdout)
        assert json.loads(json.dumps(wsurgery.evaluate(source, **given))) == expected
    with pytest.raises(UsageError, match="baseline pixels: one of thumbnail, histogram"):
        wsurgery.evaluate(finished, **{**given, "baseline": "pixels"})
    with pytest.raises(WsurgeryError, match="learns from another split"):
        wsurgery.evaluate(finished, **{**given, "data": load_dataset(fundus, split="test")})


@pytest.mark.slow
def test_with_torchrun_the_first_process_fits_what_one_would(finished, fundus, invoke, torchrun):
    given = ("eval", finished, "--data", fundus, "--baseline", "thumbnail", "--json", *QUICK)
    assert json.loads(torchrun(*given).stdout) == json.loads(invoke(*given).stdout)
