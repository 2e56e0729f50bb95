"""Blocks and roles against timm's own grouping and module types, and the selectors."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby

import pytest
import timm
import torch
from timm.models import group_parameters

from wsurgery.anatomy import Selection, block_map, find_block, first_convolution, globs_for, role_map
from wsurgery.errors import UsageError

MODELS = (
    "resnet18", "resnet50d", "vgg11_bn", "densenet121", "convnext_atto", "mobilenetv3_small_050", "regnetx_002",
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "tf_efficientnet_lite0", "inception_v3", "cbr_small",
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]


def on_meta(name: str) -> torch.nn.Module:
    import wsurgery.models  # noqa: F401

    with torch.device("meta"):
        return timm.create_model(name)


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_timms_coarse_groups_in_their_order(name):
    model = on_meta(name)
    blocks = block_map(shapes_of(model))
    assert "unplaced" not in blocks.values()
    if not hasattr(model, "group_matcher"):
        pytest.skip("timm does not group this model")
    groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    ours: dict[int, set[str]] = {}
    for parameter, group in groups.items():
        if blocks[parameter] not in ("head", "neck"):  # timm puts the neck now with the trunk, now with the head
            ours.setdefault(group, set()).add(blocks[parameter])
    assert all(len(labels) == 1 for labels in ours.values()), ours
    in_order = [next(iter(ours[group])) for group in sorted(ours)]
    in_order = [block for block, _ in groupby(in_order)]  # timm gives a VGG's batch norms groups of their own
    assert in_order == [block for block in dict.fromkeys(blocks.values()) if block in in_order]


@pytest.mark.parametrize("name", MODELS)
def test_order_of_names_does_not_matter(name):
    shapes = shapes_of(on_meta(name))
    assert list(block_map(shapes).values()) == list(block_map(dict(sorted(shapes.items(), reverse=True))).values())


@pytest.mark.parametrize("name", MODELS)
def test_roles_are_the_module_types(name):
    model = on_meta(name)
    dtypes = {torch.float32: "F32", torch.int64: "I64"}
    roles = role_map({key: Tensor(dtypes[v.dtype], tuple(v.shape)) for key, v in model.state_dict().items()})
    for prefix, module in model.named_modules():
        own = {f"{prefix}.{part}" for part in (*module._parameters, *module._buffers) if f"{prefix}.{part}" in roles}
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert {roles[key] for key in own} <= {"batch_norm"}
        else:
            assert "batch_norm" not in {roles[key] for key in own}
        if isinstance(module, torch.nn.Conv2d):
            depthwise = module.groups == module.in_channels > 1
            assert roles[f"{prefix}.weight"] == ("depthwise" if depthwise else "conv")
        if isinstance(module, torch.nn.Linear):
            assert roles[f"{prefix}.weight"] == "linear"
        if isinstance(module, torch.nn.LayerNorm):
            assert roles[f"{prefix}.weight"] == "norm"


def test_a_resnet_is_named_as_in_the_paper():
    blocks = block_map(shapes_of(on_meta("resnet18")))
    assert list(dict.fromkeys(blocks.values())) == ["conv1", "block1", "block2", "block3", "block4", "head"]
    assert blocks["bn1.weight"] == "conv1"
    assert blocks["layer3.0.conv1.weight"] == "block3"
    assert first_convolution(shapes_of(on_meta("resnet18"))) == "conv1.weight"


def test_wrapper_prefixes_do_not_matter():
    shapes = shapes_of(on_meta("resnet18"))
    wrapped = block_map({f"module.model.{name}": shape for name, shape in shapes.items()})
    assert {name.removeprefix("module.model."): block for name, block in wrapped.items()} == block_map(shapes)


def test_aliases():
    blocks = block_map(shapes_of(on_meta("resnet18")))
    assert [find_block(word, blocks) for word in ("stem", "layer2", "pool3", "fc")] == [
        "conv1",
        "block2",
        "block3",
        "head",
    ]
    with pytest.raises(UsageError, match="conv1, block1, block2, block3, block4, head"):
        find_block("block9", blocks)


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
