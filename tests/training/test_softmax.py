"""Classes that exclude each other: what `--loss softmax` trains, and what is said of it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, roc_auc_score

import wsurgery
from tests.conftest import TRAINING
from wsurgery.data.dataset import load_dataset
from wsurgery.data.manifest import write_manifest
from wsurgery.data.sources import open_data
from wsurgery.models import load
from wsurgery.training.predict import predict


@pytest.fixture(scope="module")
def run(invoke, fresh, fundus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("softmax") / "run"
    invoke("train", fresh, "--data", fundus, "-o", folder, *TRAINING, "--loss", "softmax")
    return folder


def test_eval_reports_top_1_and_each_class_against_the_rest(run, invoke, fundus, tmp_path):
    given = ["--data", fundus, "--predictions", tmp_path / "p.csv", "--threads", 1, "--bootstrap", 20]
    result = json.loads(invoke("eval", run / "last.safetensors", *given, "--json").stdout)
    data = load_dataset(fundus, split="test")
    logits = predict(load(run / "last.safetensors"), data, device=torch.device("cpu"))
    p = torch.softmax(torch.from_numpy(logits).double(), 1).numpy()
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    written = np.array([[float(row[f"p_{name}"]) for name in data.label_names] for row in rows])
    np.testing.assert_allclose(written, p, rtol=1e-9)
    assert result["top1"] == accuracy_score(data.labels.argmax(1), p.argmax(1))
    for i, name in enumerate(data.label_names):
        assert result["labels"][name]["auc"] == pytest.approx(roc_auc_score(data.labels[:, i], p[:, i]), rel=1e-12)
    assert result["referable"]["auc"] == pytest.approx(
        roc_auc_score(data.labels[:, 2:].sum(1), p[:, 2:].sum(1)), rel=1e-12
    )
    table = invoke("eval", run / "last.safetensors", *given, "--force").stdout
    assert f"top-1 accuracy {result['top1']:.4f}".split() in [line.split() for line in table.splitlines()]


def test_validation_reports_it_too_and_the_record_says_the_loss(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    evaluated = [entry for entry in log if "macro_auc" in entry]
    assert all(0 <= entry["top1"] <= 1 for entry in evaluated)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["last"]["top1"] == evaluated[-1]["top1"]
    assert json.loads((run / "config.json").read_text())["settings"]["loss"] == "softmax"


def test_python_trains_the_same(run, fresh, fundus, tmp_path):
    given = {"steps": 12, "eval_every": 4, "batch_size": 8, "lr": 0.01, "device": "cpu", "threads": 1}
    trained = wsurgery.train(fresh, data=fundus, output=tmp_path / "run", loss="softmax", **given)
    assert trained.metrics["last"]["top1"] == json.loads((run / "metrics.json").read_text())["last"]["top1"]
    mine, theirs = (load_file(folder / "last.safetensors") for folder in (tmp_path / "run", run))
    assert all(mine[name].equal(theirs[name]) for name in theirs)
    with pytest.raises(wsurgery.errors.UsageError, match="--loss hinge: one of bce, softmax"):
        wsurgery.train(fresh, data=fundus, output=tmp_path / "other", loss="hinge", **given)


def test_compare_and_cca_and_report_take_such_a_run(run, finished, invoke, fundus, tmp_path):
    given = ["--data", fundus, "--threads", 1, "--json"]
    pair = json.loads(invoke("compare", run, finished, *given, "--bootstrap", 20).stdout)
    for side, folder in (("a", run), ("b", finished)):
        alone = json.loads(invoke("eval", folder / "best.safetensors", *given, "--bootstrap", 0).stdout)
        assert pair["auc"]["macro"][side] == pytest.approx(alone["macro_auc"], rel=1e-12)
    layers = ["--layers", "block1", "-p", 200, "-d", 2, "--repeats", 2, "--images", 16]
    assert invoke("cca", run / "last.safetensors", "--with-init", *given, *layers).stdout
    (tmp_path / "runs" / "softmax").mkdir(parents=True)
    (tmp_path / "runs" / "softmax" / "1").symlink_to(run)
    found = json.loads(invoke("report", tmp_path, "-o", tmp_path / "report.html", "--json").stdout)
    assert "softmax" in json.dumps(found)


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_without_exactly_one_class_are_counted_in_one_line(split, run, fresh, fundus, invoke, tmp_path):
    manifest = open_data(fundus)
    labels = manifest.labels.copy()
    rows = [i for i, own in enumerate(manifest.splits) if own == split][3:6]
    labels[rows[0]], labels[rows[1]], labels[rows[2]] = 0, 1, np.nan
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    write_manifest(replace(manifest, paths=paths, labels=labels), tmp_path / "m.csv")
    if split == "train":
        words = ["train", fresh, "--data", tmp_path / "m.csv", "-o", tmp_path / "run", *TRAINING, "--loss", "softmax"]
    else:
        words = ["eval", run / "best.safetensors", "--data", tmp_path / "m.csv", "--threads", 1]
    refused = invoke(*words, check=False)
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert f"3 of {manifest.splits.count(split)} rows do not have exactly one label that is 1" in refused.stderr
    assert manifest.paths[rows[0]] in refused.stderr
    assert not (tmp_path / "run").exists()
    labels[rows[0]], labels[rows[1]] = manifest.labels[rows[:2]]
    write_manifest(replace(manifest, paths=paths, labels=labels), tmp_path / "unknown.csv")
    refused = invoke(*(tmp_path / "unknown.csv" if word == tmp_path / "m.csv" else word for word in words), check=False)
    assert f"1 of {manifest.splits.count(split)} rows have no class, first" in refused.stderr
    assert manifest.paths[rows[2]] in refused.stderr
