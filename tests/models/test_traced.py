"""The blocks of networks whose names tell nothing."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from wsurgery.anatomy import block_map
from wsurgery.anatomy.blocks import user_block_map
from wsurgery.models.own import find_model
from wsurgery.models.traced import traced_blocks

ResNet = find_model(f"{Path(__file__).parents[2] / 'recipes' / 'cifar_resnet.py'}:ResNet").make


def placed(network: nn.Module) -> dict[str, str]:
    """Tensor name → block, by what was traced."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    blocks = traced_blocks(network)
    assert blocks is not None
    return user_block_map(shapes, blocks)  # raises where a tensor is in none, or in two


class Renamed(nn.Module):
    """A ResNet under names that say nothing, defined from the last layer to the first, and run as before."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.zeta = network.linear
        self.alpha = nn.ModuleList([network.layer3, network.layer1, network.layer2])
        self.omega = nn.Sequential(network.conv1, network.bn1)

    def forward(self, x):
        for i in (1, 2, 0):
            x = self.alpha[i](torch.relu(self.omega(x)) if i == 1 else x)
        return self.zeta(x.mean((2, 3)))


def test_the_order_is_that_of_running_and_not_of_defining():
    network = Renamed(ResNet(2, 5))
    found = placed(network)
    assert set(found) == set(network.state_dict())
    runs = ["omega.0.", *(f"alpha.{i}.{j}." for i in (1, 2, 0) for j in (0, 1))]
    expected = {name: f"block{i}" for i, start in enumerate(runs, 1) for name in found if name.startswith(start)}
    expected |= {name: "block1" for name in found if name.startswith("omega.1")}
    assert found == expected | {"zeta.weight": "head", "zeta.bias": "head"}


def test_names_that_tell_are_left_to_the_rules():
    network = ResNet(2, 5)
    assert (
        "unplaced" not in block_map({name: tuple(value.shape) for name, value in network.state_dict().items()}).values()
    )
    assert traced_blocks(network) is None


class Takes28(nn.Module):
    """It takes one size, has a parameter of its own, a part that never runs, and all in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))
        self.inner = nn.Module()
        self.inner.a, self.inner.b = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3)
        self.inner.unused = nn.Linear(2, 2)
        self.inner.out = nn.Linear(3 * 24 * 24, 4)
        self.in_chans = 1

    def forward(self, x):
        return self.inner.out(self.inner.b(self.inner.a(x + self.shift)).flatten(1))


def test_one_module_of_all_is_taken_apart_and_the_last_that_runs_is_the_head():
    network = Takes28().train()
    found = placed(network)
    assert network.training
    assert (found["inner.a.weight"], found["inner.b.weight"], found["inner.out.weight"]) == ("block1", "block2", "head")
    assert found["shift"] == "block1"
    assert found["inner.unused.weight"] == "head"


def test_a_network_that_takes_no_image_is_read_as_it_is_defined():
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.middle, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            raise ValueError("no image")

    assert traced_blocks(Text()) == {"block1": ["words.*"], "block2": ["middle.*"], "head": ["last.*"]}
    assert traced_blocks(nn.Sequential(nn.Linear(2, 2))) is None


def test_init_records_the_blocks_and_every_edit_finds_them(invoke, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, num_classes=2):\n        super().__init__()\n"
        "        self.q, self.r, self.s = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, num_classes)\n"
        "    def forward(self, x):\n        return self.s(self.q(x).relu().mean((2, 3)) + self.r(self.q(x)).mean((2, 3)))\n"
    )
    model = f"{tmp_path / 'net.py'}:Net"
    for seed, name in ((1, "a"), (2, "b")):
        invoke(
            "init", "--model", model, "--num-classes", 2 + seed, "--seed", seed, "-o", tmp_path / f"{name}.safetensors"
        )
    shown = json.loads(invoke("show", tmp_path / "a.safetensors", "--json").stdout)
    assert [block["name"] for block in shown["blocks"]] == ["block1", "block2", "head"]
    plain = tmp_path / "plain.safetensors"
    invoke("convert", as_pth(tmp_path), "-o", plain)  # no record is in it: the receiver's blocks count
    invoke(
        "transfuse", plain, "--upto", "block1", "--into", tmp_path / "b.safetensors", "-o", tmp_path / "c.safetensors"
    )
    a, b, c = (load_file(tmp_path / f"{name}.safetensors") for name in "abc")
    assert {name: next(x for x, t in (("a", a), ("b", b)) if t[name].equal(value)) for name, value in c.items()} == {
        "q.weight": "a", "q.bias": "a", "r.weight": "b", "r.bias": "b", "s.weight": "b", "s.bias": "b",
    }  # fmt: skip


def as_pth(folder: Path) -> Path:
    """The first network as PyTorch saves it."""
    torch.save(load_file(folder / "a.safetensors"), folder / "a.pth")
    return folder / "a.pth"


@pytest.mark.parametrize("mode", [True, False])
def test_tracing_changes_nothing(mode):
    network = Renamed(ResNet(1, 5)).train(mode)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    traced_blocks(network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert {module.training for module in network.modules()} == {mode}
    assert not any(module._forward_pre_hooks for module in network.modules())
