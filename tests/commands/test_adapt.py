"""adapt as a user runs it, against the networks that timm builds for the new images."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4, "img_size": 64}


def architecture(path) -> dict:
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["wsurgery"])["architecture"]


@pytest.fixture
def network(tmp_path, invoke):
    """Make the file of a timm network without the zeros that some tables of positions begin with."""

    def make(name: str, **args: object):
        given = [word for key, value in args.items() for word in ("--arg", f"{key}={value}")]
        invoke("init", name, *given, "-o", tmp_path / "fresh")
        invoke("add-noise", tmp_path / "fresh", "--std", 1, "-o", tmp_path / "network")
        return tmp_path / "network"

    return make


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm, about how it calls PyTorch
@pytest.mark.parametrize("size", [64, 96, 48])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", SMALL),
        ("vit_small_patch16_dinov3", {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 64, "use_abs_pos_emb": True}),
        ("deit_tiny_distilled_patch16_224", SMALL),
        ("deit3_small_patch16_224", SMALL),
        ("cait_xxs24_224", {**SMALL, "depth_token_only": 1}),
        ("beit_base_patch16_224", SMALL),
        ("beit_base_patch16_224", {**SMALL, "use_shared_rel_pos_bias": True, "use_rel_pos_bias": False}),
        ("swin_tiny_patch4_window7_224",
         {**SMALL, "img_size": 128, "depths": (1, 1, 1), "num_heads": (1, 1, 2), "window_size": 4}),
    ],
)  # fmt: skip
def test_the_result_is_what_timm_makes_of_the_weights(name, args, size, network, invoke, tmp_path):
    if name.startswith("swin"):
        args = {key: value for key, value in args.items() if key != "depth"}
        size *= 2
    path, out = network(name, **args), tmp_path / "out"
    invoke("adapt", path, "--in-chans", 1, "--img-size", size, "-o", out)
    model = timm.create_model(name, in_chans=1, **{**args, "img_size": size})
    found = load_file(out)
    model.load_state_dict(found, strict=True)
    assert architecture(out)["in_chans"] == 1
    assert architecture(out)["args"]["img_size"] == size
    before = load_file(path)
    by_timm = sys.modules[type(model).__module__].checkpoint_filter_fn(dict(before), model)
    if name.startswith("cait"):  # whose filter only renames
        by_timm["pos_embed"] = resample_abs_pos_embed(before["pos_embed"], [size // 16] * 2, num_prefix_tokens=0)
    for key, value in found.items():
        if value.shape == before[key].shape:
            assert torch.equal(value, before[key]), key
        elif key != "patch_embed.proj.weight":
            torch.testing.assert_close(value, by_timm[key], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of timm, about how it calls PyTorch
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", SMALL),
        ("beit_base_patch16_224", SMALL),
        ("swin_tiny_patch4_window7_224",
         {"embed_dim": 32, "num_classes": 4, "img_size": 128, "depths": (1, 1, 1), "num_heads": (1, 1, 2), "window_size": 4}),
    ],
)  # fmt: skip
def test_images_need_not_be_square(name, args, network, invoke, tmp_path):
    path, out, back = network(name, **args), tmp_path / "out", tmp_path / "back"
    invoke("adapt", path, "--img-size", "64x96", "-o", out)
    model = timm.create_model(name, **{**args, "img_size": (64, 96)})
    found = load_file(out)
    model.load_state_dict(found, strict=True)
    assert architecture(out)["args"]["img_size"] == [64, 96]
    by_timm = sys.modules[type(model).__module__].checkpoint_filter_fn(dict(load_file(path)), model)
    for key, value in found.items():
        torch.testing.assert_close(value, by_timm[key], rtol=0, atol=1e-5)
    if name.startswith("swin"):  # whose windows stayed square
        return
    invoke("adapt", out, "--img-size", "96x64", "-o", back)
    timm.create_model(name, **{**args, "img_size": (96, 64)}).load_state_dict(load_file(back), strict=True)


@pytest.mark.parametrize("name", ["resnet18d", "mobilenetv3_small_050"])
@pytest.mark.parametrize("old", [1, 5, 12])
def test_from_any_number_of_channels(name, old, invoke, tmp_path):
    invoke("init", name, "--in-chans", old, "-o", tmp_path / "x")
    invoke("adapt", tmp_path / "x", "--in-chans", 3, "-o", tmp_path / "y")
    before, after = load_file(tmp_path / "x"), load_file(tmp_path / "y")
    timm.create_model(name, in_chans=3).load_state_dict(after, strict=True)
    for key, value in after.items():
        if value.shape == before[key].shape:
            assert torch.equal(value, before[key])
        else:
            torch.testing.assert_close(value, adapt_input_conv(3, before[key], base_chans=old))


def test_a_convolution_behind_space_to_depth_goes_to_one_channel(invoke, tmp_path):
    invoke("init", "tresnet_m", "--num-classes", 2, "-o", tmp_path / "x")
    invoke("adapt", tmp_path / "x", "--in-chans", 1, "-o", tmp_path / "y")
    timm.create_model("tresnet_m", num_classes=2, in_chans=1).load_state_dict(load_file(tmp_path / "y"), strict=True)
    refused = invoke("adapt", tmp_path / "x", "--in-chans", 4, "-o", tmp_path / "z", check=False)
    assert refused.exit_code == 2
    assert "several pixels at once" in refused.stderr


def test_the_same_size_and_channels_copy_every_bit(network, invoke, tmp_path):
    path = network("vit_tiny_patch16_224", **SMALL)
    invoke("adapt", path, "--in-chans", 3, "--img-size", 64, "-o", tmp_path / "same")
    for key, value in load_file(path).items():
        assert torch.equal(load_file(tmp_path / "same")[key], value), key
    assert architecture(tmp_path / "same") == architecture(path)


@pytest.mark.parametrize("name", ["test_resnet", "crossvit_9_240", "mobileone_s0"])
def test_every_convolution_that_meets_the_image_is_adapted(name, network, invoke, tmp_path):
    path = network(name)
    invoke("adapt", path, "--in-chans", 5, "-o", tmp_path / "out")
    state = load_file(tmp_path / "out")
    timm.create_model(name, in_chans=5).load_state_dict(state, strict=True)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3)])
def test_where_timm_names_two_convolutions_that_meet_the_image_both_are_adapted(old, new, invoke, tmp_path):
    """And of one channel those that are depthwise in the same block are left."""
    torch.manual_seed(0)
    network = timm.create_model("repvgg_a0", in_chans=old, num_classes=2)
    first = [f"{name}.weight" for name in network.pretrained_cfg["first_conv"]]
    assert len(first) == 2
    weights = (
        {**network.state_dict(), "stem.aside.weight": torch.randn(48, 1, 3, 3)} if old == 1 else network.state_dict()
    )
    entry = {"name": "repvgg_a0", "num_classes": 2, "in_chans": old, "pretrained_cfg": network.pretrained_cfg}
    metadata = {"wsurgery": json.dumps({"architecture": entry, "log": []}, default=list)}
    save_file(dict(weights), tmp_path / "x", metadata)
    invoke("adapt", tmp_path / "x", "--in-chans", new, "-o", tmp_path / "y")
    made = load_file(tmp_path / "y")
    for name, x in weights.items():
        expected = (
            adapt_input_conv(new, x) if name in first and new == 1 else x.repeat(1, 3, 1, 1) / 3 if name in first else x
        )
        torch.testing.assert_close(made[name], expected)


def test_a_pipe_a_dry_run_and_a_replay(network, invoke, shell, tmp_path):
    line = (
        "wsurgery init resnet18 --width 0.1 --num-classes 3 | wsurgery adapt --in-chans 1 > out"
        " && wsurgery replay out && wsurgery adapt out --in-chans 2 --dry-run"
    )
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[-1] == "  conv1.weight F32 (64, 2, 7, 7)"
    assert architecture(tmp_path / "out") == {
        "name": "resnet18", "num_classes": 3, "in_chans": 1, "args": {"channels": [6, 13, 26, 51]},
    }  # fmt: skip


def tensors(*shapes: tuple[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape) for name, shape in shapes}


PATCHES = ("patch_embed.proj.weight", (8, 3, 16, 16))


@pytest.mark.parametrize(
    ("content", "arguments", "status", "words"),
    [
        (tensors(PATCHES), [], 2, "--in-chans, --img-size or both"),
        (tensors(PATCHES), ["--img-size", "64x"], 2, "height and width as 224x320"),
        (tensors(PATCHES), ["--img-size", 0], 2, "--img-size 0"),
        (tensors(PATCHES), ["--img-size", 64], 2, "no table of positions"),
        *(
            (tensors(PATCHES, (name, (8, 196))), ["--img-size", 64], 1, f"{name} (8, 196) depends")
            for name in (  # of Mixer, ResMLP and gMLP
                "blocks.0.mlp_tokens.fc1.weight", "blocks.0.linear_tokens.weight", "blocks.0.mlp_channels.gate.proj.weight",
            )
        ),
        (tensors(PATCHES, ("pos_embed", (1, 16, 8))), ["--img-size", 9], 2, "a patch of 16 pixels"),
        (tensors(PATCHES, ("pos_embed", (1, 15, 8))), ["--img-size", 64], 1, "pos_embed (1, 15, 8) depends"),
        (tensors(PATCHES, ("blocks.0.attn.rel_pos_h", (27, 8))), ["--img-size", 64], 1, "rel_pos_h (27, 8) depends"),
        (tensors(("patch_embed.proj.weight", (8, 3, 7, 7)), ("pos_embed", (1, 16, 8))), ["--img-size", 64], 2, "patches"),
        (tensors(("stem.conv.weight", (8, 3, 3, 3)), ("pos_embed", (1, 16, 8))), ["--img-size", 64], 2, "stem.conv.weight"),
        (
            {**tensors(PATCHES, ("blocks.0.attn.relative_position_bias_table", (49, 8))),
             "blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64)},
            ["--img-size", 64], 1, "wsurgery drop --only '*relative_position_index' first",
        ),
        (tensors(PATCHES, ("layers.0.blocks.0.attn.relative_position_bias_table", ())), ["--img-size", 64], 1, "() depends"),
        (tensors(PATCHES, ("pos_embed", (1, 15, 8)), ("cls_token", (8,))), ["--img-size", 64], 1, "pos_embed (1, 15, 8)"),
        (tensors(("conv1.weight", (8, 0, 3, 3))), ["--in-chans", 1], 2, "reads no channels"),
        (tensors(("fc.weight", (8, 3))), ["--in-chans", 1], 2, "no convolution meets the image"),
        ({"conv1.weight": torch.ones(4, 3, 7, 7, dtype=torch.int8)}, ["--in-chans", 1], 1, "conv1.weight is I8"),
        (tensors(("conv1.weight", (4, 1, 7, 7)), ("conv2.weight", (4, 1, 3, 3))), ["--in-chans", 3], 2, "conv1.weight and"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_remedy(content, arguments, status, words, invoke, tmp_path):
    save_file(content, tmp_path / "x")
    done = invoke("adapt", tmp_path / "x", *arguments, "-o", tmp_path / "out", check=False)
    assert done.exit_code == status, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_halves_stay_halves(network, invoke, tmp_path):
    path = network("vit_tiny_patch16_224", **SMALL)
    invoke("cast", path, "--to", "bf16", "-o", tmp_path / "half")
    invoke("adapt", tmp_path / "half", "--in-chans", 1, "--img-size", 96, "-o", tmp_path / "out")
    assert {value.dtype for value in load_file(tmp_path / "out").values()} == {torch.bfloat16}
    summed = load_file(tmp_path / "half")["patch_embed.proj.weight"].float().sum(1, keepdim=True).bfloat16()
    np.testing.assert_array_equal(load_file(tmp_path / "out")["patch_embed.proj.weight"].float(), summed.float())
