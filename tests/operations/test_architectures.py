"""The tables of networks against the networks that timm builds."""

import pytest
import timm
import torch
from scipy.stats import ks_2samp

import wsurgery.models  # noqa: F401  # timm learns the CBR family
from wsurgery.checkpoint import open_checkpoint
from wsurgery.checkpoint.provenance import History
from wsurgery.operations.architectures import CBR_FAMILY, RESNETS, find_layout, width_arguments
from wsurgery.operations.planning import Planned
from wsurgery.operations.random_network import random_network
from wsurgery.operations.random_streams import RandomStream
from wsurgery.operations.rewrite import rewrite

NAMES = [*CBR_FAMILY, *RESNETS]


def write(layout, path, *, seed: int, threads: int | None = None) -> None:
    edits = random_network(layout, RandomStream(seed, "init", 0, ""))
    rewrite(Planned("a network", edits, History(), ()), path, threads=threads)


def shapes_in_timm(name: str, **arguments: object) -> list[tuple[str, tuple[int, ...]]]:
    with torch.device("meta"):
        state = timm.create_model(name, **arguments).state_dict()
    return [(key, tuple(value.shape)) for key, value in state.items()]


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_order_are_timms(name):
    layout = find_layout({"name": name})
    assert list(layout.shapes.items()) == shapes_in_timm(name)
    assert layout.architecture == {"name": name, "num_classes": 1000, "in_chans": 3, "args": {}}


@pytest.mark.parametrize("name", ["cbr_tiny", "resnet10t", "resnet18", "resnet50_slim", "resnext50_32x4d"])
@pytest.mark.parametrize(("classes", "in_chans", "width"), [(0, 1, 0.3), (5, 4, 0.25), (1, 3, 1.5)])
def test_sizes_reach_every_tensor(name, classes, in_chans, width):
    args = width_arguments(name, width)
    given = {"num_classes": classes, "in_chans": in_chans}
    layout = find_layout({"name": name, **given, "args": args})
    assert list(layout.shapes.items()) == shapes_in_timm(name, **given, **args)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("convnext_tiny", {}),
        ("resnet50", {"output_stride": 8}),
        ("resnet50", {"channels": (64, 128)}),
        ("resnet50", {"channels": (64, 128, 256, 0)}),
        ("resnet50", {"drop_rate": "high"}),
        ("resnext50_32x4d", {"channels": (8, 16, 32, 64)}),
        ("cbr_tiny", {"width": "half"}),
        ("cbr_tiny", {"kernel": 3}),
    ],
)
def test_what_the_tables_do_not_know_is_left_to_timm(name, args):
    assert find_layout({"name": name, "args": args}) is None


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cbr_small", {"width": 0.5}),
        ("resnet18", {"channels": (32, 32, 64, 64)}),
        ("resnext50_32x4d", {"channels": (16, 16, 32, 32)}),
    ],
)
def test_values_have_timms_distributions(name, args, tmp_path):
    layout = find_layout({"name": name, "num_classes": 200, "args": args})
    write(layout, tmp_path / "x", seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = timm.create_model(name, num_classes=200, **args).state_dict()
    with open_checkpoint(tmp_path / "x") as checkpoint:
        for key, value in expected.items():
            found = torch.from_numpy(checkpoint.read_array(key).copy())
            assert (found.dtype, found.shape) == (value.dtype, value.shape), key
            if value.numel() == 1 or value.std() == 0:
                assert torch.equal(found, value), key
                continue
            assert ks_2samp(found.flatten().numpy(), value.flatten().numpy()).pvalue > 1e-4, key
            assert found.std().item() == pytest.approx(value.std().item(), rel=5 / found.numel() ** 0.5), key
            if key.startswith("fc."):
                assert abs(found).max() <= expected["fc.weight"].shape[1] ** -0.5


def test_threads_do_not_change_a_byte_and_no_two_tensors_are_alike(tmp_path):
    layout = find_layout({"name": "resnet18", "num_classes": 5, "args": {"channels": (64, 16, 32, 256)}})
    for threads in (1, 5):
        write(layout, tmp_path / str(threads), seed=1, threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "5").read_bytes()
    with open_checkpoint(tmp_path / "1") as checkpoint:
        first, second = (checkpoint.read_array(f"layer1.{block}.conv1.weight") for block in (0, 1))
        assert not (first == second).any()
