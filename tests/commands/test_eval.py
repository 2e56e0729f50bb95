import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from wsurgery.data.dataset import load_dataset
from wsurgery.data.manifest import write_manifest
from wsurgery.data.sources import open_data
from wsurgery.models import load
from wsurgery.statistics.delong import delong
from wsurgery.training.predict import predict


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, invoke, finished, fundus):
    folder = tmp_path_factory.mktemp("eval")
    given = ["--data", fundus, "--predictions", folder / "p.csv", "--json", "--threads", 1, "--device", "cpu"]
    done = invoke("eval", finished / "last.safetensors", *given)
    with (folder / "p.csv").open(newline="") as stream:
        return json.loads(done.stdout), list(csv.DictReader(stream))


def said(done):
    """The words of a table, however its lines are broken."""
    return " ".join(done.stdout.split())


def relabelled(fundus, change, path):
    """The same images with other labels."""
    manifest = open_data(fundus)
    labels = manifest.labels.copy()
    change(labels)
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    write_manifest(replace(manifest, paths=paths, labels=labels), path)
    return path


def test_json_has_the_contracts_fields(evaluated, fundus):
    result, _ = evaluated
    data = load_dataset(fundus, split="test")
    assert result["n"] == len(data.images) == 42
    assert tuple(result["labels"]) == data.label_names
    for label in result["labels"].values():
        low, high = label["ci"]
        assert 0 <= low < label["auc"] < high <= 1
    assert result["macro_auc"] == pytest.approx(np.mean([label["auc"] for label in result["labels"].values()]))
    assert (result["independent"], result["units"]) == ("patients", len(set(data.patients)))


def test_the_intervals_are_delongs_by_patient(evaluated):
    result, rows = evaluated
    patients, names = [row["patient"] for row in rows], list(result["labels"])
    labels, logits = (np.array([[float(row[f"{kind}{x}"]) for x in names] for row in rows]) for kind in ("", "logit_"))
    for i, label in enumerate(result["labels"].values()):
        assert label["ci"] == list(delong(labels[:, [i]], logits[:, [i]], patients=patients).ci)
        assert label["ci"] != list(delong(labels[:, [i]], logits[:, [i]]).ci)
    assert result["macro_delong_ci"] == list(delong(labels, logits, patients=patients).ci)


def test_predictions_are_the_networks_probabilities(evaluated, finished, fundus):
    _, rows = evaluated
    data = load_dataset(fundus, split="test")
    logits = predict(load(finished / "last.safetensors"), data, device=torch.device("cpu"))
    assert [row["path"] for row in rows] == list(data.paths)
    assert [row["patient"] for row in rows] == list(data.patients)
    for i, name in enumerate(data.label_names):
        assert [float(row[name]) for row in rows] == data.labels[:, i].tolist()
        expected = torch.sigmoid(torch.from_numpy(logits[:, i])).tolist()
        assert [float(row[f"p_{name}"]) for row in rows] == pytest.approx(expected, rel=1e-5)
        assert [float(row[f"logit_{name}"]) for row in rows] == logits[:, i].tolist()


def test_scikit_learn_finds_the_same_auc_in_the_predictions(evaluated):
    result, rows = evaluated
    for name, label in result["labels"].items():
        labels, scores = ([float(row[key]) for row in rows] for key in (name, f"logit_{name}"))
        assert label["auc"] == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)


def test_the_bootstrap_is_that_of_the_predictions_by_patient(evaluated):
    result, rows = evaluated
    assert (result["bootstrap"], result["independent"]) == (2000, "patients")
    owners = [row["patient"] for row in rows]
    names, owner = np.unique(owners, return_inverse=True)
    assert len(names) < len(rows)
    rng, samples = np.random.default_rng(0), {name: [] for name in result["labels"]}
    for _ in range(2000):
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[owner]
        for name, values in samples.items():
            labels, scores = (np.repeat([float(row[key]) for row in rows], times) for key in (name, f"logit_{name}"))
            above = (scores[labels == 1, None] > scores[None, labels == 0]).ravel()
            values.append(above.mean() if len(above) else np.nan)
    for name, label in result["labels"].items():
        assert label["bootstrap_ci"] == pytest.approx(np.nanquantile(samples[name], [0.025, 0.975]), abs=1e-9)
        assert label["left_out"] == np.isnan(samples[name]).sum()
    means = np.mean(list(samples.values()), axis=0)
    macro = np.nanquantile(means, [0.025, 0.975])
    assert result["macro_ci"] == pytest.approx(macro, abs=1e-9)
    assert result["macro_left_out"] == np.isnan(means).sum()
    assert result["referable"]["left_out"] == 0
    assert result["referable"]["bootstrap_ci"][0] < result["referable"]["auc"] < result["referable"]["bootstrap_ci"][1]


def test_without_patients_images_are_resampled_and_without_samples_nothing(finished, fundus, invoke, tmp_path):
    manifest = open_data(fundus)
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    write_manifest(replace(manifest, paths=paths, patients=paths), tmp_path / "m.csv")
    given = ["eval", finished / "last.safetensors", "--data", tmp_path / "m.csv", "--threads", 1]
    first, other = (json.loads(invoke(*given, "--json", "--seed", seed).stdout) for seed in (0, 1))
    assert first["independent"] == "images"
    assert first["macro_ci"] != other["macro_ci"]
    assert "images, taken as independent; the bootstrap draws images 2,000 times" in said(invoke(*given))
    copied = tmp_path / "set"
    shutil.copytree(manifest.root, copied)
    write_manifest(replace(manifest, root=copied, patients=manifest.paths), copied / "m.csv")
    (tmp_path / "made").mkdir()
    invoke("data", "make", copied / "m.csv", "-o", tmp_path / "made" / "m.csv")  # where each patient has the path's end
    made = json.loads(invoke(*given[:3], tmp_path / "made" / "m.csv", *given[4:], "--json").stdout)
    assert made["independent"] == "images"
    none = json.loads(invoke(*given, "--json", "--bootstrap", 0).stdout)
    assert (none["bootstrap"], none["macro_ci"]) == (0, None)
    for label in (*none["labels"].values(), none["referable"]):
        assert (label["bootstrap_ci"], label["left_out"]) == (None, 0)
    assert none["labels"]["none"]["ci"] == first["labels"]["none"]["ci"]
    assert "draws" not in said(invoke(*given, "--bootstrap", 0))


def test_the_table_says_of_how_many_patients_the_intervals_are(evaluated, finished, fundus, invoke):
    result, _ = evaluated
    shown = said(invoke("eval", finished / "last.safetensors", "--data", fundus, "--threads", 1))
    assert "42 images of 21 patients, taken as independent: clustered DeLong (Obuchowski 1997)" in shown
    assert "the bootstrap draws patients 2,000 times" in shown
    low, high = result["macro_delong_ci"]
    assert f"macro {result['macro_auc']:.4f} {low:.4f} – {high:.4f}" in shown


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["wsurgery"]


def test_scikit_learn_finds_the_same_referable_auc(evaluated):
    result, rows = evaluated
    grades = [("none", "mild"), ("moderate", "severe", "proliferative")]
    below, above = (np.array([[float(row[f"p_{name}"]) for name in names] for row in rows]) for names in grades)
    truth = [sum(float(row[name]) for name in grades[1]) for row in rows]
    share = above.sum(1) / (above.sum(1) + below.sum(1))
    assert result["referable"]["auc"] == pytest.approx(roc_auc_score(truth, share), rel=1e-12)
    low, high = result["referable"]["ci"]
    assert low < result["referable"]["auc"] < high
    assert [float(row["referable"]) for row in rows] == truth
    np.testing.assert_allclose([float(row["p_referable"]) for row in rows], share, rtol=1e-9)


def test_labels_that_are_no_grades_have_no_referable_score(finished, fundus, invoke, tmp_path):
    manifest = open_data(fundus)
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    write_manifest(replace(manifest, paths=paths, label_names=tuple("abcde")), tmp_path / "m.csv")
    given = ["--data", tmp_path / "m.csv", "--threads", 1, "--predictions", tmp_path / "p.csv", "--json"]
    assert "referable" not in json.loads(invoke("eval", finished / "last.safetensors", *given).stdout)
    assert "referable" not in (tmp_path / "p.csv").read_text()


def test_images_that_cannot_be_read_are_left_out_on_demand(finished, fundus, invoke, tmp_path):
    manifest = open_data(fundus)
    lost = manifest.splits.index("test")
    paths = [str(manifest.root.absolute() / name) for name in manifest.paths]
    paths[lost] = str(tmp_path / "lost.png")
    write_manifest(replace(manifest, paths=tuple(paths)), tmp_path / "m.csv")
    given = ["eval", finished / "last.safetensors", "--data", tmp_path / "m.csv", "--threads", 1, "--json"]
    refused = invoke(*given, check=False)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "lost.png cannot be read" in refused.stderr
    assert refused.stderr.endswith("; --skip-bad leaves such images out\n")
    done = invoke(*given, "--skip-bad")
    assert done.stderr.startswith("test: 1 images left out, first: ")
    assert json.loads(done.stdout)["n"] == 41
    assert invoke(*given, "--bad-list", tmp_path / "bad.csv").stdout == done.stdout
    header, row = (tmp_path / "bad.csv").read_text().splitlines()
    assert header == "split,path,reason"
    assert row.startswith(f"test,{paths[lost]},")


def test_a_label_that_never_changes_is_null(finished, fundus, invoke, tmp_path):
    def change(labels):
        labels[:, 0], labels[:, 1], labels[::3, 2] = 1, np.nan, np.nan

    data = relabelled(fundus, change, tmp_path / "m.csv")
    given = ["--data", data, "--threads", 1, "--predictions", tmp_path / "p.csv"]
    result = json.loads(invoke("eval", finished / "last.safetensors", *given, "--json").stdout)
    found = [(label["auc"] is None, label["ci"] is None) for label in result["labels"].values()]
    assert found == [(True, True), (True, True), (False, False), (False, False), (False, False)]
    known = [label["auc"] for label in result["labels"].values() if label["auc"] is not None]
    assert result["macro_auc"] == pytest.approx(np.mean(known))
    left_out = [label["left_out"] for label in result["labels"].values()]
    assert left_out[:2] == [2000, 2000]
    assert max(left_out[2:]) < 2000
    assert result["macro_ci"][0] < result["macro_auc"] < result["macro_ci"][1]
    with (tmp_path / "p.csv").open(newline="") as stream:
        assert {row["mild"] for row in csv.DictReader(stream)} == {""}
    table = invoke("eval", finished / "last.safetensors", "--data", data, "--threads", 1).stdout
    assert table.splitlines()[1].split() == ["none", "–", "–", "–"]


def test_a_split_without_any_two_classes_has_no_mean(finished, fundus, invoke, tmp_path):
    data = relabelled(fundus, lambda labels: labels.fill(0), tmp_path / "m.csv")
    given = ["--data", data, "--split", "valid", "--threads", 1]
    result = json.loads(invoke("eval", finished / "last.safetensors", *given, "--json").stdout)
    assert (result["macro_auc"], result["macro_ci"], result["n"]) == (None, None, 18)
    assert "macro – – –" in said(invoke("eval", finished / "last.safetensors", *given))


def test_outputs_that_do_not_fit_the_labels_are_refused(invoke, fundus, tmp_path):
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 3, "-o", tmp_path / "x")
    refused = invoke("eval", tmp_path / "x", "--data", fundus, "--threads", 1, check=False)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "3 outputs" in refused.stderr
    assert "5 labels" in refused.stderr


def test_outputs_that_are_no_numbers_are_refused(invoke, finished, fundus, tmp_path):
    state = load_file(finished / "last.safetensors")
    state["fc.bias"][2] = float("nan")
    save_file(state, tmp_path / "x", metadata={"wsurgery": _metadata(finished / "last.safetensors")})
    refused = invoke("eval", tmp_path / "x", "--data", fundus, "--threads", 1, "--json", check=False)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "NaN" in refused.stderr


def test_predictions_replace_a_file_by_force_only(finished, fundus, invoke, tmp_path):
    (tmp_path / "p.csv").write_text("something")
    given = [
        "eval",
        finished / "last.safetensors",
        "--data",
        fundus,
        "--predictions",
        tmp_path / "p.csv",
        "--threads",
        1,
    ]
    refused = invoke(*given, check=False)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert (tmp_path / "p.csv").read_text() == "something"
    invoke(*given, "--force")
    assert (tmp_path / "p.csv").read_text().startswith("path,patient,")


def test_several_checkpoints_give_what_each_gives_alone(invoke, finished, fundus, tmp_path):
    given = ("--data", fundus, "--threads", 1)
    paths = []
    for name in ("best", "last"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "x.safetensors")
        paths[-1].write_bytes((finished / f"{name}.safetensors").read_bytes())
    invoke("eval", *paths, *given, "--beside", "eval.json")
    for path in paths:
        alone = json.loads(invoke("eval", path, *given, "--json").stdout)
        assert json.loads(path.with_name("eval.json").read_text()) == alone
    assert invoke("eval", *paths, *given, "--json", check=False).exit_code == 2


def test_an_auc_of_1_has_no_interval_of_width_0(finished, fundus, invoke, tmp_path):
    """Labels that are what the network ranks: every positive above every negative."""
    given = ["--data", fundus, "--predictions", tmp_path / "p.csv", "--json", "--device", "cpu", "--threads", 1]
    invoke("eval", finished / "best.safetensors", *given)
    with (tmp_path / "p.csv").open(newline="") as stream:
        scores = {row["path"]: float(row["logit_none"]) for row in csv.DictReader(stream)}
    middle = np.median(list(scores.values()))
    manifest = open_data(fundus)
    above = np.array([scores.get(path, 0) > middle for path in manifest.paths])

    def change(labels):
        labels[:, 0] = above

    perfect = ["--data", relabelled(fundus, change, tmp_path / "m.csv"), "--device", "cpu", "--threads", 1]
    found = json.loads(invoke("eval", finished / "best.safetensors", *perfect, "--json").stdout)
    label = found["labels"]["none"]
    assert (label["auc"], label["ci"], label["bootstrap_ci"]) == (1, None, None)
    assert (found["macro_ci"], found["macro_delong_ci"]) == (None, None)
    assert "(Obuchowski and Lieber 2002)" in said(invoke("eval", finished / "best.safetensors", *perfect))


def test_two_results_are_not_written_into_one_file(finished, invoke, fundus, tmp_path):
    paths = [finished / f"{name}.safetensors" for name in ("init", "last")]
    refused = invoke("eval", *paths, "--data", fundus, "--beside", "two.json", check=False)
    assert refused.exit_code == 2
    assert "two of these are in one folder" in refused.stderr
    assert not (finished / "two.json").exists()
