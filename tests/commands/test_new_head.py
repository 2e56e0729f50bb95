"""new-head on every kind of head that timm's networks have."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

# The classifiers: a linear layer, a convolution of 1×1, two of a distilled transformer, one a branch, behind attention.
KINDS = {
    "test_vit": ({}, ["head"]),
    "test_efficientnet": ({}, ["classifier"]),
    "dpn48b": ({}, ["classifier"]),
    "levit_128s": ({}, ["head.linear", "head_dist.linear"]),
    "crossvit_9_240": ({}, ["head.0", "head.1"]),
    "test_vit2": ({"global_pool": "map", "class_token": False}, ["head"]),
}


@pytest.mark.parametrize("name", KINDS)
def test_only_the_classifiers_are_new_and_the_file_loads_strictly(name, invoke, tmp_path):
    args, modules = KINDS[name]
    given = [word for key, value in args.items() for word in ("--arg", f"{key}={value}")]
    invoke("init", name, *given, "-o", tmp_path / "x")
    invoke("new-head", tmp_path / "x", "--num-classes", 7, "-o", tmp_path / "y")
    before, after = load_file(tmp_path / "x"), load_file(tmp_path / "y")
    timm.create_model(name, num_classes=7, **args).load_state_dict(after, strict=True)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{module}.{part}" for module in modules for part in ("weight", "bias")}


@pytest.mark.parametrize("known", [True, False])
def test_without_a_classifier_the_way_to_one_is_told(known, invoke, tmp_path):
    """Attention pooling stands in the head too, and is no classifier."""
    given = ["--arg", "global_pool=map", "--arg", "class_token=False", "--num-classes", 0]
    path = tmp_path / "x"
    invoke("init", "test_vit2", *given, "-o", path)
    if not known:
        save_file(load_file(path), path)
    done = invoke("new-head", path, "--num-classes", 7, "-o", tmp_path / "y", check=False)
    assert done.exit_code == 2
    assert "wsurgery init ARCH --num-classes 7" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("classified", [True, False])
def test_attention_pooling_of_transformers_is_no_classifier(classified, invoke, tmp_path):
    """SigLIP's `vision_model.head` pools; what reads it is `classifier`, where there is one."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        text_config={**sizes, "vocab_size": 8, "bos_token_id": 0, "eos_token_id": 1},
        num_labels=3,
    )
    network = transformers.SiglipForImageClassification(config)
    before = {name: x for name, x in network.state_dict().items() if classified or not name.startswith("classifier.")}
    save_file(before, tmp_path / "x")
    done = invoke("new-head", tmp_path / "x", "--num-classes", 5, "-o", tmp_path / "y", check=False)
    if not classified:
        assert "has no head to replace" in done.stderr
        return
    config.num_labels = 5
    transformers.SiglipForImageClassification(config).load_state_dict(after := load_file(tmp_path / "y"), strict=True)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_timm_s_siglip_has_the_shapes_of_reset_classifier(invoke, tmp_path):
    sizes = {"img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 2}
    network = timm.create_model("vit_base_patch16_siglip_224", num_classes=3, **sizes)
    save_file(network.state_dict(), tmp_path / "x")
    invoke("new-head", tmp_path / "x", "--num-classes", 5, "-o", tmp_path / "y")
    network.reset_classifier(5)
    after = load_file(tmp_path / "y")
    assert {name: x.shape for name, x in network.state_dict().items()} == {name: x.shape for name, x in after.items()}
    before = load_file(tmp_path / "x")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}
