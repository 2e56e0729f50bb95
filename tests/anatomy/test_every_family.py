"""The smallest network of each of timm's files: its blocks, its roles, and a transplant of each of its lower parts."""

from pathlib import Path

import pytest
import timm
import torch

from tests.anatomy.sweep import (
    BLOCK_EXCEPTIONS,
    ROLE_EXCEPTIONS,
    Architecture,
    describe,
    excepted,
    on_meta,
    wrong_blocks,
    wrong_roles,
)
from wsurgery.anatomy import Selection, block_map, first_convolution
from wsurgery.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from wsurgery.checkpoint.header import format_header
from wsurgery.errors import UsageError
from wsurgery.operations.transfusion import transfuse_into

NAMES = (
    "beit_base_patch16_224", "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_lite_tiny", "convit_tiny",
    "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s",
    "cspnext_tiny", "davit_tiny", "deepseek_vit_412m", "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet_ln", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_167m", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0",
    "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_resnet_v2",
    "inception_v3", "inception_v4", "lcnetv2_small", "levit_conv_128s", "lowformer_b0", "test_mambaout", "test_coatnet",
    "poolformerv2_s12", "gmlp_ti16_224", "mobilenetv3_small_050", "mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap", "nasnetalarge", "nest_tiny_jx", "nextvit_small", "test_nfnet", "pit_ti_224",
    "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m1",
    "res2next50", "resnest14d", "test_resnet", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18",
    "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_384", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m",
    "twins_svt_small", "vgg11", "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224", "test_vit_relpos",
    "samvit_base_patch16_224", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim_dw", "legacy_xception",
    "xception41p", "xcit_nano_12_p8_384",
    # What is special in its family.
    "coat_mini", "convnext_tiny_hnf", "lambda_resnet26t", "tf_efficientnet_cc_b0_4e", "vgg11_bn", "vit_base_patch32_clip_224",
    "vit_srelpos_small_patch16_224", "vit_small_patch16_rope_mixed_224",
)  # fmt: skip
NO_IMAGE_CONVOLUTION = {"csatv2", "gemma4_vit_167m", "naflexvit_base_patch16_parfac_gap", "tresnet_m"}


@pytest.fixture(scope="module", params=[name for name in NAMES if timm.is_model(name)])
def architecture(request) -> Architecture:
    return describe(request.param, on_meta(request.param))


def test_blocks_are_timms_coarse_groups_in_their_order(architecture):
    difference = wrong_blocks(architecture)
    assert bool(difference) == bool(excepted(architecture.name, BLOCK_EXCEPTIONS)), difference


def test_roles_are_the_module_types(architecture):
    wrong = wrong_roles(architecture)
    assert {name for name in wrong if not excepted(f"{architecture.name}:{name}", ROLE_EXCEPTIONS)} == set(), wrong


def test_the_first_convolution_meets_the_image(architecture):
    if architecture.name in NO_IMAGE_CONVOLUTION:
        with pytest.raises(UsageError, match="no convolution meets the image"):
            first_convolution(architecture.shapes)
    else:
        first = first_convolution(architecture.shapes)
        assert architecture.shapes[first][1] == 3
        assert first == next(tensor.name for tensor in architecture.tensors if tensor.role == "conv")


def checkpoint(path: Path, architecture: Architecture) -> Checkpoint:
    """Open a checkpoint of zeros, which takes no room on a disk that keeps holes."""
    tensors = [TensorInfo(t.name, t.dtype, t.shape, 0, 0).placed(0) for t in architecture.tensors]
    header = format_header(tensors, {})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor.nbytes for tensor in tensors))
    return open_checkpoint(path)


def test_each_lower_part_goes_into_a_network_of_other_classes(architecture, tmp_path):
    model = on_meta(architecture.name, num_classes=5)
    blocks = block_map(architecture.shapes)
    order = list(dict.fromkeys(blocks.values()))
    with (
        checkpoint(tmp_path / "source", architecture) as source,
        checkpoint(tmp_path / "into", describe(architecture.name, model)) as into,
    ):
        for last in (block for block in order if block != "head"):
            edits = transfuse_into(source, into, selection=Selection(upto=last)).tensors
            kept = order[: order.index(last) + 1]
            assert {edit.tensor.name for edit in edits if edit.source is source} == {
                name for name, block in blocks.items() if block in kept
            }
            state = {edit.tensor.name: torch.empty(edit.tensor.shape, device="meta") for edit in edits}
            model.load_state_dict(state, strict=True)
