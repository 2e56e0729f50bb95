"""Wrappers are taken off whatever they stand in: what is left are the names that the network itself has."""

import pytest
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from wsurgery.foreign.wrappers import unwrapped

RESNET = list(torchvision.models.resnet18().state_dict())
TRUNK = [name for name in RESNET if not name.startswith("fc.")]
HEAD = ["fc.weight", "fc.bias"]
MLP = ["fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"]


def under(prefix: str, names: list[str]) -> list[str]:
    return [prefix + name for name in names]


def test_what_torch_s_own_wrappers_add_is_taken_off() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    own = list(network.state_dict())
    for wrapped in (
        AveragedModel(network),
        nn.DataParallel(network),
        torch.compile(network),
        torch.compile(nn.DataParallel(network)),
        nn.DataParallel(torch.compile(network)),
        AveragedModel(torch.compile(network)),
    ):
        assert list(unwrapped(wrapped.state_dict()).names) == own


@pytest.mark.parametrize(
    ("names", "left", "prefix", "inner"),
    [
        (under("module._orig_mod.", RESNET), RESNET, "module._orig_mod.", ()),
        (under("_fsdp_wrapped_module.", RESNET), RESNET, "_fsdp_wrapped_module.", ()),
        (under("_forward_module.model.", RESNET), RESNET, "_forward_module.model.", ()),
        (under("module._fsdp_wrapped_module._orig_mod.", RESNET), RESNET, "module._fsdp_wrapped_module._orig_mod.", ()),
        (
            [name.replace("layer1.0.", "layer1.0._checkpoint_wrapped_module.") for name in RESNET],
            RESNET,
            "",
            ("_checkpoint_wrapped_module.",),
        ),
        ([*under("backbone._orig_mod.", TRUNK), *HEAD], RESNET, "backbone.", ("_orig_mod.",)),
        ([*under("encoder.module.", TRUNK), *HEAD], RESNET, "encoder.", ("module.",)),
        ([*under("backbone.", TRUNK), *HEAD], RESNET, "backbone.", ()),
        (RESNET, RESNET, "", ()),
        (["module.weight", "other.weight"], ["module.weight", "other.weight"], "", ()),
        (["a.weight", "_orig_mod.a.weight"], ["a.weight", "_orig_mod.a.weight"], "", ()),  # two would become one
        (["a.module.weight", "a.bias"], ["a.module.weight", "a.bias"], "", ()),
        ([], [], "", ()),
    ],
)
def test_names_are_those_of_the_network(names: list[str], left: list[str], prefix: str, inner: tuple[str, ...]) -> None:
    found = unwrapped(names)
    assert sorted(found.names) == sorted(left)
    assert sorted(found.names.values()) == sorted(names)
    assert (found.prefix if len(names) > 2 and prefix else prefix, found.inner, found.left_out) == (prefix, inner, ())


@pytest.mark.parametrize(
    ("names", "left"),
    [
        # Lightning
        ([*under("model.", RESNET), "criterion.pos_weight", "valid_auc.confmat"], RESNET),
        ([*under("model._orig_mod.", RESNET), "loss_fn.weight", "train_metrics.f1.tp"], RESNET),
        ([*under("net.", RESNET), *under("ema_model.module.", RESNET), "ema_model.n_averaged"], RESNET),
        # MoCo 1, 2 and 3
        ([*under("module.encoder_q.", RESNET), *under("module.encoder_k.", RESNET), "module.queue", "module.queue_ptr"], TRUNK),
        ([*under("module.encoder_q.", TRUNK + MLP), *under("module.encoder_k.", TRUNK + MLP), "module.queue"], TRUNK),
        ([*under("module.base_encoder.", TRUNK + MLP), *under("module.momentum_encoder.", TRUNK), "module.predictor.0.bias"],
         TRUNK),
        # DINO and DINOv2
        ([*under("module.backbone.", TRUNK), "module.head.mlp.0.weight", "module.head.last_layer.weight_v"], TRUNK),
        ([*under("backbone.", TRUNK), "dino_head.mlp.0.weight", "ibot_head.mlp.0.weight"], TRUNK),
        # SimCLR: sthalles', Spijkervet's, lightly's
        (under("backbone.", TRUNK + MLP), TRUNK),
        ([*under("encoder.", TRUNK), "projector.0.weight", "projector.2.weight"], TRUNK),
        ([*under("backbone.", TRUNK), "projection_head.layers.0.weight"], TRUNK),
        # BYOL: sthalles' and lucidrains'
        ([*under("encoder.", TRUNK), "projetion.net.0.weight"], TRUNK),
        (
            [
                *under("online_encoder.net.", TRUNK),
                "online_encoder.projector.0.weight",
                *under("target_encoder.net.", TRUNK),
                "online_predictor.0.weight",
            ],
            TRUNK,
        ),
        # SwAV, Barlow Twins, solo-learn
        ([*under("module.", TRUNK), "module.projection_head.0.weight", "module.prototypes.weight"], TRUNK),
        ([*under("module.backbone.", TRUNK), "module.projector.0.weight", "module.bn.running_mean"], TRUNK),
        ([*under("backbone.", TRUNK), *under("momentum_backbone.", TRUNK), "projector.0.weight", "fc.weight", "fc.bias"], RESNET),
        # MAE
        (["cls_token", "pos_embed", "blocks.0.norm1.weight", "mask_token", "decoder_blocks.0.norm1.weight", "decoder_pred.bias"],
         ["cls_token", "pos_embed", "blocks.0.norm1.weight"]),
    ],
)  # fmt: skip
def test_what_is_of_the_training_is_left_out_and_said(names: list[str], left: list[str]) -> None:
    found = unwrapped(names)
    assert sorted(found.names) == sorted(left)
    assert sorted([*found.names.values(), *found.left_out]) == sorted(names)


@pytest.mark.parametrize(
    "names",
    [
        ["backbone.conv1.weight", "neck.conv.weight", "head.weight"],  # the neck is of the network
        ["model.conv1.weight", "model.fc.weight", "other.conv1.weight"],  # two networks: which, only the user knows
        ["features.0.weight", "features.0.bias", "criterion.weight"],
        ["encoder.layer.0.weight", "embeddings.weight", "fc.weight"],
        ["mask_token", "blocks.0.weight"],
        # Whisper's and wav2vec's classifiers read a projector, CLIP's towers end in a projection
        [*under("encoder.", TRUNK), "projector.weight", "projector.bias", "classifier.weight", "classifier.bias"],
        [*under("encoder.", TRUNK), "projector.weight", "projector.bias"],
        [
            *under("backbone.", TRUNK),
            "projector.0.weight",
            "projector.2.weight",
            "classifier.weight",
            "classifier.bias",
        ],
        [*under("model.", TRUNK), "projection"],
        [*under("encoder.", TRUNK), "predictor.weight"],
        [*under("backbone.", TRUNK), "center"],
    ],
)
def test_what_may_be_of_the_network_stays(names: list[str]) -> None:
    assert list(unwrapped(names).names) == names
