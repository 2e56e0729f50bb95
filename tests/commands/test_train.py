import json

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import TRAINING


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
    assert [line.split("  ")[0] for line in loud.stderr.splitlines()[:4]] == ["step 0", "step 4", "step 8", "step 12"]
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
        (["--device", "tpu9000"], "say auto, cpu, cuda or cuda:N"),
        (["--subset", 10_000], "there are 60"),
        (["--eval-split", "dev"], "there are test, train, valid"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_a_mistake_is_one_line_and_claims_no_folder(more, words, invoke, fresh, fundus, tmp_path):
    refused = invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, *more, check=False)
    assert refused.exit_code == 2
    assert words in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
