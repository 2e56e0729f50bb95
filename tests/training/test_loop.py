"""What a run leaves behind."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from tests.conftest import TRAINING
from wsurgery.data.dataset import load_dataset
from wsurgery.data.sources import make_data, open_data
from wsurgery.experiments.runs import read_run
from wsurgery.experiments.summary import Arm
from wsurgery.experiments.what_ran import what_ran
from wsurgery.models import load
from wsurgery.statistics.auc import auc_per_label, macro
from wsurgery.training.predict import predict

CPU = torch.device("cpu")


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def history(checkpoint):
    with safe_open(checkpoint, "pt") as file:
        return json.loads(file.metadata()["wsurgery"])


def train_again(invoke, run, fresh, fundus, *more, check=True):
    return invoke("train", fresh, "--data", fundus, "-o", run, *TRAINING, *more, check=check)


def test_the_folder_holds_what_the_contract_says(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.json",
        "init.safetensors",
        "log.jsonl",
        "last.safetensors",
        "best.safetensors",
        "metrics.json",
        "resume.pt",
    }


def test_the_log_has_the_contracts_fields(finished, fundus):
    entries = read_log(finished)
    assert [entry["step"] for entry in entries] == [0, 4, 8, 10, 12]
    labels = load_dataset(fundus, split="valid").label_names
    for entry in entries:
        assert entry["epoch"] == pytest.approx(entry["step"] / (60 // 8))
        if entry["step"]:
            assert entry["lr"] == 0.01
            assert 0 < entry["loss"] < 5
            assert entry["images_per_second"] > 0
        assert ("macro_auc" in entry) == ("auc" in entry) == (entry["step"] != 10)
        if "auc" in entry:
            known = [auc for auc in entry["auc"].values() if auc is not None]
            assert tuple(entry["auc"]) == labels
            assert entry["macro_auc"] == pytest.approx(sum(known) / len(known))


def test_the_init_is_kept_byte_for_byte(finished, fresh):
    assert (finished / "init.safetensors").read_bytes() == fresh.read_bytes()


@pytest.mark.parametrize("which", ["best", "last"])
def test_checkpoints_have_the_auc_that_the_log_says(which, finished, fundus):
    metrics = json.loads((finished / "metrics.json").read_text())
    evaluated = {entry["step"]: entry["macro_auc"] for entry in read_log(finished) if "macro_auc" in entry}
    expected = max(evaluated.values()) if which == "best" else evaluated[12]
    data = load_dataset(fundus, split="valid")
    logits = predict(load(finished / f"{which}.safetensors"), data, device=CPU)
    assert macro(auc_per_label(data.labels, logits, data.label_names)) == pytest.approx(expected, rel=1e-12)
    assert metrics[which]["macro_auc"] == evaluated[metrics[which]["step"]] == expected


def test_steps_to_auc_is_the_first_evaluated_step_at_or_above(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    evaluated = [(entry["step"], entry["macro_auc"]) for entry in read_log(finished) if "macro_auc" in entry]
    assert len(metrics["steps_to_auc"]) == 50
    for threshold, first in metrics["steps_to_auc"].items():
        reached = [step for step, auc in evaluated if auc >= float(threshold)]
        assert first == (min(reached) if reached else None)
    assert metrics["steps"] == 12


def test_training_learns(finished):
    losses = [entry["loss"] for entry in read_log(finished)[1:]]
    assert losses[-1] < losses[0]


def test_the_history_goes_from_init_to_train(finished, fresh, fundus):
    for which in ("best", "last"):
        entry = history(finished / f"{which}.safetensors")
        assert [record["command"] for record in entry["log"]] == ["init", "train"]
        assert entry["log"][:1] == history(fresh)["log"]
        assert entry["architecture"] == history(fresh)["architecture"]
        record = entry["log"][-1]
        assert record["seed"] == 0
        assert ["--data", fundus] == record["arguments"][:2]
        assert set(map(str, TRAINING[:8])) <= set(record["arguments"])


def test_the_seed_decides_every_byte_wherever_files_lie(finished, invoke, fresh, fundus, tmp_path):
    weights = {}
    for place, seed in (("here", 0), ("there/deeper", 0), ("other", 1)):
        folder = tmp_path / place
        make_data(fundus, folder / "data", threads=1)
        shutil.copy(fresh, folder / "renamed.safetensors")
        train_again(
            invoke, folder / "run", folder / "renamed.safetensors", folder / "data" / "manifest.csv", "--seed", seed
        )
        weights[place] = [(folder / "run" / f"{which}.safetensors").read_bytes() for which in ("last", "best")]
    assert weights["here"] == weights["there/deeper"]
    assert weights["here"][0] != weights["other"][0]
    assert str(tmp_path).encode() not in weights["here"][0]
    train_again(invoke, tmp_path / "twice", fresh, fundus)
    for which in ("last", "best"):
        once, again = (folder / f"{which}.safetensors" for folder in (finished, tmp_path / "twice"))
        assert once.read_bytes() == again.read_bytes()


def test_training_draws_from_no_global_generator(invoke, fresh, fundus, tmp_path):
    before = torch.get_rng_state()
    train_again(invoke, tmp_path / "run", fresh, fundus)
    assert torch.get_rng_state().equal(before)


def test_until_auc_stops_at_the_first_evaluation_that_reaches_it(finished, invoke, fresh, fundus, tmp_path):
    whole = read_log(finished)
    evaluated = [entry["macro_auc"] for entry in whole if "auc" in entry]
    first = next(i for i, auc in enumerate(evaluated) if i and auc > max(evaluated[:i]))
    target = evaluated[first]
    train_again(invoke, tmp_path / "run", fresh, fundus, "--until-auc", target)
    stopped = read_log(tmp_path / "run")
    assert [entry["macro_auc"] for entry in stopped if "auc" in entry] == evaluated[: first + 1]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == 4 * first
    run = read_run(tmp_path / "run")
    assert (run.stopped, run.steps_to(target)) == (target, 4 * first)
    assert all(at is not None for auc, at in metrics["steps_to_auc"].items() if float(auc) <= target)
    assert read_run(finished).stopped is None


def test_epochs_are_passes_over_the_subset(invoke, fresh, fundus, tmp_path):
    given = ["--data", fundus, "--subset", 20, "--epochs", 3, "--batch-size", 4, "--threads", 1]
    invoke("train", fresh, *given, "-o", tmp_path / "run")
    entries = read_log(tmp_path / "run")
    assert [entry["step"] for entry in entries if "auc" in entry] == [0, 5, 10, 15]  # once an epoch
    assert entries[-1]["epoch"] == 3


@pytest.mark.parametrize("most", [8, 10_000])
def test_evaluation_on_a_part_is_on_its_first_patients_alone(most, invoke, fresh, fundus, tmp_path):
    invoke("data", "make", fundus, "-o", tmp_path / "data")
    every = tmp_path / "data" / "manifest.csv"
    whole = open_data(str(every)).where("valid")
    part = set(whole.subset(min(most, len(whole))).paths)
    assert (len(part) < len(whole)) == (most == 8)
    head, *rows = every.read_text().splitlines()
    kept = [row for row in rows if ",valid," not in row or row.partition(",")[0] in part]
    assert sum(",valid," in row for row in kept) == len(part)
    (every.parent / "part.csv").write_text("\n".join([head, *kept]) + "\n")
    given = ["--steps", 8, "--eval-every", 4, "--batch-size", 8, "--threads", 1]
    invoke("train", fresh, "--data", every, *given, "--eval-subset", most, "-o", tmp_path / "a")
    invoke("train", fresh, "--data", every.parent / "part.csv", *given, "-o", tmp_path / "b")
    logs = [[entry.get("auc") for entry in read_log(tmp_path / name)] for name in "ab"]
    assert logs[0] == logs[1]
    assert any(logs[0])
    assert json.loads((tmp_path / "a" / "metrics.json").read_text())["environment"]["validation"]["n"] == len(part)


def test_a_batch_larger_than_the_data_is_all_of_it(invoke, fresh, fundus, tmp_path):
    given = ["--data", fundus, "--subset", 6, "--epochs", 2, "--batch-size", 32, "--threads", 1]
    done = invoke("train", fresh, *given, "-o", tmp_path / "run")
    assert read_log(tmp_path / "run")[-1]["step"] == 2
    n = len(open_data(fundus).where("train").subset(6))
    assert done.stderr.count(f"a batch of 32 is more than the {n} images to train on: each step takes all\n") == 1
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["environment"]["batch_size"] == n
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["batch_size"] == 32
    )  # goes on as asked
    (training,) = what_ran({"x": Arm("x", [read_run(tmp_path / "run")], [None], [None])}).facts["training"]
    assert f"batch size {n}, epochs 2" in training


def test_predict_puts_each_modules_mode_back(finished, fundus):
    model = load(finished / "last.safetensors").train()
    model.block1.bn.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    whole = predict(model, load_dataset(fundus, split="valid"), device=CPU)
    assert {name: module.training for name, module in model.named_modules()} == modes
    in_parts = predict(model, load_dataset(fundus, split="valid"), device=CPU, batch_size=5)
    assert in_parts == pytest.approx(whole, abs=1e-5)
