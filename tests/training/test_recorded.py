"""What a network was trained on travels with its checkpoint."""

import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

import wsurgery
from tests.conftest import FUNDUS, TRAINING
from wsurgery.data.dataset import load_dataset
from wsurgery.data.manifest import write_manifest
from wsurgery.data.sources import open_data
from wsurgery.models import load
from wsurgery.models.inputs import image_statistics
from wsurgery.training.predict import predict

SMALL = ["--threads", 1, "--json", "--bootstrap", 0]
LAYERS = ["--layers", "block1", "-p", 200, "-d", 2, "--repeats", 1, "--images", 16, "--threads", 1]


@pytest.fixture(scope="module")
def run(invoke, fresh, fundus, tmp_path_factory):
    """Trained on images of 16 pixels a side, where the data have 32."""
    folder = tmp_path_factory.mktemp("small") / "run"
    invoke("train", fresh, "--data", fundus, "-o", folder, *TRAINING, "--image-size", 16)
    return folder


def relabelled(fundus, path, order=None, names=None):
    """The same images, with labels in another order, or of other names."""
    manifest = open_data(fundus)
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    order = list(range(len(manifest.label_names))) if order is None else order
    names = tuple(manifest.label_names[i] for i in order) if names is None else names
    write_manifest(replace(manifest, paths=paths, labels=manifest.labels[:, order], label_names=names), path)
    return path


def aucs_at(size, checkpoint, fundus):
    data = load_dataset(fundus, split="test", image_size=size)
    logits = predict(load(checkpoint), data, device=torch.device("cpu"))
    return {name: roc_auc_score(data.labels[:, i], logits[:, i]) for i, name in enumerate(data.label_names)}


def found_by(invoke, *words):
    return {name: label["auc"] for name, label in json.loads(invoke("eval", *words).stdout)["labels"].items()}


def test_the_record_says_what_the_network_was_trained_on(run, fundus):
    with safe_open(run / "best.safetensors", "pt") as file:
        record = json.loads(file.metadata()["wsurgery"])["log"][-1]
    data = load_dataset(fundus, split="train", image_size=16)
    assert record["trained_on"] == {
        "image_size": 16, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        "labels": list(data.label_names), "fit": "crop", "window": "auto", "loss": "bce",
        "split": "train", "eval_split": "valid", "digest": data.digest,
    }  # fmt: skip


def test_eval_meets_images_of_the_size_of_training(run, invoke, fundus):
    given = [run / "best.safetensors", "--data", fundus, *SMALL]
    small, large = (aucs_at(size, run / "best.safetensors", fundus) for size in (16, 32))
    assert small != pytest.approx(large, abs=1e-3)
    assert found_by(invoke, *given) == pytest.approx(small, rel=1e-12)
    assert wsurgery.evaluate(given[0], data=fundus, bootstrap=0, threads=1)["macro_auc"] == pytest.approx(
        sum(small.values()) / 5
    )
    by_hand = invoke("eval", *given, "--image-size", 32)
    assert {name: label["auc"] for name, label in json.loads(by_hand.stdout)["labels"].items()} == pytest.approx(large)
    assert by_hand.stderr.count("\n") == 1
    assert "was trained on images of 16 pixels a side, and meets images of 32" in by_hand.stderr
    assert "was trained" not in invoke("eval", *given, "--image-size", 16).stderr


def test_several_networks_meet_each_its_own_size(run, finished, invoke, fundus, tmp_path):
    sides = []
    for folder, size in ((run, 16), (finished, 32)):
        (tmp_path / str(size)).mkdir()
        sides.append(tmp_path / str(size) / "x.safetensors")
        sides[-1].write_bytes((folder / "best.safetensors").read_bytes())
    invoke("eval", *sides, "--data", fundus, "--threads", 1, "--bootstrap", 0, "--beside", "eval.json")
    pair = json.loads(invoke("compare", run, finished, "--data", fundus, *SMALL).stdout)["auc"]["labels"]
    for side, size, path in (("a", 16, sides[0]), ("b", 32, sides[1])):
        result = json.loads(path.with_name("eval.json").read_text())
        expected = aucs_at(size, path, fundus)
        assert result["image_size"] == size
        assert {name: label["auc"] for name, label in result["labels"].items()} == pytest.approx(expected, rel=1e-12)
        assert {name: label[side] for name, label in pair.items()} == pytest.approx(expected, rel=1e-12)


def test_cca_takes_the_size_that_is_recorded_and_asks_where_there_are_two(run, finished, invoke, fundus, fresh):
    layers = ["--data", fundus, *LAYERS]
    for pair in ([run / "last.safetensors", "--with-init"], [fresh, run / "last.safetensors"]):
        assert json.loads(invoke("cca", *pair, *layers, "--json").stdout)["data"]["image_size"] == 16
    two = [run / "last.safetensors", finished / "last.safetensors", *layers]
    refused = invoke("cca", *two, check=False)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert "(16 and 32 pixels a side): choose one with --image-size" in refused.stderr
    done = invoke("cca", *two, "--image-size", 32)
    assert done.stderr.count("was trained on images of") == 1


def test_images_are_made_square_as_in_training(invoke, fresh, tmp_path):
    rng = np.random.default_rng(0)
    rows = ["path,patient,split,none,mild,moderate,severe,proliferative"]
    for i in range(40):
        Image.fromarray(rng.integers(0, 256, (24, 48, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        grade = ",".join(str(int(k == i % 5)) for k in range(5))
        rows.append(f"{i}.png,p{i},{('train', 'valid', 'test', 'test')[i % 4]},{grade}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    plain, padded = tmp_path / "m.csv", f"{tmp_path / 'm.csv'}?fit=pad"
    invoke("train", fresh, "--data", padded, "-o", tmp_path / "run", "--steps", 2, "--threads", 1, "--image-size", 16)
    found = invoke("eval", tmp_path / "run", "--data", plain, *SMALL)
    assert found.stdout == invoke("eval", tmp_path / "run", "--data", padded, *SMALL).stdout
    assert "was trained" not in found.stderr
    cropped = invoke("eval", tmp_path / "run", "--data", f"{plain}?fit=crop", *SMALL)
    assert cropped.stdout != found.stdout
    assert "was trained on images fit=pad, and meets images fit=crop" in cropped.stderr
    layers = ["--layers", "block1", "-p", 200, "-d", 2, "--repeats", 1, "--images", 8, "--threads", 1, "--json"]
    pair = [tmp_path / "run", "--with-init", *layers]
    assert json.loads(invoke("cca", *pair, "--data", plain).stdout)["data"]["fit"] == "pad"


def test_labels_are_matched_by_name(finished, invoke, fundus, tmp_path):
    expected = aucs_at(32, finished / "best.safetensors", fundus)
    turned = relabelled(fundus, tmp_path / "turned.csv", order=[3, 1, 4, 0, 2])
    done = invoke("eval", finished / "best.safetensors", "--data", turned, *SMALL, "--predictions", tmp_path / "p.csv")
    found = {name: label["auc"] for name, label in json.loads(done.stdout)["labels"].items()}
    assert found == pytest.approx(expected, rel=1e-12)
    assert list(found) == ["severe", "mild", "proliferative", "none", "moderate"]
    assert (tmp_path / "p.csv").read_text().startswith("path,patient,severe,mild,proliferative,none,moderate,")
    assert done.stderr == ""


def test_training_goes_on_with_each_output_for_its_own_label_whatever_order_a_table_has(
    finished, invoke, fundus, tmp_path
):
    init, runs = tmp_path / "init.safetensors", {}
    shutil.copy(finished / "best.safetensors", init)
    plain = relabelled(fundus, tmp_path / "plain.csv")
    turned = relabelled(fundus, tmp_path / "turned.csv", order=[3, 1, 4, 0, 2])
    for data in (plain, turned):
        runs[data] = tmp_path / f"run-{data.stem}"
        done = invoke("train", init, "--data", data, "-o", runs[data], *TRAINING, "--pos-weight", "mild=2")
        assert "was trained on" not in done.stderr
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in runs.values()]
    without_speed = [[{**entry, "images_per_second": 0} for entry in log] for log in logs]
    assert without_speed[0] == without_speed[1]
    assert logs[0][0]["macro_auc"] == json.loads((finished / "metrics.json").read_text())["best"]["macro_auc"]
    once, other = (load_file(run / "last.safetensors") for run in runs.values())
    assert all(torch.equal(once[name], value) for name, value in other.items())
    found = [found_by(invoke, run, "--data", data, *SMALL) for data in runs for run in runs.values()]
    assert all(each == pytest.approx(found[0], rel=1e-12) for each in found)


def test_training_says_of_other_labels_that_they_take_the_outputs(finished, invoke, fundus, tmp_path):
    mixed = relabelled(fundus, tmp_path / "mixed.csv", names=("mild", "none", "c", "d", "e"))
    given = ["--data", mixed, *TRAINING]
    done = invoke("train", finished / "best.safetensors", *given, "-o", tmp_path / "run")
    said = "was trained on none, mild, moderate, severe, proliferative; its outputs are for mild, none, c, d, e now"
    assert done.stderr.count(said) == 1
    invoke("new-head", finished / "best.safetensors", "--num-classes", 5, "-o", tmp_path / "new")
    assert "was trained on" not in invoke("train", tmp_path / "new", *given, "-o", tmp_path / "other").stderr


def test_training_says_of_other_images_what_they_were(run, invoke, shell, fundus, tmp_path):
    given = ["train", run / "best.safetensors", "--data", fundus, *TRAINING]
    said = "was trained on images of 16 pixels a side, and meets images of 32"
    assert invoke(*given, "-o", tmp_path / "a").stderr.count(said) == 1
    assert "was trained on" not in invoke(*given, "--image-size", 16, "-o", tmp_path / "b").stderr
    words = map(str, ["--data", fundus, *TRAINING])
    piped = shell(f"cat {shlex.quote(str(given[1]))} | wsurgery train - {shlex.join(words)} -o piped", tmp_path)
    assert piped.returncode == 0
    assert piped.stderr.decode().count(f"standard input {said}") == 1


def test_labels_that_the_network_does_not_know_are_left_out(finished, invoke, fundus, tmp_path):
    names = ("none", "mild", "moderate", "severe", "proliferative", "edema")
    more = relabelled(fundus, tmp_path / "more.csv", order=[0, 1, 2, 3, 4, 0], names=names)
    done = invoke("eval", finished / "best.safetensors", "--data", more, *SMALL)
    assert list(json.loads(done.stdout)["labels"]) == list(names[:5])
    assert "knows nothing of edema: left out" in done.stderr


def test_labels_of_other_names_are_matched_by_their_order_and_some_of_them_not(finished, invoke, fundus, tmp_path):
    expected = aucs_at(32, finished / "best.safetensors", fundus)
    other = relabelled(fundus, tmp_path / "other.csv", names=tuple("abcde"))
    done = invoke("eval", finished / "best.safetensors", "--data", other, *SMALL)
    assert [label["auc"] for label in json.loads(done.stdout)["labels"].values()] == pytest.approx([*expected.values()])
    assert "the labels a, b, c, d, e are taken for these, in this order" in done.stderr
    mixed = relabelled(fundus, tmp_path / "mixed.csv", names=("none", "mild", "c", "d", "e"))
    refused = invoke("eval", finished / "best.safetensors", "--data", mixed, *SMALL, check=False)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "was trained on the labels none, mild, moderate, severe, proliferative" in refused.stderr
    assert "the data have none, mild, c, d, e" in refused.stderr


def test_surgery_keeps_the_record_and_a_new_head_forgets_the_labels(finished, invoke, fundus, tmp_path):
    invoke("new-head", finished / "best.safetensors", "--num-classes", 5, "-o", tmp_path / "new")
    mixed = relabelled(fundus, tmp_path / "mixed.csv", names=("none", "mild", "c", "d", "e"))
    assert found_by(invoke, tmp_path / "new", "--data", mixed, *SMALL)
    trained = wsurgery.open(finished / "best.safetensors").meanvar(seed=1).load().trained_on
    assert trained.image_size == 32
    assert trained.labels == ("none", "mild", "moderate", "severe", "proliferative")


def test_the_statistics_are_those_of_the_record(finished, invoke, fundus, tmp_path):
    with safe_open(finished / "best.safetensors", "pt") as file:
        entry = json.loads(file.metadata()["wsurgery"])
    entry["log"][-1]["trained_on"] |= {"mean": [0.5], "std": [0.25]}
    save_file(load_file(finished / "best.safetensors"), tmp_path / "x", metadata={"wsurgery": json.dumps(entry)})
    assert image_statistics(load(tmp_path / "x")) == ((0.5,) * 3, (0.25,) * 3)
    invoke("train", tmp_path / "x", "--data", fundus, "-o", tmp_path / "run", *TRAINING)  # a second stage sees the same
    assert image_statistics(load(tmp_path / "run" / "best.safetensors")) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    "change", [{"image_size": 0}, {"labels": "ill"}, {"std": [0, 1, 1]}, {"loss": "hinge"}, {"mean": []}]
)
def test_a_record_that_cannot_be_is_refused(change, finished, invoke, fundus, tmp_path):
    with safe_open(finished / "best.safetensors", "pt") as file:
        entry = json.loads(file.metadata()["wsurgery"])
    entry["log"][-1]["trained_on"] |= change
    save_file(load_file(finished / "best.safetensors"), tmp_path / "x", metadata={"wsurgery": json.dumps(entry)})
    refused = invoke("eval", tmp_path / "x", "--data", fundus, *SMALL, check=False)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "metadata entry that is not wsurgery's" in refused.stderr


def test_a_runs_folder_stands_for_its_best_checkpoint(finished, invoke, wsurgery, fundus, fresh, tmp_path):
    given = ["--data", fundus, *SMALL]
    layers = ["--data", fundus, *LAYERS]
    for option, which in ((["--last"], "last"), (["--init"], "init"), ([], "best")):
        file = finished / f"{which}.safetensors"
        assert invoke("eval", finished, *given, *option).stdout == invoke("eval", file, *given).stdout
        pictures = []
        for i, source in enumerate((finished, file)):
            (tmp_path / which).mkdir(exist_ok=True)
            pictures.append(tmp_path / which / f"{i}.png")
            invoke("filters", source, "-o", pictures[-1], *(option if source == finished else []))
        assert pictures[0].read_bytes() == pictures[1].read_bytes()
        both = [
            invoke("cca", source, fresh, *layers, "--json", *more).stdout
            for source, more in ((finished, option), (file, []))
        ]
        assert both[0] == both[1]
        pair = [invoke("compare", finished, finished, *given, *option).stdout for _ in range(2)]
        assert json.loads(pair[0])["auc"]["macro"]["a"] == json.loads(invoke("eval", file, *given).stdout)["macro_auc"]
    best = (finished / "best.safetensors").read_bytes()
    edited = [wsurgery("scale", path, "--by", 2).stdout for path in (finished, finished / "best.safetensors")]
    assert edited[0] == edited[1] != best
    assert invoke("digest", finished).stdout == invoke("digest", finished / "best.safetensors").stdout


def test_a_result_beside_the_checkpoint_of_a_run_lies_in_its_folder(finished, invoke, fundus, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    invoke("eval", tmp_path / "run", "--data", fundus, "--threads", 1, "--bootstrap", 0, "--beside", "eval.json")
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["n"] == 42


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["eval", "{file}", "--last", "--data", FUNDUS], 2, "--last is for the folder of a run, and none is named"),
        (["eval", "{run}", "--last", "--init", "--data", FUNDUS], 2, "choose one"),
        (["compare", "{run}", "{run}", "--init"], 2, "--init is for --data"),
        (["eval", "{young}", "--data", FUNDUS], 1, "has no best.safetensors: repeat its train command to go on"),
        (["show", "{young}"], 1, "has no best.safetensors: repeat its train command to go on"),
    ],
)
def test_what_a_run_has_not_is_said_in_one_line(words, status, said, finished, invoke, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").unlink()
    places = {"run": finished, "file": finished / "last.safetensors", "young": tmp_path / "run"}
    refused = invoke(*(word.format(**places) for word in words), check=False)
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (status, "", 1)
    assert said in refused.stderr
