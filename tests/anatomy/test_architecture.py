"""The network that a checkpoint is of, by metadata, config.json, the user, and tensors."""

import json

import pytest
import timm
import torch

import wsurgery.models  # noqa: F401  (registers the CBR networks)
from wsurgery.anatomy.architecture import choose_architecture, describe_architecture, read_config
from wsurgery.errors import WsurgeryError


def shapes_of(name: str, **arguments: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"num_classes": 5, "in_chans": 1}),
        ("vit_tiny_patch16_224", {"num_classes": 7, "in_chans": 3}),
        ("cbr_tiny", {"num_classes": 2, "in_chans": 4}),
        ("resnet18", {"num_classes": 0, "in_chans": 3}),
        ("convnext_atto", {"num_classes": 4, "in_chans": 2}),
    ],
)
def test_the_head_and_the_first_convolution_say_their_sizes(name, arguments):
    described = describe_architecture(name, shapes_of(name, **arguments))
    assert described == {"name": name, **arguments, "args": {}}


def test_a_network_that_no_convolution_opens_says_no_channels():
    shapes = {"embed.weight": (8, 48), "blocks.0.conv_dw.weight": (8, 1, 3, 3), "head.weight": (5, 8)}
    assert describe_architecture("x", shapes) == {"name": "x", "num_classes": 5, "args": {}}


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("efficientvit_b0", 10), ("hgnetv2_b0", 10), ("vgg11_bn", 10), ("mambaout_femto", 10), ("maxvit_tiny_tf_224", 10),
        ("inception_v3", 10), ("deit_tiny_distilled_patch16_224", 10), ("vit_base_patch16_siglip_224", 0),
    ],
)  # fmt: skip
def test_the_classes_are_read_off_names_in_any_order(name, classes):
    """A file has its names sorted, and `head.in_conv` after `head.classifier`."""
    shapes = dict(sorted(shapes_of(name, num_classes=classes).items()))
    assert describe_architecture(name, shapes)["num_classes"] == classes
    config = {"architecture": name, "num_classes": classes}
    assert choose_architecture(shapes, recorded=None, config=config, arch=None)["num_classes"] == classes


RECORDED = {"name": "resnet18", "num_classes": 3, "in_chans": 1, "args": {"drop_rate": 0.1}}
CONFIG = {"architecture": "resnet10t", "num_classes": 1000, "model_args": {"num_classes": 7, "drop_rate": 0.2}}


@pytest.mark.parametrize(
    ("recorded", "config", "arch", "name", "args"),
    [
        (RECORDED, CONFIG, None, "resnet18", {"drop_rate": 0.1}),
        (RECORDED, CONFIG, "resnet18", "resnet18", {"drop_rate": 0.1}),
        (RECORDED, CONFIG, "resnetblur18", "resnetblur18", {}),
        (None, CONFIG, None, "resnet10t", {"drop_rate": 0.2}),
        (None, CONFIG, "resnet10t", "resnet10t", {"drop_rate": 0.2}),
        (None, CONFIG, "resnet18", "resnet18", {}),
        (None, {"architecture": "resnet10t"}, None, "resnet10t", {}),
    ],
)
def test_the_order_of_trust(recorded, config, arch, name, args):
    shapes = shapes_of("resnet18", num_classes=5)
    found = choose_architecture(shapes, recorded=recorded, config=config, arch=arch)
    assert (found["name"], found["args"]) == (name, args)
    assert found["num_classes"] == (3 if found is recorded else 5)


def test_nothing_said_is_nothing_known():
    foreign = {"model_type": "resnet", "architectures": ["ResNetModel"], "architecture": ["a list"]}
    assert choose_architecture(shapes_of("resnet18"), recorded=None, config=foreign, arch=None) is None


def test_config_json_is_read_beside_a_file_and_in_a_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_config(tmp_path) == read_config(tmp_path / "model.safetensors") == CONFIG
    assert read_config(None) == read_config(tmp_path / "deeper" / "model.safetensors") == {}


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\x00"])
def test_a_broken_config_json_is_one_line(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WsurgeryError, match=r"config\.json is not JSON"):
        read_config(tmp_path)
