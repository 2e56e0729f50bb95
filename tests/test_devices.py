"""Devices that there are not, and memory that ends: one line each, from the errors that torch really raises."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TRAINING
from wsurgery.models.cbr import CBR

HUGE = 1 << 46  # float32 numbers: no machine has as much memory, so torch's own allocator refuses


def said(done, status: int) -> str:
    assert done.exit_code == status
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("device", ["cuda:99", "xla", "meta", "cpu:1", "no such thing", "cuda:-1", ""])
@pytest.mark.parametrize("command", [["eval", "A"], ["cca", "A", "A"]])
def test_a_device_that_is_not_there_is_one_line_of_those_that_are(command, device, invoke, fresh, fundus):
    words = [fresh if word == "A" else word for word in command]
    done = invoke(*words, "--data", fundus, "--device", device, check=False)
    assert f"--device {device}: this machine has cpu" in said(done, 2)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_is_refused_where_it_is_not(invoke, fresh, fundus, tmp_path):
    run = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, "--device", "mps"]
    assert "--device mps: this machine has cpu" in said(invoke(*run, check=False), 2)
    assert not (tmp_path / "run").exists()


def of_cuda(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of …")


def of_mps(*_):
    raise RuntimeError("MPS backend out of memory (MPS allocated: 18.11 GB, other allocations: 17.25 MB).")


def of_the_cpu(*_):
    return torch.empty(HUGE)


@pytest.mark.parametrize("memory_ends", [of_cuda, of_mps, of_the_cpu])
def test_memory_that_ends_is_one_line(memory_ends, invoke, fresh, fundus, tmp_path, monkeypatch):
    given = ["--data", fundus, "--device", "cpu", "--threads", 1]
    whole = CBR.forward

    def in_training(self, x):
        return memory_ends() if self.training and x.device.type == "cpu" else whole(self, x)

    monkeypatch.setattr(CBR, "forward", in_training)
    done = invoke(
        "train", fresh, *given, "-o", tmp_path / "run", "--batch-size", 8, "--steps", 2, "--quiet", check=False
    )
    remedy = "use a smaller --batch-size (now 8) or --image-size"
    assert said(done, 1) == f"wsurgery train: out of memory on cpu: {remedy}\n"
    monkeypatch.setattr(CBR, "forward", memory_ends)
    for command in (["eval", fresh], ["cca", fresh, fresh]):
        done = invoke(*command, *given, check=False)
        assert said(done, 1).startswith(f"wsurgery {command[0]}: out of memory on cpu: use a smaller --image-size")


def test_a_run_whose_memory_ended_goes_on_with_the_same_bytes(invoke, fresh, fundus, finished, tmp_path, monkeypatch):
    whole, steps = CBR.forward, []

    def until_the_sixth(self, x):
        if self.training and x.device.type == "cpu":
            steps.append(len(x))
        return torch.empty(HUGE) if len(steps) == 6 else whole(self, x)

    run = ["train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr(CBR, "forward", until_the_sixth)
        said(invoke(*run, check=False), 1)
    invoke(*run)
    for name in ("last", "best"):
        once, again = (folder / f"{name}.safetensors" for folder in (finished, tmp_path / "run"))
        assert once.read_bytes() == again.read_bytes()


def test_a_network_of_another_size_of_image_is_one_line_and_claims_no_folder(invoke, fundus, tmp_path):
    arguments = [f"--arg={word}" for word in ("img_size=64", "patch_size=8", "embed_dim=16", "depth=1", "num_heads=2")]
    invoke("init", "vit_tiny_patch16_224", "--num-classes", 5, *arguments, "-o", tmp_path / "vit")
    words = "the network does not take images of 32 × 32 with 3 channels: Input height (32) doesn't match model (64)"
    for command in (["train", "-o", tmp_path / "run"], ["eval"], ["cca", tmp_path / "vit"]):
        name, *more = command
        done = invoke(name, tmp_path / "vit", *more, "--data", fundus, "--threads", 1, check=False)
        assert words in said(done, 1)
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_trains_where_batch_norm_has_more_than_one_value(invoke, fresh, fundus, tmp_path):
    given = ["--data", fundus, "--steps", 2, "--threads", 1, "--device", "cpu", "--quiet"]
    for run, more in (("one", ["--batch-size", 1]), ("only", ["--subset", 1])):
        invoke("train", fresh, *given, *more, "-o", tmp_path / run)
        last = load_file(tmp_path / run / "last.safetensors")
        assert all(value.isfinite().all() for value in last.values())
    small = [*given, "--image-size", 8]  # at the fourth batch norm 1 × 1
    done = invoke("train", fresh, *small, "--batch-size", 1, "-o", tmp_path / "small", check=False)
    assert "1 image of 8 × 8 gives it one: use --batch-size 2 or more" in said(done, 1)
    assert not (tmp_path / "small").exists()
    invoke("freeze-spec", fresh, "--role", "batch_norm", "-o", tmp_path / "frozen")
    invoke("train", tmp_path / "frozen", *small, "--batch-size", 1, "-o", tmp_path / "small")
    invoke("train", fresh, *small, "--batch-size", 2, "-o", tmp_path / "two")


def test_a_network_without_pretrained_cfg_is_normalised_as_imagenet_in_train_and_eval(
    invoke, fresh, fundus, tmp_path, monkeypatch
):
    given = ["--data", fundus, "--threads", 1, "--device", "cpu"]
    initialise, found = CBR.__init__, []

    def bare(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        for name in ("num_classes", "in_chans"):
            delattr(self, name)

    scores = invoke("eval", fresh, *given, "--json").stdout  # the CBR family's own statistics are ImageNet's
    invoke("train", fresh, *given, "-o", tmp_path / "own", *TRAINING[:4])
    monkeypatch.setattr(CBR, "__init__", bare)
    monkeypatch.setattr(
        CBR, "pretrained_cfg", property(lambda self: None, lambda self, value: found.append(value)), raising=False
    )
    assert invoke("eval", fresh, *given, "--json").stdout == scores
    invoke("train", fresh, *given, "-o", tmp_path / "bare", *TRAINING[:4])
    assert found
    logs = [json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("own", "bare")]
    assert logs[0] == logs[1]
