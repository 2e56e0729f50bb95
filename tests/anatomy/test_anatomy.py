"""Blocks and roles against timm's own grouping and module types, and the selectors."""

import re
import warnings
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby

import pytest
import torch
import torch.nn.utils.prune
import torchvision

import wsurgery.models  # noqa: F401  (registers the CBR networks)
from tests.anatomy.sweep import describe, on_meta, wrong_blocks, wrong_roles
from wsurgery.anatomy import Selection, block_map, find_block, first_convolution, globs_for, role_map
from wsurgery.anatomy.blocks import UNPLACED
from wsurgery.checkpoint import TensorInfo
from wsurgery.errors import UsageError

MODELS = ("resnet18", "vgg11_bn", "densenet121", "vit_tiny_patch16_224", "inception_v3", "coat_lite_tiny", "cbr_small")
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16",
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_order_of_names_does_not_matter(name):
    shapes = shapes_of(on_meta(name))
    assert list(block_map(shapes).values()) == list(block_map(dict(sorted(shapes.items(), reverse=True))).values())


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_s_networks_are_placed_in_the_order_of_definition(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        arguments = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        described = describe(name, torchvision.models.get_model(name, weights=None, **arguments))
    assert wrong_blocks(described) is None
    assert wrong_roles(described) == {}
    assert block_map(described.shapes)[described.tensors[-1].name] == "head"


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11_bn", "tf_efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_a_grey_image_is_met_by_a_convolution_that_is_not_depthwise(name):
    described = describe(name, on_meta(name, in_chans=1))
    first = next(tensor for tensor in described.tensors if len(tensor.shape) == 4)
    assert first.shape[1] == 1
    assert first_convolution(described.shapes) == first.name
    assert wrong_roles(described) == {}


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("embeddings.position_embeddings.weight", (512, 768), "position"),
        ("embeddings.word_embeddings.weight", (30522, 768), "embedding"),
        ("patch_embed.input_proj.weight", (768, 768), "linear"),
        ("blocks.0.attn.rel_pos.relative_position_bias_table", (169, 3), "position"),
        ("attention.query.weight", (768, 768), "linear"),
        ("layer.0.SelfAttention.relative_attention_bias.weight", (32, 8), "position"),
        ("visual.positional_embedding", (50, 768), "position"),
        ("attention.self.pos_proj.weight", (768, 768), "linear"),
        ("cls_token", (1, 1, 768), "token"),
        ("vision_model.embeddings.class_embedding", (768,), "token"),
        ("encoder.layer.0.layer_scale1.lambda1", (768,), "layer_scale"),
        ("blocks.0.ls1.gamma", (768,), "layer_scale"),
        ("blocks.0.attn.lambda_q1", (32,), "other"),
        ("blocks.0.attn.q_bias", (768,), "bias"),
        ("self_attention.in_proj_weight", (2304, 768), "linear"),
        ("decoder.word_embedding", (50, 8), "embedding"),
        ("criterion.pos_weight", (14,), "other"),
        ("criterion.weight", (14,), "other"),
        ("loss_fn.class_weights", (14,), "other"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (32,), "buffer"),
        ("h.0.attn.bias", (1, 1, 1024, 1024), "buffer"),
        ("h.0.attn.masked_bias", (), "buffer"),
        ("layers.0.blocks.1.attn_mask", (64, 49, 49), "buffer"),
        ("blocks.0.attn.bias", (1, 12, 197, 197), "other"),
    ],
)
def test_roles_by_name(name, shape, role):
    assert role_map({name: Tensor("F32", shape)}) == {name: role}


def test_a_scale_with_a_shift_beside_it_is_a_norm():
    pair = {f"norm.{part}": Tensor("F32", (8,)) for part in ("gamma", "beta")}
    assert set(role_map(pair).values()) == {"norm"}


@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 3), (15,)], ids=len)
def test_what_meets_or_makes_one_channel_is_no_depthwise_convolution(kernel):
    shapes = {"conv1": (16, 1), "layer1.0.conv1": (16, 1), "layer2.0.conv1": (32, 16), "decoder.deconv": (16, 1)}
    tensors = {f"{name}.weight": Tensor("F32", (*shape, *kernel)) for name, shape in shapes.items()}
    tensors |= {"up.weight": Tensor("F32", (32, 1, *kernel)), "up.bias": Tensor("F32", (1,))}
    roles = {name: role for name, role in role_map(tensors).items() if role == "depthwise"}
    assert roles == {"layer1.0.conv1.weight": "depthwise"}


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet50", "convnext_atto_ols", "resnext50_32x4d"])
def test_stem_depthwise_and_pointwise_convolutions_are_told_apart(name):
    network = on_meta(name)
    tensors = {key: Tensor("F32", tuple(value.shape)) for key, value in network.state_dict().items()}
    convolutions = {key: each for key, each in network.named_modules() if isinstance(each, torch.nn.Conv2d)}
    kinds = {
        "conv": list(convolutions),
        "depthwise": [key for key, each in convolutions.items() if each.groups == each.in_channels],
        "pointwise": [key for key, each in convolutions.items() if each.kernel_size == (1, 1) and each.groups == 1],
    }
    for role, modules in kinds.items():
        if modules:
            assert Selection(role=role).names(tensors) == {f"{key}.weight" for key in modules}
    stem = "conv1" if name.startswith("res") else "stem"
    assert f"{next(iter(convolutions))}.weight" in Selection(blocks=stem, role="conv").names(tensors)
    assert not any("layer" in key or "blocks" in key for key in Selection(blocks=stem, role="conv").names(tensors))


@pytest.mark.parametrize("chunks", [1, 3, 4])
def test_the_number_of_a_chunk_is_no_block(chunks):
    shapes = shapes_of(on_meta("vit_tiny_patch16_224"))

    def chunked(name: str) -> str:
        number = re.match(r"blocks\.(\d+)\.", name)
        return name.replace("blocks.", f"blocks.{int(number[1]) * chunks // 12}.", 1) if number else name

    plain = block_map(shapes)
    for prefix in ("", "teacher.backbone."):
        found = block_map({prefix + chunked(name): shape for name, shape in shapes.items()})
        assert found == {prefix + chunked(name): block for name, block in plain.items()}


@pytest.mark.parametrize("name", ["twins_svt_small", "tf_efficientnet_lite0"])
def test_the_number_of_a_stage_is_one(name):
    shapes = shapes_of(on_meta(name))
    plain = block_map(shapes)
    lower = {key: shape for key, shape in shapes.items() if plain[key] in ("stem", "block1")}
    assert block_map(lower) == {key: plain[key] for key in lower}


def test_a_resnet_is_named_as_in_the_paper():
    blocks = block_map(shapes_of(on_meta("resnet18")))
    assert list(dict.fromkeys(blocks.values())) == ["conv1", "block1", "block2", "block3", "block4", "head"]
    assert blocks["bn1.weight"] == "conv1"
    assert blocks["layer3.0.conv1.weight"] == "block3"
    assert first_convolution(shapes_of(on_meta("resnet18"))) == "conv1.weight"


@pytest.mark.parametrize("wrappers", ["module.model.", "module.model.net.wrapped.inner.core.backbone.encoder."])
def test_wrapper_prefixes_do_not_matter(wrappers):
    shapes = shapes_of(on_meta("resnet18"))
    wrapped = block_map({f"{wrappers}{name}": shape for name, shape in shapes.items()})
    assert {name.removeprefix(wrappers): block for name, block in wrapped.items()} == block_map(shapes)


@pytest.mark.parametrize(
    ("name", "words", "blocks"),
    [
        ("resnet18", ("stem", "layer2", "pool3", "fc"), ("conv1", "block2", "block3", "head")),
        ("convnext_atto", ("conv1", "stages.1"), ("stem", "block2")),
        ("tf_efficientnet_lite0", ("blocks.3", "classifier"), ("block4", "head")),
        ("cbr_small", ("pool2",), ("block2",)),
    ],
)
def test_aliases(name, words, blocks):
    ours = block_map(shapes_of(on_meta(name)))
    assert [find_block(word, ours) for word in words] == list(blocks)


def test_an_unknown_block_gives_the_list():
    with pytest.raises(UsageError, match="conv1, block1, block2, block3, block4, head"):
        find_block("block9", block_map(shapes_of(on_meta("resnet18"))))


@pytest.mark.parametrize(
    ("blocks", "percent", "last"),
    [(12, "50%", 6), (12, "100%", 12), (12, "1%", 1), (5, "50%", 3), (4, "62.5%", 3), (4, "62%", 2)],
)
def test_a_percentage_is_that_part_of_the_numbered_blocks(blocks, percent, last):
    shapes = [("patch_embed.weight", (8, 3, 4, 4)), ("norm.weight", (8,)), ("head.weight", (5, 8))]
    shapes += [(f"blocks.{i}.weight", (8, 8)) for i in range(blocks)]
    tensors = {name: Tensor("F32", shape) for name, shape in shapes}
    assert Selection(upto=percent).names(tensors) == Selection(upto=f"block{last}").names(tensors)
    assert "patch_embed.weight" in Selection(upto=percent).names(tensors)


@pytest.mark.parametrize("percent", ["0%", "101%"])
def test_a_percentage_that_is_none_is_refused(percent):
    with pytest.raises(UsageError, match="at most 100% of numbered blocks; this network has conv1, block1"):
        Selection(upto=percent).names(TENSORS)


OWN_BLOCKS = {"eyes": ["conv1.*"], "body": ["layer*"], "mouth": ["fc.*"]}


def test_a_user_s_block_map_replaces_the_rules():
    assert Selection(upto="body", block_map=OWN_BLOCKS).names(TENSORS) == set(TENSORS) - {"fc.weight"}
    assert Selection(blocks="mouth,eyes", block_map=OWN_BLOCKS).names(TENSORS) == {"conv1.weight", "fc.weight"}
    backwards = dict(reversed(OWN_BLOCKS.items()))
    assert Selection(upto="mouth", block_map=backwards).names(TENSORS) == {"fc.weight"}
    mystery = {**TENSORS, "mystery.weight": Tensor("F32", (2, 2))}
    told = {**OWN_BLOCKS, "body": ["layer*", "mystery.*"]}
    assert "mystery.weight" in Selection(upto="body", block_map=told).names(mystery)


@pytest.mark.parametrize(
    ("globs", "message"),
    [
        ({"eyes": ["conv1.*"], "body": ["layer*"]}, "fc.weight in no block"),
        ({**OWN_BLOCKS, "more": ["*.0.weight"]}, "layer1.0.weight in body and in more"),
        ({**OWN_BLOCKS, "body": []}, "layer1.0.weight in no block"),
    ],
)
def test_a_tensor_belongs_in_one_block(globs, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Selection(upto="eyes", block_map=globs).names(TENSORS)


TENSORS = {
    "conv1.weight": Tensor("F32", (8, 3, 7, 7)),
    "layer1.0.weight": Tensor("F32", (8, 8, 3, 3)),
    "layer2.0.weight": Tensor("F32", (8, 8, 3, 3)),
    "layer2.0.norm.weight": Tensor("F32", (8,)),
    "fc.weight": Tensor("F32", (5, 8)),
}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), set(TENSORS)),
        (Selection(upto="block1"), {"conv1.weight", "layer1.0.weight"}),
        (Selection(blocks="head,block2"), {"layer2.0.weight", "layer2.0.norm.weight", "fc.weight"}),
        (Selection(blocks="^head,^block2"), {"conv1.weight", "layer1.0.weight"}),
        (Selection(blocks="head,block2,^head"), {"layer2.0.weight", "layer2.0.norm.weight"}),
        (Selection(upto="block2", blocks="^block1", role="conv"), {"conv1.weight", "layer2.0.weight"}),
        (Selection(role="norm"), {"layer2.0.norm.weight"}),
        (Selection(upto="block2", role="conv", except_=("conv1*",)), {"layer1.0.weight", "layer2.0.weight"}),
        (Selection(only=("layer*", "fc.*"), except_=("*norm*",)), {"layer1.0.weight", "layer2.0.weight", "fc.weight"}),
    ],
)
def test_selectors_narrow(selection, expected):
    assert selection.names(TENSORS) == expected


@pytest.mark.parametrize(
    "selection",
    [
        Selection(upto="block7"),
        Selection(blocks="^block7"),
        Selection(role="embedding"),
        Selection(only=("nothing*",)),
        Selection(except_=("nope",)),
    ],
)
def test_a_selector_that_matches_nothing_lists_what_there_is(selection):
    with pytest.raises(UsageError, match=r"conv1|block1|conv, "):
        selection.names(TENSORS)


def test_an_unplaced_tensor_makes_upto_refuse():
    with pytest.raises(UsageError, match=r"mystery\.weight"):
        Selection(upto="block1").names({**TENSORS, "mystery.weight": Tensor("F32", (2, 2))})


def test_globs_name_exactly_the_selection():
    names = list(shapes_of(on_meta("resnet18")))
    for chosen in (
        {"conv1.weight"},
        {n for n in names if re.match(r"conv1|bn1|layer1", n)},
        set(names),
        set(names[3:40]),
    ):
        globs = globs_for(chosen, names)
        assert {name for name in names if any(fnmatchcase(name, glob) for glob in globs)} == chosen
    assert len(globs_for({n for n in names if n.startswith("layer1.")}, names)) == 1


@pytest.mark.parametrize("last", ["linear", "output", "out", "fc", "classifier", "head", "last_linear", "logits"])
def test_the_last_layer_of_a_trunk_is_the_head(last):
    trunk = {"conv1.weight": (16, 3, 3, 3), "layer1.0.conv1.weight": (16, 16, 3, 3)}
    names = {f"{last}.weight": (5, 16), f"{last}.bias": (5,)}
    assert {block_map({**trunk, **names})[name] for name in names} == {"head"}
    wrapped = {f"module.{name}": shape for name, shape in {**trunk, **names}.items()}
    assert block_map(wrapped)[f"module.{last}.weight"] == "head"


def test_a_linear_layer_is_no_head_beside_one_or_without_a_trunk():
    trunk = {"conv1.weight": (16, 3, 3, 3), "layer1.0.conv1.weight": (16, 16, 3, 3)}
    assert block_map({**trunk, "linear.weight": (16, 16), "fc.weight": (5, 16)})["linear.weight"] == "unplaced"
    assert block_map({**trunk, "linear.weight": (16, 16), "out.weight": (5, 16)})["linear.weight"] == "unplaced"
    assert block_map({"linear.weight": (5, 16)})["linear.weight"] == "unplaced"


def test_a_number_of_any_length_in_a_name_is_no_error():
    long = "9" * 200_000
    blocks = block_map({f"layer{long}.0.weight": (2, 2), "layer1.0.weight": (2, 2)})
    assert blocks == {"layer1.0.weight": "block1", f"layer{long}.0.weight": UNPLACED}


def test_the_output_layer_of_gpt_neox_is_its_head():
    layer = {f"gpt_neox.layers.{i}.mlp.dense_h_to_4h.weight": (64, 16) for i in range(2)}
    shapes = {"embed_out.weight": (50, 16), "gpt_neox.embed_in.weight": (50, 16), **layer}
    blocks = block_map(shapes)
    assert (blocks["embed_out.weight"], blocks["gpt_neox.embed_in.weight"]) == ("head", "stem")
    roles = role_map(
        {name: TensorInfo(name, "F32", shape, 0, 4 * shape[0] * shape[1]) for name, shape in shapes.items()}
    )
    assert (roles["embed_out.weight"], roles["gpt_neox.embed_in.weight"]) == ("linear", "embedding")


def old_weight_norm(layer: torch.nn.Module) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has a newer one, and DINO's files are of this
        return torch.nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    ("wrap", "weight", "buffers"),
    [
        (lambda layer: torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5), "weight_orig", {"weight_mask"}),
        (torch.nn.utils.spectral_norm, "weight_orig", {"weight_u", "weight_v"}),
        (
            torch.nn.utils.parametrizations.spectral_norm,
            "parametrizations.weight.original",
            {"parametrizations.weight.0._u", "parametrizations.weight.0._v"},
        ),
        (old_weight_norm, "weight_v", set()),
        (torch.nn.utils.parametrizations.weight_norm, "parametrizations.weight.original1", set()),
    ],
    ids=["prune", "spectral norm", "spectral norm, new", "weight norm", "weight norm, new"],
)
@pytest.mark.parametrize(
    "make", [lambda: torch.nn.Conv2d(4, 6, 3), lambda: torch.nn.Linear(4, 6)], ids=["conv", "linear"]
)
def test_a_weight_under_another_name_has_its_layer_s_role(wrap, weight, buffers, make):
    plain = role_map({f"fc.{name}": Tensor("F32", tuple(x.shape)) for name, x in make().state_dict().items()})
    wrapped = wrap(make())
    roles = role_map({f"fc.{name}": Tensor("F32", tuple(x.shape)) for name, x in wrapped.state_dict().items()})
    assert (roles[f"fc.{weight}"], roles["fc.bias"]) == (plain["fc.weight"], plain["fc.bias"])
    assert {name for name, role in roles.items() if role == "buffer"} == {f"fc.{name}" for name in buffers}
    assert {f"fc.{name}" for name, _ in wrapped.named_buffers()} == {f"fc.{name}" for name in buffers}


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("GLPN", {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1]}),  # SegFormer's names in its files
        ("PoolFormer", {"hidden_sizes": [8, 8, 8, 8]}),
        ("Pvt", {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1], "image_size": 64}),
    ],
)
def test_blocks_of_stages_in_lists_are_in_the_order_in_which_their_layers_run(transformers, kind, settings):
    config = getattr(transformers, f"{kind}Config")(depths=[1, 2, 1, 1], **settings)
    network = getattr(transformers, f"{kind}Model")(config).eval()
    blocks, ran = block_map(shapes_of(network)), []
    for path, module in network.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.LayerNorm, torch.nn.GroupNorm)):
            module.register_forward_hook(lambda *_, path=path: ran.append(blocks[f"{path}.weight"]))
    with torch.inference_mode():
        network(torch.zeros(1, 3, 64, 64))
    assert [block for block, _ in groupby(ran)] == [block for block in dict.fromkeys(blocks.values()) if block in ran]
    assert {"stem", "block1", "block2", "block3", "block4"} <= set(ran)


def test_what_normalises_embeddings_stands_with_them_before_the_first_layer(transformers):
    """BART's `layernorm_embedding`, by the order in which its decoder runs."""
    sizes = {"d_model": 16, "decoder_layers": 2, "decoder_ffn_dim": 32, "decoder_attention_heads": 2, "vocab_size": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    network = transformers.BartForCausalLM(transformers.BartConfig(**sizes, **tokens, max_position_embeddings=8)).eval()
    blocks, ran = block_map(shapes_of(network)), []
    for path, module in network.named_modules():
        if f"{path}.weight" in blocks:
            module.register_forward_hook(lambda *_, path=path: ran.append(blocks[f"{path}.weight"]))
    with torch.inference_mode():
        network(torch.ones(1, 4, dtype=torch.long))
    assert [block for block, _ in groupby(ran)] == ["stem", "block1", "block2", "head"]
