import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import TRAINING
from wsurgery.data.manifest import write_manifest
from wsurgery.data.sources import open_data


def settings(run):
    return json.loads((run / "config.json").read_text())["settings"]


def test_a_preset_gives_what_no_flag_overrides(invoke, fresh, fundus, tmp_path):
    given = ["--preset", "retina", "--image-size", 16, "--steps", 1, "--lr", 0.02, "--threads", 1, "--seed", 3]
    invoke("train", fresh, "--data", fundus, "-o", tmp_path, *given)
    found = settings(tmp_path)
    assert (found["image_size"], found["steps"], found["epochs"], found["lr"], found["seed"]) == (16, 1, None, 0.02, 3)
    assert (found["batch_size"], found["optimizer"]) == (8, "adam")
    assert found["augmentation"]["flip_horizontal"]
    assert found["augmentation"]["flip_vertical"]


def test_chexperts_preset_trains_by_epochs_with_its_warm_up(invoke, fresh, fundus, tmp_path):
    given = ["--preset", "chexpert", "--image-size", 16, "--epochs", 2, "--eval-every", 1, "--threads", 1]
    invoke("train", fresh, "--data", fundus, "-o", tmp_path, *given)
    found = settings(tmp_path)
    assert (found["epochs"], found["steps"], found["batch_size"], found["optimizer"]) == (2, None, 32, "momentum")
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["lr"] for entry in entries[1:]] == [0, 0.0125 / 5]  # of 60 images, one step of 32 an epoch


def test_progress_and_result_go_to_standard_error(invoke, fresh, fundus, tmp_path):
    loud = invoke("train", fresh, "--data", fundus, "-o", tmp_path / "loud", *TRAINING)
    assert loud.stdout == ""
    labels, images, *said = [line.split("  ")[0] for line in loud.stderr.splitlines()[:6]]
    assert labels == "labels: none, mild, moderate, severe, proliferative"
    assert images.startswith(
        "images: 60 to train on, 32 × 32 pixels, fit=crop: the centred square of each image; window=auto: "
    )
    assert said == ["step 0", "step 4", "step 8", "step 12"]
    assert "12 steps, best macro AUC" in loud.stderr
    quiet = invoke("train", fresh, "--data", fundus, "-o", tmp_path / "quiet", *TRAINING, "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")


def test_a_plain_state_dict_trains_with_arch(invoke, fundus, tmp_path):
    import timm

    save_file(timm.create_model("resnet10t", num_classes=5, channels=(64, 128, 256, 512)).state_dict(), tmp_path / "x")
    given = ["--data", fundus, "-o", tmp_path / "run", "--steps", 1, "--batch-size", 4, "--threads", 1]
    refused = invoke("train", tmp_path / "x", *given, check=False)
    assert refused.exit_code == 2
    assert "--arch" in refused.stderr
    invoke("train", tmp_path / "x", *given, "--arch", "resnet10t")
    assert load_file(tmp_path / "run" / "last.safetensors").keys() == load_file(tmp_path / "x").keys()
    shown = json.loads(invoke("show", tmp_path / "run" / "last.safetensors", "--json").stdout)
    assert shown["architecture"]["name"] == "resnet10t"


def test_a_run_starts_from_a_pipe_or_from_shards_as_from_the_file(invoke, shell, fresh, fundus, finished, tmp_path):
    words = " ".join(map(str, TRAINING))
    line = f"cat {fresh} | wsurgery train - --data '{fundus}' -o piped {words}"
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "piped" / "init.safetensors").read_bytes() == fresh.read_bytes()
    invoke("scale", fresh, "--by", 1, "-o", f"{tmp_path}/shards/", "--shard-size", "20kB")
    invoke("train", tmp_path / "shards", "--data", fundus, "-o", tmp_path / "sharded", *TRAINING)
    expected = load_file(finished / "last.safetensors")
    for run in ("piped", "sharded"):
        last = load_file(tmp_path / run / "last.safetensors")
        assert all(last[name].equal(value) for name, value in expected.items())


def test_a_network_for_grey_images_trains_on_the_grey_of_colours(invoke, fundus, tmp_path):
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 5, "--in-chans", 1, "-o", tmp_path / "grey")
    invoke("train", tmp_path / "grey", "--data", fundus, "-o", tmp_path / "run", *TRAINING)
    before, after = (load_file(path) for path in (tmp_path / "grey", tmp_path / "run" / "last.safetensors"))
    assert before["block1.conv.weight"].shape[1] == 1
    assert not before["block1.conv.weight"].equal(after["block1.conv.weight"])


def test_a_network_of_other_channels_is_told_what_helps_and_that_helps(invoke, fundus, tmp_path):
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 5, "--in-chans", 4, "-o", tmp_path / "x")
    given = ["--data", fundus, *TRAINING]
    refused = invoke("train", tmp_path / "x", *given, "-o", tmp_path / "run", check=False)
    assert refused.exit_code == 1
    assert refused.stderr.rstrip().endswith("; wsurgery adapt --in-chans 3 has it take them")
    invoke("adapt", tmp_path / "x", "--in-chans", 3, "-o", tmp_path / "y")
    invoke("train", tmp_path / "y", *given, "-o", tmp_path / "run")


def test_a_head_that_does_not_fit_names_both_numbers(invoke, fundus, tmp_path):
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 7, "-o", tmp_path / "x")
    refused = invoke("train", tmp_path / "x", "--data", fundus, "-o", tmp_path / "run", *TRAINING, check=False)
    assert refused.exit_code == 1
    assert "7 outputs" in refused.stderr
    assert "5 labels" in refused.stderr
    assert "--num-classes 5" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_patient_on_both_sides_is_refused(invoke, fresh, fundus, tmp_path):
    given = ["--data", fundus, "--eval-split", "train", "-o", tmp_path / "run", *TRAINING]
    refused = invoke("train", fresh, *given, check=False)
    assert refused.exit_code == 1
    assert "in both training and validation: split by patient" in refused.stderr


def test_validation_images_are_of_the_size_of_those_to_train_on(invoke, fresh, fundus, tmp_path):
    """Drawn twice: small to train on, and large. The log is held against that of a run which is told the size."""
    small, large = (open_data(f"synthetic:fundus?n=120&size={size}") for size in (16, 32))
    assert (small.splits, small.patients) == (large.splits, large.patients)
    of_train = np.array(small.splits) == "train"
    paths = tuple(
        str((drawn.root / path).absolute())
        for drawn, path in ((small if yes else large, path) for path, yes in zip(small.paths, of_train, strict=True))
    )
    labels = np.where(of_train[:, None], small.labels, large.labels)
    write_manifest(replace(small, paths=paths, labels=labels), tmp_path / "m.csv")
    logs = []
    for name, more in (("a", []), ("b", ["--image-size", 16])):
        invoke("train", fresh, "--data", tmp_path / "m.csv", *TRAINING, "-o", tmp_path / name, *more)
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        logs.append([{**json.loads(line), "images_per_second": 0} for line in lines])
        shown = json.loads(invoke("log", tmp_path / name / "best.safetensors", "--json").stdout)
        assert shown[-1]["trained_on"]["image_size"] == 16
    assert logs[0] == logs[1]


@pytest.fixture
def one_sided(fundus, tmp_path):
    """Data of which every label has one value in split `valid`."""
    manifest = open_data(fundus)
    labels = manifest.labels.copy()
    labels[np.array(manifest.splits) == "valid"] = [0, 0, 1, np.nan, 0]
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    write_manifest(replace(manifest, labels=labels, paths=paths), tmp_path / "m.csv")
    return tmp_path / "m.csv"


def test_a_split_without_an_auc_is_said_before_the_run_and_by_who_reads_it(one_sided, invoke, fresh, tmp_path):
    run = tmp_path / "run"
    given = ["train", fresh, "--data", one_sided, *TRAINING]
    done = invoke(*given, "-o", run)
    said = "no label has both classes in split valid, so there is no AUC, and best.safetensors stays that of step 0"
    assert done.stderr.count(said) == 1
    assert done.stderr.index(said) < done.stderr.index("step 4")
    with safe_open(run / "best.safetensors", "pt") as best, safe_open(run / "init.safetensors", "pt") as init:
        assert all(best.get_tensor(name).equal(init.get_tensor(name)) for name in init.keys())  # noqa: SIM118
    refused = invoke("curves", run, "-o", tmp_path / "curves.png", check=False)
    assert refused.exit_code == 1
    assert "log.jsonl holds evaluations without an AUC" in refused.stderr
    assert said[:40] not in invoke(*given, "--eval-split", "test", "-o", tmp_path / "other").stderr


@pytest.mark.parametrize("rule", [["--patience", 3], ["--until-auc", 0.9]])
def test_a_rule_that_needs_an_auc_is_refused_where_there_is_none(rule, one_sided, invoke, fresh, tmp_path):
    refused = invoke("train", fresh, "--data", one_sided, *TRAINING, *rule, "-o", tmp_path / "run", check=False)
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "so there is no AUC for --patience or --until-auc: choose another --eval-split" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_ends_in_one_line(invoke, fresh, fundus, tmp_path):
    given = ["--lr", 1e30, "--optimizer", "momentum", "--quiet"]
    failed = invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, *given, check=False)
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--epochs", 2], "choose one"),
        (["--optimizer", "adamm"], "optimizer adamm"),
        *(
            (["--device", name], f"--device {name}: this machine has cpu")
            for name in ("tpu9000", "xla", "meta", "cuda:99")
        ),
        (["--subset", 10_000], "there are 60"),
        (["--eval-split", "dev"], "there are test, train, valid"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--pos-weight", "ill=3"], "--pos-weight ill: no such label; the labels are none, mild, moderate, severe"),
        (["--pos-weight", "ill"], "--pos-weight ill: write it as ill=3, or auto"),
        (["--pos-weight", "none=0"], "--pos-weight none=0: a weight is above 0"),
        (["--pos-weight", "auto", "--loss", "softmax"], "--pos-weight is for --loss bce"),
        (["--lr-scale", "block9=0.1"], "block 'block9': this network has block1, block2, block3, block4, head"),
        (["--lr-scale", "block1"], "--lr-scale block1: write it as conv1=0.1,block1=0.1"),
    ],
)
def test_a_mistake_is_one_line_and_claims_no_folder(more, words, invoke, fresh, fundus, tmp_path):
    refused = invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, *more, check=False)
    assert refused.exit_code == 2
    lines = [line for line in refused.stderr.splitlines() if not line.startswith("labels: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "run").exists()


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_every_value_of_a_preset_has_a_flag(invoke, fresh, fundus, tmp_path):
    given = [
        "--preset", "chexpert", "--epochs", 2, "--global-batch", 20, "--lr", 0.1, "--optimizer", "adamw",
        "--weight-decay", 0.1, "--warmup-epochs", 0, "--decay-epochs", "1", "--image-size", 16, "--crop", 0, "--hue", 0,
        "--contrast", 0.5, "--flip", "vertical", "--grad-clip", 2, "--ema", 0.5, "--patience", 7, "--eval-every", 1,
        "--subset", 50, "--eval-subset", 9, "--precision", "fp32", "--threads", 1, "--loss", "bce",
        "--pos-weight", "none=3,mild=.5", "--lr-scale", "block1=0.1,*.bias=2e-1", "--lr-decay", 0.5,
    ]  # fmt: skip
    invoke("train", fresh, "--data", fundus, "-o", tmp_path, *given)
    assert settings(tmp_path) == {
        "steps": None, "epochs": 2, "batch_size": 20, "lr": 0.1, "optimizer": "adamw", "weight_decay": 0.1,
        "warmup_epochs": 0, "decay_epochs": [1], "image_size": 16, "subset": 50, "eval_subset": 9, "eval_every": 1,
        "until_auc": None, "seed": 0, "grad_clip": 2, "ema": 0.5, "patience": 7, "precision": "fp32", "compile": False,
        "sync_bn": False, "deterministic": False, "no_cuda_graph": False, "keep_zeros": False,
        "augmentation": {
            "crop": 0, "flip_horizontal": False, "flip_vertical": True, "hue": 0, "contrast": 0.5
        },
        "loss": "bce", "pos_weight": [["none", 3], ["mild", 0.5]], "lr_scale": [["block1", 0.1], ["*.bias", 0.2]],
        "lr_decay": 0.5,
    }  # fmt: skip
    assert [entry["lr"] for entry in read_log(tmp_path)[1:]] == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_the_record_repeats_the_run_in_one_process(invoke, fresh, fundus, tmp_path):
    flags = ["--steps", 2, "--global-batch", 8, "--weight-decay", 0.0, "--decay-epochs", "none", "--flip", "both"]
    invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *flags, "--device", "cpu", "--threads", 1)
    shown = invoke("log", tmp_path / "run" / "last.safetensors").stdout
    assert "--steps 2 --batch-size 8 --weight-decay 0.0 --decay-epochs none --flip both --seed 0" in shown


def test_the_gradient_is_scaled_down_to_the_norm(invoke, fresh, fundus, tmp_path):
    given = ["--steps", 1, "--batch-size", 8, "--optimizer", "momentum", "--lr", 0.5, "--threads", 1, "--device", "cpu"]
    invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *given, "--grad-clip", 0.01)
    before, after = load_file(fresh), load_file(tmp_path / "run" / "last.safetensors")
    trained = [name for name in before if name.endswith(("weight", "bias"))]
    norm = sum(float((after[name] - before[name]).square().sum()) for name in trained) ** 0.5
    assert norm == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_the_average_of_the_weights_is_what_is_saved_and_evaluated(invoke, fresh, fundus, tmp_path):
    given = ["--eval-every", 1, "--batch-size", 8, "--lr", 0.01, "--threads", 1, "--device", "cpu"]
    steps = []
    for n in (1, 2, 3):
        invoke("train", fresh, "--data", fundus, "-o", tmp_path / str(n), *given, "--steps", n)
        steps.append(load_file(tmp_path / str(n) / "last.safetensors"))
    run = tmp_path / "averaged"
    invoke("train", fresh, "--data", fundus, "-o", run, *given, "--steps", 3, "--ema", 0.75)
    averaged = load_file(run / "last.safetensors")
    for name, value in averaged.items():
        if value.is_floating_point():
            by_hand = 0.75 * (0.75 * steps[0][name] + 0.25 * steps[1][name]) + 0.25 * steps[2][name]
            torch.testing.assert_close(value, by_hand, rtol=1e-5, atol=1e-6)
    evaluated = ["--data", fundus, "--split", "valid", "--json", "--threads", 1, "--device", "cpu"]
    result = json.loads(invoke("eval", run / "last.safetensors", *evaluated).stdout)
    assert result["macro_auc"] == read_log(run)[-1]["macro_auc"]
    assert result["referable"]["auc"] == read_log(run)[-1]["referable_auc"]


def test_patience_ends_a_run_that_no_longer_gets_better(invoke, fresh, fundus, tmp_path):
    words = list(TRAINING)
    words[words.index("--lr") + 1] = 0
    words[words.index("--steps") + 1] = 40
    frozen = ["--weight-decay", 0, "--patience", 2]
    invoke("freeze-spec", fresh, "--upto", "block4", "-o", tmp_path / "frozen")  # no running statistics move
    invoke("train", tmp_path / "frozen", "--data", fundus, "-o", tmp_path / "run", *words, *frozen)
    assert [entry["step"] for entry in read_log(tmp_path / "run") if "auc" in entry] == [0, 4, 8]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 8


def test_data_without_patients_is_said_to_be_unchecked(invoke, fresh, fundus, tmp_path):
    from wsurgery.data.manifest import write_manifest
    from wsurgery.data.sources import open_data

    manifest = open_data(fundus)
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    warning = "data has no patients: the split cannot be checked by patient"
    # The manifest that data make writes of images in another folder has their paths' ends for patients.
    for name, patients, count in (
        ("none", paths, 1), ("ends", manifest.paths, 1), ("patients", manifest.patients, 0),
    ):  # fmt: skip
        file = tmp_path / f"{name}.csv"
        write_manifest(replace(manifest, paths=paths, patients=patients), file)
        done = invoke("train", fresh, "--data", file, "-o", tmp_path / name, *TRAINING[:2], *TRAINING[4:])
        assert done.stderr.splitlines().count(warning) == count


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CPU refuses these")
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--global-batch", 8], "--batch-size and --global-batch both give the batch: choose one"),
        (["--decay-epochs", "30;60"], "--decay-epochs 30;60: write it as 30,60,90, or none"),
        (["--sync-bn"], "--sync-bn: torch has it for CUDA devices only"),
    ],
)
def test_a_flag_that_cannot_be_meant_is_one_line(more, words, invoke, fresh, fundus, tmp_path):
    refused = invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, *more, check=False)
    assert refused.exit_code == 2
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_bf16_is_taken_where_the_processor_has_it_and_refused_elsewhere(invoke, fresh, fundus, tmp_path):
    given = ["--data", fundus, "-o", tmp_path / "run", *TRAINING, "--precision", "bf16"]
    done = invoke("train", fresh, *given, check=False)
    if "bf16" in Path("/proc/cpuinfo").read_text():
        assert settings(tmp_path / "run")["precision"] == "bf16"
        assert load_file(tmp_path / "run" / "last.safetensors")["fc.weight"].dtype == torch.float32
    else:
        assert done.exit_code == 2
        assert "computes in bfloat16 only by emulation; use fp32" in done.stderr


def test_a_run_that_began_before_there_was_a_setting_goes_on(invoke, fresh, fundus, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["settings"]["patience"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == (finished / "last.safetensors").read_bytes()
