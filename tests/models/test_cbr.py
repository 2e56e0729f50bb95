"""The CBR family against the paper's table, and against a forward pass written out."""

import subprocess
import sys

import pytest
import timm
import torch
from torch.nn import functional as F

from wsurgery.anatomy import block_map
from wsurgery.models import cbr_large_t, cbr_tiny

# kernel, widths, whether the last block pools, parameters with five classes
PAPER = {
    "cbr_large_t": (7, [32, 64, 128, 256, 512], False, 8_539_173),
    "cbr_large_w": (7, [64, 128, 256, 512], True, 8_443_461),
    "cbr_small": (7, [32, 64, 128, 256], True, 2_114_341),
    "cbr_tiny": (5, [64, 128, 256, 512], True, 4_310_085),
}


@pytest.mark.parametrize("name", PAPER)
def test_kernels_widths_and_parameter_counts_are_the_papers(name):
    kernel, widths, _, parameters = PAPER[name]
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=5)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for i, (inside, outside) in enumerate(zip([3, *widths[:-1]], widths, strict=True), 1):
        assert shapes[f"block{i}.conv.weight"] == (outside, inside, kernel, kernel)
        assert shapes[f"block{i}.bn.running_var"] == (outside,)
    assert shapes["fc.weight"] == (5, widths[-1])
    assert list(dict.fromkeys(block_map(shapes).values())) == [f"block{i + 1}" for i in range(len(widths))] + ["head"]


def test_the_narrow_tiny_has_the_main_texts_count():
    # 1,076,480 is all convolutions but the first, and the head without its bias.
    with torch.device("meta"):
        weights = timm.create_model("cbr_tiny_narrow", num_classes=5).state_dict()
    counted = [f"block{i}.conv.weight" for i in (2, 3, 4)] + ["fc.weight"]
    assert sum(weights[name].numel() for name in counted) == 1_076_480


@pytest.mark.parametrize("name", PAPER)
def test_a_block_is_convolution_batch_norm_relu_and_pool(name):
    kernel, widths, last_pool, _ = PAPER[name]
    generator = torch.Generator().manual_seed(0)
    model = timm.create_model(name, num_classes=3, width=0.1).eval()
    state = {
        key: torch.rand(value.shape, generator=generator) + (-0.5 if "conv" in key or "fc" in key else 0.5)
        for key, value in model.state_dict().items()
        if value.is_floating_point()
    }
    model.load_state_dict(state, strict=False)
    x = images = torch.rand(2, 3, 32, 32, generator=generator)
    for i in range(1, len(widths) + 1):
        x = F.conv2d(x, state[f"block{i}.conv.weight"], padding=kernel // 2)
        mean, var, gamma, beta = (
            state[f"block{i}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = ((x - mean) / (var + 1e-5).sqrt() * gamma + beta).clamp(min=0)
        if i < len(widths) or last_pool:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
    expected = x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_importing_the_models_is_enough_for_timm_to_know_them():
    line = "import timm, wsurgery.models; print(timm.create_model('cbr_tiny', num_classes=5, width=0.1).num_classes)"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, timeout=120)
    assert done.stdout == "5\n", done.stderr


@pytest.mark.parametrize(("name", "reductions"), [("cbr_tiny", [2, 4, 8, 16]), ("cbr_large_t", [2, 4, 8, 16, 16])])
def test_features_only_gives_every_block(name, reductions):
    model = timm.create_model(name, width=0.1, features_only=True)
    features = model(torch.zeros(1, 3, 32, 32))
    assert model.feature_info.reduction() == reductions
    assert [tuple(x.shape[2:]) for x in features] == [(32 // reduction,) * 2 for reduction in reductions]
    assert [x.shape[1] for x in features] == model.feature_info.channels()
    chosen = timm.create_model(name, width=0.1, features_only=True, out_indices=(1, 3))(torch.zeros(1, 3, 32, 32))
    assert [x.shape for x in chosen] == [features[1].shape, features[3].shape]


def test_the_head_can_be_replaced_and_left_out():
    model = cbr_tiny(num_classes=4, width=0.1).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert model(images).shape == (2, 4)
    model.reset_classifier(7)
    assert (model.num_classes, model.get_classifier().out_features, model(images).shape) == (7, 7, (2, 7))
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert torch.equal(model(images), pooled)
    bare = cbr_tiny(num_classes=0, width=0.1)
    assert not any(name.startswith("fc") for name in bare.state_dict())
    assert bare(images).shape == (2, bare.num_features)


def test_grey_images_and_the_factor_on_the_widths():
    model = cbr_large_t(num_classes=2, in_chans=1, width=0.25)
    assert [model.get_submodule(name).conv.out_channels for name in model.block_names] == [8, 16, 32, 64, 128]
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 2)
    assert cbr_tiny(width=0.0).num_features == 1
