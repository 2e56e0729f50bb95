"""Two processes, as torchrun starts them, do what one does."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wsurgery.data.dataset import load_dataset
from wsurgery.data.manifest import write_manifest
from wsurgery.data.sources import open_data
from wsurgery.processes import ALONE, joined
from wsurgery.training.interruption import Interrupted
from wsurgery.training.loop import train
from wsurgery.training.settings import Settings

TWO_BATCHES = "synthetic:fundus?n=400&size=16"  # 140 images to test: a batch of 128 and one of 12
TINY_VIT = [f"--arg={word}" for word in ("img_size=32", "patch_size=8", "embed_dim=16", "depth=1", "num_heads=2")]
SGD = ["--steps", 7, "--eval-every", 3, "--lr", 0.05, "--optimizer", "momentum", "--device", "cpu", "--threads", 1]


def test_evaluation_is_one_processs_to_the_last_bit(fresh, invoke, torchrun, tmp_path):
    given = ["eval", fresh, "--data", TWO_BATCHES, "--json", "--threads", 1, "--device", "cpu", "--predictions"]
    alone = invoke(*given, tmp_path / "one.csv")
    together = torchrun(*given, tmp_path / "two.csv")
    assert together.stdout.decode() == alone.stdout  # and only one process prints
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    with (tmp_path / "two.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 140


@pytest.fixture(scope="module")
def masked(fundus, tmp_path_factory):
    """The small data set, where most images have only some labels, and some none."""
    manifest = open_data(fundus)
    labels = manifest.labels.copy()
    rng = np.random.default_rng(0)
    labels[rng.random(labels.shape) < rng.random((len(labels), 1)) ** 0.5] = np.nan
    paths = tuple(str(manifest.root.absolute() / name) for name in manifest.paths)
    file = tmp_path_factory.mktemp("masked") / "manifest.csv"
    write_manifest(replace(manifest, paths=paths, labels=labels), file)
    return file


def read_log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_one_process_began_goes_on_in_two_as_in_one(masked, invoke, torchrun, tmp_path):
    invoke("init", "vit_tiny_patch16_224", "--num-classes", 5, *TINY_VIT, "-o", tmp_path / "vit")
    given = ["train", tmp_path / "vit", "--data", masked, *SGD, "--grad-clip", 0.5, "--ema", 0.5]
    invoke(*given, "--batch-size", 12, "-o", tmp_path / "one")
    settings = Settings(
        steps=7, epochs=None, batch_size=12, lr=0.05, optimizer="momentum", eval_every=3, grad_clip=0.5, ema=0.5
    )
    with pytest.raises(Interrupted, match="after step 4 of 7"):
        train(
            tmp_path / "vit",
            tmp_path / "two",
            load_dataset(str(masked), split="train"),
            load_dataset(str(masked), split="valid"),
            settings,
            data=str(masked),
            arguments=[],
            device=torch.device("cpu"),
            signalled=iter([0, 0, 0, 0, signal.SIGTERM]).__next__,
        )
    said = torchrun(*given, "--global-batch", 12, "-o", tmp_path / "two").stderr.decode()
    assert [line.split("  ")[0] for line in said.splitlines() if line.startswith("step")] == ["step 6", "step 7"]
    before, one, two = (load_file(tmp_path / path) for path in ("vit", "one/last.safetensors", "two/last.safetensors"))
    moved = max(float((one[name] - before[name]).abs().max()) for name in one)
    assert moved > 1e-2
    for name, value in one.items():
        assert float((two[name] - value).abs().max()) < 1e-6, name
    for alone, together in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert together.get("loss") == pytest.approx(alone.get("loss"), abs=1e-6)
        assert together["auc"] == pytest.approx(alone["auc"], abs=0.05)  # a rank or two of 18 images
    config = [(tmp_path / run / "config.json").read_text() for run in ("one", "two")]
    assert config[0] == config[1]


def test_without_torchrun_a_process_is_alone(monkeypatch):
    with joined() as processes:
        assert processes is ALONE
    assert ALONE.to_all("x") == ALONE.from_next("x") == ALONE.to_first("x") == ["x"]
    assert (ALONE.largest(3), ALONE.means([1.0, 2.0]), ALONE.from_first("x")) == (3, [1, 2], "x")
    assert ALONE.in_turn(lambda: "done") == "done"


@pytest.mark.slow
def test_softmax_in_two_processes_is_that_of_one(fundus, invoke, torchrun, tmp_path):
    invoke("init", "vit_tiny_patch16_224", "--num-classes", 5, *TINY_VIT, "-o", tmp_path / "vit")
    given = ["train", tmp_path / "vit", "--data", fundus, *SGD, "--loss", "softmax", "--lr-decay", 0.5]
    invoke(*given, "--batch-size", 12, "-o", tmp_path / "one")
    torchrun(*given, "--global-batch", 12, "-o", tmp_path / "two")
    before, one, two = (load_file(tmp_path / path) for path in ("vit", "one/last.safetensors", "two/last.safetensors"))
    assert max(float((one[name] - before[name]).abs().max()) for name in one) > 1e-2
    for name, value in one.items():
        assert float((two[name] - value).abs().max()) < 1e-6, name


# A head of which nothing comes, and a token that only pretraining puts in: neither has a gradient.
UNUSED = """
import torch
from torch import nn

class Unused(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.aux = nn.Linear(4, 2)
        self.mask_token = nn.Parameter(torch.ones(1, 4))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.conv1(x).relu().mean((2, 3))
        self.aux(x)
        return self.fc(x)
"""


@pytest.mark.slow
def test_a_network_with_parameters_without_a_gradient_trains_in_two_processes_as_in_one(
    fundus, invoke, torchrun, tmp_path
):
    (tmp_path / "unused.py").write_text(UNUSED)
    space = {}
    exec(UNUSED, space)
    torch.manual_seed(0)
    before = space["Unused"](5).state_dict()
    save_file(before, tmp_path / "init")
    given = ["train", tmp_path / "init", "--model", f"{tmp_path}/unused.py:Unused", "--data", fundus, *SGD]
    given += ["--weight-decay", 0.1]  # which does not move what has no gradient
    invoke(*given, "--batch-size", 12, "-o", tmp_path / "one")
    torchrun(*given, "--global-batch", 12, "-o", tmp_path / "two")
    one, two = (load_file(tmp_path / run / "last.safetensors") for run in ("one", "two"))
    for name, value in one.items():
        assert float((two[name] - value).abs().max()) < 1e-6, name
        assert value.equal(before[name]) == two[name].equal(before[name]) == name.startswith(("aux", "mask")), name


SYNCHRONISED = """
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn
from wsurgery.training.moving_average import MovingAverage
from wsurgery.training.trainer import copied

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
group = dist.new_group(backend="gloo")
plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), BatchNormAct2d(4).eval())
before, average = list(plain.state_dict(keep_vars=True).items()), MovingAverage(plain, 0.5)
network = convert_sync_batchnorm(plain, group)
after = list(network.state_dict(keep_vars=True).items())
assert all(name == other and x is y for (name, x), (other, y) in zip(before, after, strict=True))
assert [module.training for module in network] == [True, True, False]
start = {name: x.detach().clone() for name, x in after}
with torch.no_grad():
    for _, x in after:
        x.add_(1)
average.update(network, is_first=False)
for name, x in average.network.state_dict().items():
    torch.testing.assert_close(x, start[name] + (0.5 if x.is_floating_point() else 1))
copy = copied(network, group)
assert copy[1].process_group is copy[2].process_group is group
for (name, x), (other, y) in zip(after, copy.state_dict().items(), strict=True):
    assert name == other and x.equal(y) and x.data_ptr() != y.data_ptr()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_synchronised_batch_norm_leaves_the_network_to_its_average_and_to_a_copy():
    """What a CPU can show of --sync-bn: the same tensors in the same order, which a group of processes does not hold back."""
    subprocess.run([sys.executable, "-c", SYNCHRONISED], check=True, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"})
