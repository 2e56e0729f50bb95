"""New names are those that timm's own networks have, shape by shape."""

import re

import numpy as np
import pytest
import timm
import torch
import torchvision

import wsurgery.models  # noqa: F401  (registers the CBR networks)
from wsurgery.errors import UsageError
from wsurgery.foreign.timm_names import rearranged, to_timm

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
    assert found.architecture == (f"tf_efficientnet_lite{n}", {})
    assert found.prefix == prefix
    assert [piece.name for (piece,) in found.pieces.values()] == list(shapes)
    assert found.shapes == shapes_of(f"tf_efficientnet_lite{n}")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("vit_b_16", ("vit_base_patch16_224", {})),
        ("vit_h_14", ("vit_huge_patch14_224", {})),
        ("swin_t", ("swin_tiny_patch4_window7_224", {})),
        ("swin_b", ("swin_base_patch4_window7_224", {})),
        ("convnext_small", ("convnext_small", {})),
        ("efficientnet_b0", ("efficientnet_b0", {})),
        ("efficientnet_b6", ("efficientnet_b6", {"bn_eps": 0.001})),
        ("efficientnet_v2_m", ("efficientnetv2_m", {"bn_eps": 0.001})),
        ("mobilenet_v2", ("mobilenetv2_100", {})),
        ("mobilenet_v3_large", ("mobilenetv3_large_100", {"bn_eps": 0.001})),
        ("mobilenet_v3_small", ("mobilenetv3_small_100", {"bn_eps": 0.001})),
        ("vgg13", ("vgg13", {})),
        ("vgg16_bn", ("vgg16_bn", {})),
        ("inception_v3", ("inception_v3", {})),
    ],
)
def test_torchvision_s_names_become_timm_s_in_any_order(name, architecture):
    found = to_timm(dict(sorted(torchvision_shapes(name).items())))
    assert found.lineage.startswith("torchvision's")
    assert found.architecture == architecture
    assert found.shapes == shapes_of(architecture[0], num_classes=1000, **architecture[1])
    dropped = {part for name in found.left_out for part in name.split(".") if part[0].isupper() or "index" in part}
    assert dropped <= {"AuxLogits", "relative_position_index"}


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "densenet121"])
def test_some_of_torchvision_s_networks_have_timm_s_names_already(name):
    shapes = torchvision_shapes(name)
    assert shapes == shapes_of(name)
    assert is_unchanged(shapes)


def dotted(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """A DenseNet's names as PyTorch before 0.4.1 had them, and torchvision's downloads have."""
    names = {name: re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", name) for name in shapes}
    return {names[name]: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet169", "densenet201"])
def test_a_densenet_with_dots_is_timm_s(name):
    own = {key: shape for key, shape in shapes_of(name).items() if not key.endswith("num_batches_tracked")}
    found = to_timm(dotted(torchvision_shapes(name)))
    assert (found.shapes, found.architecture) == (own, (name, {}))
    chexnet = {
        f"module.densenet.{key.replace('classifier.', 'classifier.0.')}": shape
        for key, shape in dotted(torchvision_shapes(name)).items()
    }
    found = to_timm(chexnet)
    assert (found.shapes, found.architecture, found.prefix) == (own, (name, {}), "module.densenet.")


CHILDREN = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.parametrize("head", ["9", "fc", "fc.1", "classifier", None])
def test_a_resnet_in_sequential_is_timm_s(name, head):
    own = {key: shape for key, shape in shapes_of(name).items() if head or not key.startswith("fc.")}
    numbered = {}
    for key, shape in own.items():
        child, rest = key.split(".", 1)
        numbered[f"{head}.{rest}" if child == "fc" else f"{CHILDREN.index(child)}.{rest}"] = shape
    found = to_timm(numbered)
    assert (found.shapes, found.architecture) == (own, (name, {}))
    trunk = {key if key.startswith(("fc", "classifier")) else f"backbone.{key}": s for key, s in numbered.items()}
    if head != "9":
        assert to_timm(trunk).shapes == own


@pytest.mark.parametrize(
    "shapes",
    [
        {"0.weight": (4, 3, 3, 3), "1.weight": (4,), "1.bias": (4,)},  # any two layers
        {"conv1.weight": (16, 3, 3, 3), "layer1.0.conv1.weight": (16, 16, 3, 3), "linear.weight": (10, 64)},  # CIFAR's
    ],
)
def test_names_that_say_little_stay_where_the_network_is_not_known(shapes):
    assert is_unchanged(shapes)


def torchvision_shapes(name: str) -> dict[str, tuple[int, ...]]:
    more = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **more)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def is_unchanged(shapes) -> bool:
    found = to_timm(shapes)
    names = {piece.name: new for new, pieces in found.pieces.items() for piece in pieces}
    return names == {name: name for name in shapes} and (found.architecture, found.lineage) == (None, None)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "cbr_tiny", "vgg11", "convnext_atto", "inception_v3"],
)
def test_names_of_timm_s_own_networks_stay(name):
    assert is_unchanged(shapes_of(name))
    assert is_unchanged(shapes_of(name, num_classes=0))


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
    assert is_unchanged(original_lite(0) | change)


def transformers_vit(width: int = 192, depth: int = 12, tokens: int = 197) -> dict[str, tuple[int, ...]]:
    """A ViT's names and shapes as transformers writes them."""
    shapes: dict[str, tuple[int, ...]] = {
        "vit.embeddings.cls_token": (1, 1, width),
        "vit.embeddings.position_embeddings": (1, tokens, width),
        "vit.embeddings.patch_embeddings.projection.weight": (width, 3, 16, 16),
        "vit.embeddings.patch_embeddings.projection.bias": (width,),
        "classifier.weight": (1000, width),
        "classifier.bias": (1000,),
    }
    layers = {
        "attention.attention.query": (width, width), "attention.attention.key": (width, width),
        "attention.attention.value": (width, width), "attention.output.dense": (width, width),
        "intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width), "layernorm_before": (width,),
        "layernorm_after": (width,),
    }  # fmt: skip
    modules = {f"vit.encoder.layer.{i}.{name}": shape for i in range(depth) for name, shape in layers.items()}
    for name, shape in {**modules, "vit.layernorm": (width,)}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


@pytest.mark.parametrize(
    ("made", "config", "architecture"),
    [
        ({}, {}, ("vit_tiny_patch16_224", {})),
        ({"width": 768}, {}, ("vit_base_patch16_224", {})),
        ({"width": 768, "tokens": 577}, {}, ("vit_base_patch16_224", {"img_size": 384})),
        ({"width": 768}, {"num_attention_heads": 12}, ("vit_base_patch16_224", {})),
        ({"width": 320}, {}, None),  # the number of heads is nowhere
        ({"depth": 3}, {"hidden_size": 192, "num_attention_heads": 3, "hidden_act": "quick_gelu"}, None),
        # A config.json whose sizes are not these tensors' is of another model, and says nothing of this one.
        ({}, {"num_attention_heads": 16}, ("vit_tiny_patch16_224", {})),
        ({}, {"hidden_size": 768, "num_attention_heads": 12}, ("vit_tiny_patch16_224", {})),
        ({}, {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6}, ("vit_tiny_patch16_224", {})),
        ({}, {"hidden_size": 192, "intermediate_size": 500, "num_attention_heads": 6}, ("vit_tiny_patch16_224", {})),
        ({}, {"hidden_size": 192, "num_attention_heads": 5}, ("vit_tiny_patch16_224", {})),
        ({}, {"hidden_size": 768, "hidden_act": "relu"}, ("vit_tiny_patch16_224", {})),
        ({"width": 96, "depth": 3}, {"num_attention_heads": 6}, None),
        ({"width": 96, "depth": 3}, {"hidden_size": 96, "num_attention_heads": 5}, None),
        ({"tokens": 200}, {}, None),  # no square of patches
        (
            {"width": 96, "depth": 3},
            {"hidden_size": 96, "num_attention_heads": 6},
            (
                "vit_base_patch16_224",
                {"embed_dim": 96, "depth": 3, "num_heads": 6, "mlp_ratio": 4.0, "patch_size": 16},
            ),
        ),
    ],
)
def test_what_no_shape_tells_is_taken_from_config_json_or_not_guessed(made, config, architecture):
    found = to_timm(transformers_vit(**made), config)
    assert found.lineage == "Hugging Face's ViT"
    assert found.architecture == architecture
    if architecture:
        assert found.shapes == shapes_of(architecture[0], num_classes=1000, **architecture[1])
        joined = found.pieces["blocks.1.attn.qkv.weight"]
        assert [piece.name.split(".")[-2] for piece in joined] == ["query", "key", "value"]


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        ("DeiTForImageClassificationWithTeacher", {}, "deit_base_distilled_patch16_224"),
        ("DeiTModel", {}, "deit_base_distilled_patch16_224"),
        ("DeiTForImageClassification", {}, None),  # of timm's distilled ones both heads classify
        ("Dinov2Model", {"image_size": 518}, "vit_base_patch14_dinov2"),
        ("Dinov2Model", {"image_size": 518, "num_hidden_layers": 6}, None),
        ("Dinov2Model", {"image_size": 518, "num_attention_heads": 8}, None),
        ("BeitForImageClassification", {"use_relative_position_bias": True}, "beit_base_patch16_224"),
        ("BeitForImageClassification", {"use_relative_position_bias": True, "num_hidden_layers": 6}, None),
        ("BeitForImageClassification", {"use_relative_position_bias": True, "use_absolute_position_embeddings": True}, None),
        ("ResNetForImageClassification", {}, "resnet50"),
        ("ResNetForImageClassification", {"layer_type": "basic"}, None),  # of a ResNet-50's blocks and widths
    ],
)  # fmt: skip
def test_what_is_told_has_the_tensors_of_timm_s_network(kind, settings, name):
    """By transformers' own networks: what is not quite one of timm's is not called so."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind.partition('For')[0].removesuffix('Model')}Config")(**settings, num_labels=7)
    with torch.device("meta"):
        shapes = {key: tuple(x.shape) for key, x in getattr(transformers, kind)(config).state_dict().items()}
    found = to_timm(shapes, config.to_dict())
    assert found.lineage.startswith("Hugging Face's")
    assert (found.architecture or (None,))[0] == name
    if name:
        classes = 0 if kind.endswith("Model") else 7
        assert found.shapes == shapes_of(name, num_classes=classes, **found.architecture[1])


@pytest.mark.parametrize(
    "lost", ["vit.encoder.layer.0.attention.attention.key.weight", "vit.encoder.layer.7.attention.attention.query.bias"]
)
def test_a_part_of_what_is_to_be_joined_is_not_renamed(lost):
    shapes = transformers_vit()
    del shapes[lost]
    assert is_unchanged(shapes)


@pytest.mark.parametrize(
    "change",
    [
        {"vit.embeddings.position_embeddings": ()},
        {"vit.embeddings.position_embeddings": (1, 0, 192)},
        {"vit.embeddings.patch_embeddings.projection.weight": (192,)},
        {"vit.embeddings.patch_embeddings.projection.weight": (0, 3, 16, 16)},
        {"vit.encoder.layer.0.intermediate.dense.weight": ()},
    ],
)
def test_an_odd_network_has_new_names_and_no_architecture(change):
    assert to_timm(transformers_vit() | change, {"num_attention_heads": 3}).architecture is None


def test_numbers_of_any_length_are_just_names():
    assert is_unchanged({f"features.{'9' * 5000}.block.{'9' * 5000}.0.weight": (1,)})


def test_what_cannot_be_joined_is_named():
    with pytest.raises(UsageError, match=r"layer\.3\.attention\.attention\.key\.weight \(192, 64\).*--keep-names"):
        to_timm(transformers_vit() | {"vit.encoder.layer.3.attention.attention.key.weight": (192, 64)})


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        ("hwio->oihw", (2, 3, 4, 5), lambda x: x.transpose(3, 2, 0, 1)),
        ("ihd->(hd)i", (4, 2, 3), lambda x: np.concatenate([x[:, h] for h in range(2)], axis=1).T),
        ("hdo->o(hd)", (2, 3, 4), lambda x: np.concatenate([x[h].T for h in range(2)], axis=1)),
        ("hd->(hd)", (2, 3), np.ravel),
        ("oi->oi11", (4, 3), lambda x: x[:, :, None, None]),
        ("c11->c", (4, 1, 1), np.ravel),
        (
            "o(i77)->oi77",
            (2, 98),
            lambda x: np.stack([x[:, i * 49 : i * 49 + 49] for i in (0, 1)], 1).reshape(2, 2, 7, 7),
        ),
    ],
)
def test_layouts(layout, shape, expected):
    array = np.arange(np.prod(shape)).reshape(shape)
    piece = rearranged("x", shape, layout)
    got = array.reshape(piece.before).transpose(piece.axes).reshape(piece.shape)
    np.testing.assert_array_equal(got, expected(array), strict=True)


@pytest.mark.parametrize(("layout", "shape"), [("oi->oi11", (4,)), ("c11->c", (4, 2, 1)), ("o(i77)->oi77", (2, 97))])
def test_a_shape_that_is_not_of_the_layout_is_refused(layout, shape):
    with pytest.raises(ValueError, match=r"."):
        rearranged("x", shape, layout)
