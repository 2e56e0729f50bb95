"""new-head on every kind of head that timm's networks have."""

import json

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from timm.models.volo import VOLO

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


LANGUAGE = {  # the file has GPT-2's table as that of the head, and T5's as that of the decoder
    "GPT2": ("GPT2LMHeadModel", {"n_embd": 8, "n_head": 2, "n_layer": 2}),
    "T5": ("T5ForConditionalGeneration", {"d_model": 8, "d_kv": 4, "num_heads": 2, "num_layers": 1, "d_ff": 16}),
}


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("family", LANGUAGE)
def test_an_embedding_that_is_tied_to_the_head_stays(family, piped, invoke, shell, tmp_path):
    transformers = pytest.importorskip("transformers")
    network, sizes = LANGUAGE[family]
    model = getattr(transformers, network)(getattr(transformers, f"{family}Config")(vocab_size=50, **sizes))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    save_model(model, tmp_path / "x")
    if piped:
        done = shell("cat x | wsurgery new-head --num-classes 5 > y", tmp_path)
        said = done.stderr.decode()
    else:
        said = invoke("new-head", tmp_path / "x", "--num-classes", 5, "-o", tmp_path / "y").stderr
    assert "is no longer tied to" in said
    after = load_file(tmp_path / "y")
    with safe_open(tmp_path / "y", "pt") as file:
        aliases = {name: after[tensor] for name, tensor in file.metadata().items() if tensor in after}
    assert aliases.keys().isdisjoint(after)
    after |= aliases
    for name, x in before.items():
        if name == "lm_head.weight":
            assert after[name].shape == (5, 8)
        else:
            assert torch.equal(after[name], x), name
    assert after.keys() == before.keys()


def test_two_classifiers_that_are_tied_stay_tied(invoke, tmp_path):
    network = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1, embed_dim=24)
    network.head_dist = network.head
    save_model(network, tmp_path / "x")
    said = invoke("new-head", tmp_path / "x", "--num-classes", 5, "-o", tmp_path / "y").stderr
    assert "tied" not in said
    network.reset_classifier(5)
    network.head_dist = network.head
    load_model(network, tmp_path / "y", strict=True)


def test_what_was_frozen_with_the_head_is_frozen_under_its_own_name(invoke, tmp_path):
    """And the fresh head is not."""
    x = torch.ones(50, 8)
    save_file(
        {"lm_head.weight": x, "model.norm.weight": torch.ones(8)},
        tmp_path / "x",
        metadata={"model.embed.weight": "lm_head.weight"},
    )
    invoke("freeze-spec", tmp_path / "x", "--only", "model.embed.*", "-o", tmp_path / "frozen")
    invoke("new-head", tmp_path / "frozen", "--num-classes", 5, "-o", tmp_path / "y")
    with safe_open(tmp_path / "y", "pt") as file:
        assert json.loads(file.metadata()["wsurgery"])["freeze"] == ["model.embed.*"]


def roberta(classes):
    transformers = pytest.importorskip("transformers")
    config = transformers.RobertaConfig(
        vocab_size=9,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=classes,
    )
    return transformers.RobertaForSequenceClassification(config)


SMALL = {"depth": 1, "embed_dim": 24}
AS_WIDE = {  # as many classes as the head's hidden layer has units, or as the other classifier has inputs
    "convnext": lambda n: timm.create_model("convnext_atto", num_classes=n, dims=(8, 8, 8, 8), head_hidden_size=24),
    "deit": lambda n: timm.create_model("deit_tiny_distilled_patch16_224", num_classes=n, **SMALL),
    "roberta": roberta,
    "volo": lambda n: VOLO(
        (2,), img_size=32, num_classes=n, embed_dims=(24,), num_heads=(2,), outlook_attention=(False,), downsamples=(False,)
    ),
}  # fmt: skip


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", AS_WIDE)
def test_a_hidden_layer_with_a_row_a_class_stays(name, recorded, invoke, tmp_path):
    before = AS_WIDE[name](24).state_dict()
    architecture = {"name": name, "num_classes": 24, "in_chans": 3, "args": {}}
    metadata = {"wsurgery": json.dumps({"architecture": architecture})} if recorded else None
    save_file(before, tmp_path / "x", metadata=metadata)
    invoke("new-head", tmp_path / "x", "--num-classes", 7, "-o", tmp_path / "y")
    after, wanted = load_file(tmp_path / "y"), AS_WIDE[name](7).state_dict()
    assert {key: x.shape for key, x in after.items()} == {key: x.shape for key, x in wanted.items()}
    assert all(torch.equal(x, before[key]) for key, x in after.items() if x.shape == before[key].shape)


def test_where_the_names_do_not_tell_either_it_is_refused(invoke, tmp_path):
    tensors = {f"classifier.{i}.weight": torch.randn(24, 24) for i in (0, 2)}
    save_file({"layer1.0.conv1.weight": torch.ones(8, 3, 3, 3), **tensors}, tmp_path / "x")
    done = invoke("new-head", tmp_path / "x", "--num-classes", 7, "-o", tmp_path / "y", check=False)
    assert done.exit_code == 1
    assert "classifier.0.weight (24, 24) may be the classifier, or feed classifier.2.weight (24, 24)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "y").exists()
