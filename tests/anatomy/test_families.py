"""Hidden units change places and the network's function stays: of every family, against torch in float64."""

from contextlib import suppress

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vgg import VGG
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import wsurgery
import wsurgery.models  # timm knows the CBR family
from wsurgery.anatomy.families import find_symmetry
from wsurgery.errors import WsurgeryError
from wsurgery.recipes.cifar_resnet import ResNet as CifarResNet

CHANNELS = (8, 8, 16, 24)
SMALL = {"img_size": 32, "patch_size": 8, "num_classes": 7}


def vit(**more):
    return VisionTransformer(**SMALL, embed_dim=24, depth=2, num_heads=3, class_token=True, init_values=0.1, **more)


NETWORKS = {
    "cbr": lambda: timm.create_model("cbr_tiny", width=0.1, num_classes=7),
    "vgg": lambda: VGG([8, "M", 16, "M"], num_classes=7, mlp_ratio=0.01),
    "vgg_bn": lambda: VGG([8, "M", 16], num_classes=7, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d),
    "densenet": lambda: DenseNet(growth_rate=4, block_config=(2, 3, 11), bn_size=2, num_classes=7),
    "resnet18": lambda: timm.create_model("resnet18", channels=CHANNELS, num_classes=7),
    "resnet26d": lambda: timm.create_model("resnet26d", channels=CHANNELS, num_classes=7),
    "seresnet18": lambda: timm.create_model("seresnet18", channels=CHANNELS, num_classes=7),
    "resnext": lambda: ResNet(
        Bottleneck, (1, 2, 1, 1), num_classes=7, channels=CHANNELS, cardinality=4, base_width=64,
        block_args={"attn_layer": "se"},
    ),
    "resnext, depthwise": lambda: ResNet(
        Bottleneck, (1, 1, 1, 1), num_classes=7, channels=(8, 8, 8, 8), cardinality=8, base_width=8
    ),
    "cifar": lambda: CifarResNet(2, num_classes=7),
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=7),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=7),
    "convnext": lambda: ConvNeXt(depths=(1, 2, 1, 1), dims=CHANNELS, num_classes=7),
    "convnextv2": lambda: ConvNeXt(
        depths=(1, 1, 1, 1), dims=CHANNELS, num_classes=7, use_grn=True, ls_init_value=None, conv_mlp=True
    ),
    "mixer": lambda: MlpMixer(**SMALL, num_blocks=2, embed_dim=24),
    "vit": vit,
    "vit, normed": lambda: vit(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, reg_tokens=2, pre_norm=True),
    "vit, gated": lambda: vit(mlp_layer=timm.layers.GluMlp, mlp_ratio=4, qkv_bias=False, global_pool="avg"),
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 32 * 32, 12), nn.ReLU(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.Linear(9, 7)
    ),
    "projector": lambda: nn.Sequential(  # of SimCLR, BYOL and VICReg
        nn.Flatten(), nn.Linear(3 * 32 * 32, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 7), nn.BatchNorm1d(7)
    ),
}  # fmt: skip
HEADS = {
    "wsurgery": '{"architecture": {"name": "vit_tiny", "num_classes": 7, "in_chans": 3, "args": {"num_heads": 3}}}'
}
# What keeps its place in each, beside the bias of the head and counters.
STAYS = {
    "cifar": {"conv1", "bn1", "conv2", "bn2", "linear"},
    "vit, normed": {"q_norm", "k_norm"},
    "mixer": {"fc2"},
}


@pytest.fixture(params=NETWORKS)
def network(request, tmp_path):
    """Its name, a network in eval mode with nothing at its initial value, and its file."""
    torch.manual_seed(0)
    model = NETWORKS[request.param]().eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn_like(value) * (0.2 if value.ndim > 1 else 0.1) + (0 if value.ndim > 1 else 0.5))
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.abs_().add_(0.1)
    path = tmp_path / "a.safetensors"
    save_file(model.state_dict(), path, metadata=HEADS)
    return request.param, model, path


def logits(model, state, images):
    model.load_state_dict(state)
    with torch.no_grad():
        return model.double()(images)


def test_the_function_stays_and_the_weights_do_not(network):
    name, model, path = network
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    after = wsurgery.open(path).permute(seed=1).state_dict(torch=True)
    old, new = (logits(model, state, images) for state in (before, after))
    assert old.std() > 1e-3
    torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-10)
    for key, value in after.items():
        assert torch.equal(value.flatten().sort()[0], before[key].flatten().sort()[0])
        if value.numel() > 7 and value.unique().numel() > 7 and not STAYS.get(name, set()) & set(key.split(".")):
            assert not torch.equal(value, before[key]), key


def test_features_without_a_head_keep_their_order(network):
    """They are what the network puts out then."""
    _, model, path = network
    if not hasattr(model, "reset_classifier"):
        pytest.skip("is not timm's")
    model.reset_classifier(0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_file(before, path, metadata=HEADS)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    after = wsurgery.open(path).permute(seed=1).state_dict(torch=True)
    old, new = (logits(model, state, images) for state in (before, after))
    assert old.std() > 1e-3
    torch.testing.assert_close(new, old, rtol=1e-10, atol=1e-10)
    assert any(not torch.equal(value, before[key]) for key, value in after.items())


def test_a_shortcut_that_pads_with_zeros_keeps_the_residual_stream_where_it_is():
    shapes = {name: tuple(value.shape) for name, value in CifarResNet(2).state_dict().items()}
    symmetry = find_symmetry(shapes, None, "net")
    assert {space for group in symmetry.groups for space in group.spaces} == {
        f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1)
    }
    assert "residual stream" in symmetry.notes[0]


def test_attention_keeps_its_place_where_the_number_of_heads_is_not_known():
    shapes = {name: tuple(value.shape) for name, value in vit().state_dict().items()}
    known = {"name": "vit_tiny_patch16_224", "args": {"num_heads": 3}}
    others = (
        ("x", {"num_heads": 3}),
        ("vit_pe_spatial_tiny_patch16_512", {"num_heads": 3}),
        ("vit_tiny", {"embed_dim": 24}),
    )
    for architecture in (
        None,
        *({"name": name, "args": args} for name, args in others),
        known | {"model": "net.py:vit"},
    ):
        symmetry = find_symmetry(shapes, architecture, "net")
        assert "heads" in symmetry.notes[0]
        assert len(symmetry.groups) == len(find_symmetry(shapes, known, "net").groups) - 2


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_large_patch14_clip_224", "vit_base_patch16_gap_224",
        "vit_giant_patch14_224", "vit_so400m_patch14_siglip_gap_224",
    ],
)  # fmt: skip
def test_heads_are_those_of_timm(name):
    with torch.device("meta"):
        model = timm.create_model(name, depth=2)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    symmetry = find_symmetry(shapes, {"name": name, "args": {}}, "net")
    assert {group.blocks for group in symmetry.groups if len(group.spaces) == 2} == {model.blocks[0].attn.num_heads}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer1.0.attn.weight": (8, 8)}, "it has no place for layer1.0.attn.weight"),
        ({"bn1.running_mean": None}, "it should have bn1.running_mean"),
        ({"layer1.0.conv2.weight": (9, 8, 3, 3)}, "does not fit"),
        ({"layer1.0.conv2.weight": (8,)}, "does not fit"),
        ({"bn1.weight": None, "layer1.0.conv1.weight": None}, "are of none of"),
    ],
)
def test_what_no_rule_knows_is_refused_by_name(change, words):
    model = timm.create_model("resnet18", channels=CHANNELS)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()} | change
    shapes = {name: shape for name, shape in shapes.items() if shape is not None}
    with pytest.raises(WsurgeryError) as caught:
        find_symmetry(shapes, None, "net")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "net" in str(caught.value)


def test_what_may_be_an_embedding_is_refused_in_an_mlp():
    network = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    with pytest.raises(WsurgeryError, match=r"0\.weight .* may be an embedding"):
        wsurgery.open(network).permute(seed=1).state_dict()


def test_every_permutation_of_a_group_may_be_drawn():
    """Of three units all six orders, about equally often."""
    tensors = {"0.weight": np.arange(6, dtype="f4").reshape(3, 2), "1.weight": np.ones((2, 3), "f4")}
    chain = wsurgery.open(tensors)
    drawn = [tuple(chain.permute(seed=seed).state_dict()["0.weight"][:, 0]) for seed in range(600)]
    assert len(set(drawn)) == 6
    assert min(drawn.count(each) for each in set(drawn)) > 60


@pytest.mark.parametrize("name", NETWORKS)
def test_a_damaged_header_is_refused_by_name_or_fits(name):
    """Tensors in turn are missing, or have another shape."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in NETWORKS[name]().state_dict().items()}
    for key in [*list(shapes)[:8], *list(shapes)[8::29]]:
        for shape in (None, (), (5,), (2, 9, 1, 1)):
            changed = {**shapes, key: shape} if shape is not None else {k: v for k, v in shapes.items() if k != key}
            with suppress(WsurgeryError):
                for own, axes in find_symmetry(changed, None, "net").axes.items():
                    assert changed[own][: len(axes)] == tuple(sum(length for _, length in axis) for axis in axes)
