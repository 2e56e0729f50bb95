"""How far blocks are from where training began, as the log says it."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.conftest import TRAINING
from tests.training.test_loop import read_log
from wsurgery.training.distance import DistanceFromInit

BLOCKS = ("block1", "block2", "block3", "block4", "head")


def parameters(path):
    kept = {
        name: x.astype(float) for name, x in load_file(path).items() if "running" not in name and x.dtype.kind == "f"
    }
    return {("head" if name.startswith("fc.") else name.split(".")[0], name): x for name, x in kept.items()}


def relative(begun, ended):
    """‖W − W₀‖ / ‖W₀‖ by block, of the parameters in two files of a CBR network."""
    flat = {
        block: [np.concatenate([x.ravel() for (own, _), x in side.items() if own == block]) for side in (begun, ended)]
        for block in BLOCKS
    }
    return {block: np.linalg.norm(b - a) / np.linalg.norm(a) for block, (a, b) in flat.items()}


@pytest.mark.parametrize("more", [[], ["--ema", 0.5], ["--lr-scale", "block2=0"]], ids=["adam", "ema", "one-frozen"])
def test_the_log_has_the_distances_between_the_runs_own_checkpoints(more, invoke, fresh, fundus, tmp_path):
    run = tmp_path / "run"
    invoke("train", fresh, "--data", fundus, "-o", run, *TRAINING, *more)
    logged = {entry["step"]: entry["distance_from_init"] for entry in read_log(run) if "macro_auc" in entry}
    assert logged[0] == dict.fromkeys(BLOCKS, 0)
    best = json.loads((run / "metrics.json").read_text())["best"]["step"]
    begun = parameters(run / "init.safetensors")
    for name, step in (("best", best), ("last", 12)):
        assert list(logged[step]) == list(BLOCKS)
        assert logged[step] == pytest.approx(relative(begun, parameters(run / f"{name}.safetensors")), rel=1e-5)
    assert (logged[12]["block2"] == 0) == ("block2=0" in more)


def test_a_run_that_goes_on_measures_from_its_first_weights(finished, invoke, fresh, fundus, tmp_path):
    run = tmp_path / "run"
    shorter = ["--steps", 8, *TRAINING[2:]]
    invoke("train", fresh, "--data", fundus, "-o", run, *shorter)
    invoke("train", fresh, "--data", fundus, "-o", run, *TRAINING)
    assert [x.get("distance_from_init") for x in read_log(run)] == [
        x.get("distance_from_init") for x in read_log(finished)
    ]


def test_a_users_own_blocks_are_those(invoke, fresh, fundus, tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"lower": ["block[12].*"], "upper": ["block[34].*", "fc.*"]}))
    invoke(
        "scale", fresh, "--by", 1, "--blocks", "upper", "--block-map", tmp_path / "map.json", "-o", tmp_path / "mapped"
    )
    invoke("train", tmp_path / "mapped", "--data", fundus, "-o", tmp_path / "run", *TRAINING)
    assert list(read_log(tmp_path / "run")[-1]["distance_from_init"]) == ["lower", "upper"]


def test_what_has_no_relative_distance_is_null():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.zero_()
    distance = DistanceFromInit(network, {"lower": ["0.*"], "upper": ["1.*"]})
    assert distance.of(network) == {"lower": 0, "upper": 0}
    with torch.no_grad():
        network[1].bias.fill_(1)
        network[0].bias.fill_(torch.inf)
    assert distance.of(network) == {"lower": None, "upper": None}
    assert DistanceFromInit(network, {"lower": ["elsewhere.*"]}).of(network) == {}  # a map of other names
