"""A network that timm does not know, from a .th file to `cca`, at its smallest."""

import json
from pathlib import Path

import pytest
import torch

from wsurgery.models import create

NETWORK = Path(__file__).parents[2] / "recipes" / "cifar_resnet.py"
pytestmark = pytest.mark.slow

SMALL = ["ARMS=transfuse random", "IMAGES=64", "STEPS=1"]


def test_the_recipe_runs_through(make, tmp_path):
    network = create({"name": "resnet20", "num_classes": 10}, model=f"{NETWORK}:resnet20")
    state = {f"module.{name}": value for name, value in network.state_dict().items() if not name.endswith("tracked")}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "weights.th")  # as its author saved it
    out, given = tmp_path / "out", [f"WEIGHTS={tmp_path / 'weights.th'}", *SMALL]
    make("own-network", "-j2", f"OUT={out}", *given)
    shown = [line.split()[0] for line in (out / "blocks.txt").read_text().splitlines()[3:]]
    assert shown == ["conv1", "block1", "block2", "block3", "head"]
    for arm in ("transfuse", "random"):
        assert json.loads((out / "runs" / arm / "metrics.json").read_text())["steps"] == 1
        assert f"runs/{arm}/best.safetensors" in (out / "eval.txt").read_text()
    assert "block3" in (out / "cca.txt").read_text()
    make("own-network", "-q", f"OUT={out}", *given)  # fails if anything would be made again


def test_without_weights_it_trains_its_own(make, tmp_path):
    lines = make("own-network", "-n", f"OUT={tmp_path / 'out'}").replace("\\\n", " ").splitlines()
    assert any("init --model ../cifar_resnet.py:resnet20 --num-classes 16" in line for line in lines)
    assert any(line.startswith("wsurgery train") and "textures" in line for line in lines)
    assert all(stage.split()[0] in ("wsurgery", "mkdir", "ln", "tee") for line in lines for stage in line.split(" | "))
