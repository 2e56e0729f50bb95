"""New names are those that timm's own networks have, shape by shape."""

import pytest
import timm
import torch

import wsurgery.models  # noqa: F401  (registers the CBR networks)
from wsurgery.anatomy.timm_names import common_prefix, describe_architecture, to_timm

PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BLOCKS = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 3: (1, 3, 3, 5, 5, 6, 1), 4: (1, 4, 4, 6, 6, 8, 1)}
WIDTHS = {
    0: (16, 24, 40, 80, 112, 192, 320), 1: (16, 24, 40, 80, 112, 192, 320), 2: (16, 24, 48, 88, 120, 208, 352),
    3: (24, 32, 48, 96, 136, 232, 384), 4: (24, 32, 56, 112, 160, 272, 448),
}  # fmt: skip


def shapes_of(name: str, **arguments: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = timm.create_model(name, **arguments)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def original_lite(n: int, classes: int = 1000) -> dict[str, tuple[int, ...]]:
    """EfficientNet-PyTorch's names and shapes, from the paper's table of stages and the TPU repository's scaling."""
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(prefix: str, convolution: str, norm: str, shape: tuple[int, ...]) -> None:
        shapes[f"{prefix}{convolution}.weight"] = shape
        shapes.update({f"{prefix}{norm}.{part}": () if "num" in part else shape[:1] for part in PARTS})

    unit("", "_conv_stem", "_bn0", (32, 3, 3, 3))
    width, index = 32, 0
    kernels, repeats = (3, 3, 5, 3, 5, 5, 3), BLOCKS.get(n, BLOCKS[1])
    for stage, (kernel, repeat, out) in enumerate(zip(kernels, repeats, WIDTHS[n], strict=True)):
        for _ in range(repeat):
            prefix, inner = f"_blocks.{index}.", width
            if stage:
                inner = 6 * width
                unit(prefix, "_expand_conv", "_bn0", (inner, width, 1, 1))
            unit(prefix, "_depthwise_conv", "_bn1", (inner, 1, kernel, kernel))
            unit(prefix, "_project_conv", "_bn2", (out, inner, 1, 1))
            width, index = out, index + 1
    unit("", "_conv_head", "_bn1", (1280, width, 1, 1))
    return shapes | {"_fc.weight": (classes, 1280), "_fc.bias": (classes,)}


@pytest.mark.parametrize("n", range(5))
@pytest.mark.parametrize("prefix", ["", "module."])
def test_efficientnet_lite_has_timm_s_names_and_shapes(n, prefix):
    shapes = {prefix + name: shape for name, shape in original_lite(n).items()}
    found = to_timm(shapes)
    assert found.architecture == f"tf_efficientnet_lite{n}"
    assert found.prefix == prefix
    assert list(found.names) == list(shapes)
    renamed = {found.names[name]: shape for name, shape in shapes.items()}
    assert renamed == shapes_of(f"tf_efficientnet_lite{n}")
    assert describe_architecture(found.architecture, renamed) == {
        "name": f"tf_efficientnet_lite{n}", "num_classes": 1000, "in_chans": 3, "args": {},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "cbr_tiny"])
def test_names_of_timm_s_own_networks_stay(name):
    shapes = shapes_of(name)
    assert to_timm(shapes).names == {key: key for key in shapes}
    assert to_timm(shapes).architecture is None


@pytest.mark.parametrize(
    "change",
    [
        {"_blocks.1._se_reduce.weight": (4, 96, 1, 1)},  # EfficientNet-B0: as many blocks, as wide, not lite
        {"extra": (3,)},
        {"_blocks.99._bn1.weight": (3,)},
        {"_blocks.00._bn1.weight": (32,)},  # would take the name of another
        {"_conv_head.weight": (1280, 100, 1, 1)},
        {"_conv_head.weight": (1280,)},
    ],
)
def test_what_is_not_quite_a_lineage_keeps_its_names(change):
    shapes = original_lite(0) | change
    assert to_timm(shapes).names == {name: name for name in shapes}


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["module.a", "module.b.c"], "module."),
        (["_orig_mod.module.a", "_orig_mod.module.b"], "_orig_mod.module."),
        (["model.fc.weight", "model.fc.bias"], "model."),
        (["module.a", "b"], ""),
        (["model.fc.weight", "criterion.weight"], ""),
        (["module."], ""),
        (["model.model.a"], "model.model."),
        ([], ""),
    ],
)
def test_only_a_prefix_of_all_names_is_stripped(names, prefix):
    assert common_prefix(names) == prefix


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"num_classes": 5, "in_chans": 1}),
        ("vit_tiny_patch16_224", {"num_classes": 7, "in_chans": 3}),
        ("cbr_tiny", {"num_classes": 2, "in_chans": 4}),
        ("resnet18", {"num_classes": 0, "in_chans": 3}),
    ],
)
def test_the_head_and_the_first_convolution_say_their_sizes(name, arguments):
    described = describe_architecture(name, shapes_of(name, **arguments))
    assert described == {"name": name, **arguments, "args": {}}
