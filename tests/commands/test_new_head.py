"""new-head on every kind of head that timm's networks have."""

import pytest
import timm
import torch
from safetensors.torch import load_file

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
        from safetensors.torch import save_file

        save_file(load_file(path), path)
    done = invoke("new-head", path, "--num-classes", 7, "-o", tmp_path / "y", check=False)
    assert done.exit_code == 2
    assert "wsurgery init ARCH --num-classes 7" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "y").exists()
