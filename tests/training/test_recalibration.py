"""Batch norm's statistics from images: those that the images have there, and torch's own way of finding them."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn
from torch.optim.swa_utils import update_bn

import wsurgery
from wsurgery.data.augment import normalise, to_float
from wsurgery.data.dataset import Dataset, load_dataset
from wsurgery.data.manifest import write_manifest
from wsurgery.data.sources import open_data
from wsurgery.errors import UsageError
from wsurgery.models import load
from wsurgery.models.inputs import image_statistics
from wsurgery.training.recalibration import recalibrate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(fundus: str) -> Dataset:
    return load_dataset(fundus, split="train")  # 60 images


@pytest.fixture
def network(invoke: Callable[..., object], tmp_path: Path) -> nn.Module:
    path = tmp_path / "fresh.safetensors"
    invoke("init", "resnet18", "--width", 0.1, "--num-classes", 5, "--no-zero-init-last", "-o", path)
    return load(path)


def batches(network: nn.Module, dataset: Dataset, size: int) -> list[torch.Tensor]:
    images = normalise(to_float(torch.from_numpy(np.array(dataset.images))), *image_statistics(network))
    return list(images.split(size))


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in network.named_buffers()}


def test_of_one_batch_each_layer_has_the_exact_moments_of_what_reaches_it(network: nn.Module, dataset: Dataset) -> None:
    """As each norm below normalises by the images, too; in evaluation that differs by n / (n - 1) in the variances."""
    recalibrate(network, dataset, device=CPU)
    seen: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = 0.0  # its statistics stay
            module.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].double()}))
    (images,) = batches(network, dataset, 60)
    with torch.inference_mode():
        network(images)
    assert len(seen) == sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    for name, x in seen.items():
        norm = network.get_submodule(name)
        torch.testing.assert_close(norm.running_mean.double(), x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), x.var((0, 2, 3)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [60, 20])
def test_of_batches_they_are_what_torch_finds(size: int, network: nn.Module, dataset: Dataset) -> None:
    recalibrate(network, dataset, device=CPU, batch_size=size)
    found = statistics(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    update_bn(batches(network, dataset, size), network)
    for name, expected in statistics(network).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
    assert found["bn1.num_batches_tracked"] == 60 // size


def test_a_file_without_a_history_is_told_its_network(invoke, fundus: str, tmp_path: Path) -> None:
    invoke("init", "cbr_tiny", "--width", 0.05, "--num-classes", 5, "-o", tmp_path / "x")
    save_file(load_file(tmp_path / "x"), tmp_path / "plain.safetensors")
    given = ["recalibrate-bn", tmp_path / "plain.safetensors", "--data", fundus, "-o", tmp_path / "y"]
    assert "add --arch NAME" in invoke(*given, check=False).stderr
    invoke("init", "resnet18", "--num-classes", 5, "-o", tmp_path / "x", "--force")
    save_file(load_file(tmp_path / "x"), tmp_path / "plain.safetensors")
    invoke(*given, "--arch", "resnet18", "--images", 4)


@pytest.mark.parametrize("size", [7, 41, 59])
def test_each_image_counts_the_same_in_batches_of_any_size(size: int, network: nn.Module, dataset: Dataset) -> None:
    """Of 60 images by 59 the last one would else be half of all statistics."""
    seen: list[torch.Tensor] = []
    recalibrate(network, dataset, device=CPU, batch_size=size)
    bn1 = network.get_submodule("bn1")
    bn1.register_forward_pre_hook(lambda _, given: seen.append(given[0].double()))
    (images,) = batches(network, dataset, 60)
    with torch.inference_mode():
        network(images)
    torch.testing.assert_close(bn1.running_mean.double(), seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    of_batches = seen[0].var((0, 2, 3))  # but for what the batches' means differ
    torch.testing.assert_close(bn1.running_var.double(), of_batches, rtol=0.2, atol=1e-6)


class Shared(nn.Module):
    """One norm for images of two sizes, and one that no image reaches but in training."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shared(x) + self.shared(3 * x[:, :, ::2, ::2] + 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
        return (self.auxiliary(y) if self.training else y).mean((2, 3))


@pytest.mark.parametrize("size", [60, 20])
def test_a_norm_of_several_inputs_has_what_torch_finds_and_one_of_none_stays(size: int, dataset: Dataset) -> None:
    network = Shared()
    with torch.no_grad():
        network.auxiliary.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        network.auxiliary.running_var.fill_(5)
        network.auxiliary.num_batches_tracked.fill_(500)
    before = statistics(network)
    assert recalibrate(network, dataset, device=CPU, batch_size=size) == ["auxiliary"]
    found = statistics(network)
    network.auxiliary = nn.BatchNorm2d(3)
    network.shared.reset_running_stats()
    update_bn(batches(network, dataset, size), network)
    for name, expected in statistics(network.shared).items():
        torch.testing.assert_close(found[f"shared.{name}"], expected, rtol=1e-5, atol=1e-6)
    for name, x in found.items():
        assert name.startswith("shared") or torch.equal(x, before[name]), name


def test_variances_that_the_files_type_does_not_reach_are_said(invoke, fundus: str, tmp_path: Path) -> None:
    invoke("init", "resnet18", "--width", 0.1, "--num-classes", 5, "-o", tmp_path / "a")
    invoke("scale", tmp_path / "a", "--only", "conv1.weight", "--by", 3000, "-o", tmp_path / "b")
    invoke("cast", tmp_path / "b", "--to", "fp16", "-o", tmp_path / "c")
    said = invoke("recalibrate-bn", tmp_path / "c", "--data", fundus, "--images", 20, "-o", tmp_path / "d").stderr
    infinite = {name: np.isinf(x).sum() for name, x in load_file(tmp_path / "d").items() if np.isinf(x).any()}
    assert set(infinite) == {"bn1.running_var"}
    assert f"{infinite['bn1.running_var']} finite values in 1 tensors became infinite, first in bn1.running_var" in said


def test_between_two_networks_it_is_repair(network: nn.Module, dataset: Dataset) -> None:
    """Jordan et al. 2022: the activations have the endpoints' means and standard deviations, interpolated."""
    torch.manual_seed(0)
    networks = [network, deepcopy(network), deepcopy(network)]
    for each in networks[:2]:
        for module in each.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight)
    a, b = (each.state_dict() for each in networks[:2])
    networks[2].load_state_dict(
        {name: 0.7 * x + 0.3 * b[name] if x.is_floating_point() else x for name, x in a.items()}
    )
    found: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = []
    for each in networks:
        recalibrate(each, dataset, device=CPU)
        seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, module in each.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(
                    lambda _, given, out, name=name, seen=seen: seen.update(
                        {name: (out.mean((0, 2, 3)), out.std((0, 2, 3)))}
                    )
                )
        with torch.inference_mode():
            each.eval()(batches(each, dataset, 60)[0])
        found.append(seen)
    for name, moments in found[2].items():
        for of_a, of_b, between in zip(found[0][name], found[1][name], moments, strict=True):
            torch.testing.assert_close(between, 0.7 * of_a + 0.3 * of_b, rtol=0.05, atol=0.05)  # n - 1 for n


def test_modes_and_momenta_are_put_back_and_weights_left(network: nn.Module, dataset: Dataset) -> None:
    before = {name: x.clone() for name, x in network.named_parameters()}
    network.layer1.train()
    recalibrate(network, dataset, device=CPU)
    assert not network.training
    assert all(module.training for module in network.layer1.modules())
    assert {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    assert all(torch.equal(before[name], x) for name, x in network.named_parameters())
    with pytest.raises(UsageError, match="no batch norm"):
        recalibrate(nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), dataset, device=CPU)


@pytest.mark.slow
def test_the_command_changes_the_statistics_alone_in_file_pipe_and_python(
    wsurgery_in: Callable[..., bytes], fundus: str, tmp_path: Path
) -> None:
    source, data = tmp_path / "a.safetensors", ("--data", fundus, "--images", "20")
    wsurgery_in("init", "resnet18", "--width", 0.1, "--num-classes", 5, "-o", source)
    wsurgery_in("recalibrate-bn", source, *data, "-o", tmp_path / "b.safetensors")
    before, after = load_file(source), load_file(tmp_path / "b.safetensors")
    assert list(before) == list(after)
    changed = {name.rpartition(".")[2] for name in before if (before[name] != after[name]).any()}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    piped = wsurgery_in("recalibrate-bn", "-", *data, stdin=source.read_bytes())
    assert load_bytes(piped, tmp_path).keys() == after.keys()
    assert all((load_bytes(piped, tmp_path)[name] == after[name]).all() for name in after)
    wsurgery.open(source).recalibrate_bn(data=fundus, images=20).write(tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def load_bytes(data: bytes, folder: Path) -> dict[str, np.ndarray]:
    (folder / "piped.safetensors").write_bytes(data)
    return load_file(folder / "piped.safetensors")


@pytest.fixture
def wsurgery_in(wsurgery: Callable[..., object]) -> Callable[..., bytes]:
    def run(*arguments: object, stdin: bytes | None = None) -> bytes:
        return wsurgery(*arguments, stdin=stdin).stdout

    return run


def test_the_network_computes_in_as_many_threads_as_the_command_was_told(invoke, fundus: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import torch\n"
        "class Own(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        with open(__file__ + '.threads', 'a') as file:\n"
        "            file.write(f'{torch.get_num_threads()} ')\n"
        "        return super().forward(x)\n"
        "def build():\n"
        "    body = torch.nn.BatchNorm2d(3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()\n"
        "    return Own(*body, torch.nn.Linear(3, 5))\n"
    )
    model, before = f"{tmp_path / 'own.py'}:build", torch.get_num_threads()
    invoke("init", "--model", model, "-o", tmp_path / "a.safetensors")
    (tmp_path / "own.py.threads").unlink(missing_ok=True)
    given = ["recalibrate-bn", tmp_path / "a.safetensors", "--model", model, "--data", fundus, "--images", 4]
    invoke(*given, "--threads", 3, "-o", tmp_path / "b.safetensors")
    assert set((tmp_path / "own.py.threads").read_text().split()) == {"3"}
    assert torch.get_num_threads() == before


def test_a_history_with_images_in_it_is_not_run_again(invoke, fundus: str, tmp_path: Path) -> None:
    invoke("init", "resnet18", "--width", 0.1, "--num-classes", 5, "-o", tmp_path / "a.safetensors")
    invoke("recalibrate-bn", tmp_path / "a.safetensors", "--data", fundus, "-o", tmp_path / "b.safetensors")
    done = invoke("replay", tmp_path / "b.safetensors", check=False)
    assert done.exit_code == 2
    assert "recalibrate-bn, which is not run again: it needs data" in done.stderr


def test_images_that_cannot_be_read_are_left_out_on_demand(
    invoke, fundus: str, network: nn.Module, tmp_path: Path
) -> None:
    manifest = open_data(fundus).where("train")
    paths = [str(manifest.root.absolute() / name) for name in manifest.paths]
    for name, some in (("whole", paths[1:]), ("lost", [str(tmp_path / "lost.png"), *paths[1:]])):
        rows = [*range(len(manifest))][-len(some) :]
        write_manifest(replace(manifest.take(rows), paths=tuple(some)), tmp_path / f"{name}.csv")
    given = ["recalibrate-bn", tmp_path / "fresh.safetensors", "--data"]
    refused = invoke(*given, tmp_path / "lost.csv", "-o", tmp_path / "x", check=False)
    assert refused.exit_code == 1
    assert refused.stderr.endswith("; --skip-bad leaves such images out\n")
    for name in ("whole", "lost"):
        invoke(*given, tmp_path / f"{name}.csv", "--skip-bad", "-o", tmp_path / f"{name}.safetensors")
    rows = (tmp_path / "lost.csv").read_text().splitlines(keepends=True)
    (tmp_path / "one.csv").write_text("".join(rows[:3]))  # of two images one is lost
    refused = invoke(*given, tmp_path / "one.csv", "--skip-bad", "-o", tmp_path / "x", check=False)
    assert "batch norm's statistics need two images at least, and 1 of" in refused.stderr
    assert not (tmp_path / "x").exists()
    whole, lost = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "lost"))
    assert all(np.array_equal(whole[name], lost[name]) for name in whole)
