"""A network that timm does not know, from `init --model` to `cca`, at its smallest."""

import json

SMALL = ["ARMS=transfuse random", "IMAGES=120", "STEPS=1", "PRETRAIN=1"]


def test_the_recipe_runs_through(make, tmp_path):
    out = tmp_path / "out"
    make("own-network", f"OUT={out}", *SMALL)
    assert [line.split()[0] for line in (out / "blocks.txt").read_text().splitlines()[3:]] == [
        *("conv1", "block1", "block2", "block3", "head")
    ]
    for arm in ("transfuse", "random"):
        assert json.loads((out / "runs" / arm / "metrics.json").read_text())["steps"] == 1
        assert f"runs/{arm}/last.safetensors" in (out / "eval.txt").read_text()
    assert "block3" in (out / "cca.txt").read_text()
    make("own-network", "-q", f"OUT={out}", *SMALL)  # fails if anything would be made again


def test_real_weights_are_converted_and_not_trained_here(make, tmp_path):
    weights = tmp_path / "resnet20-cifar10.th"
    weights.touch()
    lines = make("own-network", "-n", f"OUT={tmp_path / 'out'}", f"WEIGHTS={weights}")
    assert f"wsurgery convert {weights} -o" in lines
    assert "textures" not in lines
