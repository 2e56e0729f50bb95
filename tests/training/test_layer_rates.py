"""Learning rates by block and by depth."""

import json

import pytest
import torch
from safetensors.torch import load_file
from timm.optim import param_groups_layer_decay

from tests.conftest import TRAINING
from tests.training.test_resume import content
from wsurgery.data.dataset import load_dataset
from wsurgery.errors import UsageError
from wsurgery.models import create
from wsurgery.training.interruption import Interrupted
from wsurgery.training.layer_rates import lr_scales
from wsurgery.training.loop import train
from wsurgery.training.settings import Settings


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"]
)
def test_the_decay_by_depth_is_timms(name):
    with torch.device("meta"):
        model = create({"name": name, "num_classes": 5, "args": {"depth": 3}})
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    expected = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.7)
        for parameter in group["params"]
    }
    found = lr_scales(model, scale=(), decay=0.7)
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    assert len(set(expected.values())) == 5


def network():
    return create({"name": "cbr_tiny", "num_classes": 5, "args": {"width": 0.05}})


def test_blocks_and_globs_have_their_factors_and_the_last_one_counts():
    found = lr_scales(network(), scale=[("block?.*", 0.5), ("block2", 0.1), ("*.bias", 2)], decay=0.5)
    assert found["fc.weight"] == 1
    assert found["fc.bias"] == 2
    assert found["block4.conv.weight"] == pytest.approx(0.5 * 0.5)
    assert found["block2.conv.weight"] == pytest.approx(0.1 * 0.125)
    assert found["block2.bn.bias"] == pytest.approx(2 * 0.125)


@pytest.mark.parametrize("word", ["block9", "fc.x*"])
def test_a_block_that_is_not_there_is_named_with_those_that_are(word):
    with pytest.raises(UsageError, match=r"--lr-scale.*block1, block2, block3, block4, head"):
        lr_scales(network(), scale=[(word, 0.5)], decay=None)


def test_a_users_own_blocks_are_those():
    blocks = {"lower": ["block[12].*"], "upper": ["block[34].*", "fc.*"]}
    found = lr_scales(network(), scale=[("upper", 3)], decay=0.5, blocks=blocks)
    assert {found[f"{name}.weight"] for name in ("block1.conv", "block2.bn")} == {0.5}
    assert {found[f"{name}.weight"] for name in ("block3.conv", "fc")} == {3}


def test_one_step_of_sgd_goes_as_far_as_the_factor_says(invoke, fresh, fundus, tmp_path):
    given = ["--data", fundus, "--steps", 1, "--batch-size", 8, "--optimizer", "momentum", "--lr", 0.1, "--threads", 1]
    invoke("train", fresh, *given, "-o", tmp_path / "plain")
    invoke("train", fresh, *given, "--lr-scale", "block1=0.25", "--lr-decay", 0.5, "-o", tmp_path / "scaled")
    before = load_file(fresh)
    plain, scaled = (load_file(tmp_path / run / "last.safetensors") for run in ("plain", "scaled"))
    factors = {"block1": 0.25 / 16, "block2": 1 / 8, "block3": 1 / 4, "block4": 1 / 2, "fc": 1}
    for name in ("block1.conv.weight", "block2.conv.weight", "block3.bn.bias", "block4.conv.weight", "fc.weight"):
        moved, whole = (after[name].double() - before[name].double() for after in (scaled, plain))
        assert whole.abs().max() > 1e-4
        torch.testing.assert_close(moved, whole * factors[name.split(".")[0]], atol=1e-7, rtol=1e-3)
    assert json.loads((tmp_path / "scaled" / "log.jsonl").read_text().splitlines()[-1])["lr"] == 0.1


def test_a_block_of_factor_0_stays_bit_for_bit(invoke, fresh, fundus, tmp_path):
    more = ["--lr-scale", "block2=0", "--weight-decay", 0.1, "--optimizer", "adamw"]
    invoke("train", fresh, "--data", fundus, "-o", tmp_path / "run", *TRAINING, *more)
    before, after = load_file(fresh), load_file(tmp_path / "run" / "last.safetensors")
    for name, value in after.items():
        assert value.equal(before[name]) == name.startswith("block2."), name
    everything = ["--lr-scale", "*=0", "-o", tmp_path / "none"]
    refused = invoke("train", fresh, "--data", fundus, *TRAINING, *everything, check=False)
    assert refused.exit_code == 1
    assert "--lr-scale and the freeze specification leave nothing to train" in refused.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"lr_decay": 0.8, "lr_scale": (("block1", 0.1), ("fc.*", 2.0)), "optimizer": "adamw", "warmup_epochs": 1},
        {"loss": "softmax", "ema": 0.9},
        {"pos_weight": "auto", "optimizer": "momentum"},
    ],
    ids=["rates", "softmax", "pos_weight"],
)
def test_a_run_that_is_stopped_in_the_middle_ends_with_the_same_bytes(more, fresh, fundus, tmp_path):
    settings = Settings(**{"steps": 9, "epochs": None, "batch_size": 8, "lr": 0.01, "eval_every": 4, **more})
    data = [load_dataset(fundus, split=split) for split in ("train", "valid")]

    def run(folder, signalled):
        device = torch.device("cpu")
        train(fresh, folder, *data, settings, data=fundus, arguments=[], device=device, signalled=signalled)

    run(tmp_path / "unbroken", lambda: 0)
    for _ in range(3):
        with pytest.raises(Interrupted):
            run(tmp_path / "stopped", iter([0, 0, 15]).__next__)
    run(tmp_path / "stopped", lambda: 0)
    assert content(tmp_path / "stopped") == content(tmp_path / "unbroken")
