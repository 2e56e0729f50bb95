r"""How other libraries name the tensors of timm's networks: tables.

A rule is (pattern, new name) or (pattern, new name, layout). The pattern is matched with the whole name, or with the name
of the module whose `weight`, `bias` or running statistic it is, which is kept. In a new name `\1` is a capture, `{1-1}`,
`{1+1}` and `{1//2}` are a captured number less one, plus one and halved, `{1@}` the stage and the place in it of a block
that is numbered through, `#0` the first of several tensors that timm joins along their first dimension. A layout names the
dimensions, a letter each, before and after: `oi->oi11`, `hwio->oihw`, `o(i77)->oi77`. A tensor whose new name is None is
left out: timm's network has none like it.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wsurgery.operations.architectures import find_layout

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]  # Hugging Face's config.json
Rule = tuple[str, str | None] | tuple[str, str | None, str]
Architecture = tuple[str, dict[str, Any]]  # timm's name and more arguments


@dataclass(frozen=True)
class Lineage:
    """The names of one family of networks in one library.

    Attributes:
        title: what messages call it.
        rules: the first that matches counts; a state dict with a name that none matches is of another lineage.
        architecture: tells timm's model from shapes under timm's names and from what config.json says, which may be
            nothing; None where they do not tell.
        stages: blocks of each stage, for `{1@}`.
        whole: whether it is taken only where `architecture` knows the network: its names say little by themselves.
        parts: whether names are matched with what each block holds in them, `block:ccsc` for `block`: `c` a convolution
            with its norm, `s` squeeze and excitation, `w` a lone layer.
    """

    title: str
    rules: tuple[Rule, ...]
    architecture: Callable[[Shapes, Config], Architecture | None]
    stages: tuple[int, ...] = ()
    parts: bool = False
    whole: bool = False


def _blocks(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    """Count blocks by stage: `pattern` captures the stage's number and the block's in it."""
    found = {match.groups() for name in shapes if (match := re.match(pattern, name))}
    stages = [int(stage) for stage, _ in found]
    return tuple(stages.count(stage) for stage in sorted(set(stages)))


def _width(shapes: Shapes, *names: str) -> tuple[int, ...]:
    """First dimensions of tensors; 0 for one that is not there."""
    return tuple(next(iter(shapes.get(name, ())), 0) for name in names)


# --- Vision transformers ---------------------------------------------------------------------------------------------

_VIT_SIZES = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge"}
_VITS = {
    "vit_tiny_patch16_224", "vit_small_patch16_224", "vit_small_patch32_224", "vit_base_patch8_224",
    "vit_base_patch16_224", "vit_base_patch32_224", "vit_large_patch14_224", "vit_large_patch16_224",
    "vit_large_patch32_224", "vit_huge_patch14_224", "deit_tiny_distilled_patch16_224",
    "deit_small_distilled_patch16_224", "deit_base_distilled_patch16_224",
}  # fmt: skip


def _depth(shapes: Shapes) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})


def _if_of(shapes: Shapes, config: Config) -> Config:
    """Return a transformer's config.json if its sizes are those of the tensors: it may be another model's. Else {}."""
    width, hidden = _width(shapes, "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    heads, depth = config.get("num_attention_heads"), _depth(shapes)
    agrees = (
        config.get("hidden_size") == width
        and config.get("num_hidden_layers", depth) == depth
        and config.get("intermediate_size", hidden) == hidden
        and (heads is None or (type(heads) is int and heads > 0 and width % heads == 0))
    )
    return config if agrees else {}


def _vit(shapes: Shapes, config: Config) -> Architecture | None:
    """Tell timm's ViT. The number of heads is in no shape: config.json says it, else it is the usual one of the size."""
    width, _, _, patch = shapes["patch_embed.proj.weight"]
    tokens = shapes["pos_embed"][1] - (2 if "dist_token" in shapes else 1)
    side = math.isqrt(tokens)
    hidden, depth, config = shapes["blocks.0.mlp.fc1.weight"][0], _depth(shapes), _if_of(shapes, config)
    size = _VIT_SIZES.get((width, depth))
    usual_heads = 16 if size == "huge" else width // 64
    heads = config.get("num_attention_heads", usual_heads if size else None)
    if side * side != tokens or heads is None or config.get("hidden_act", "gelu") != "gelu":
        return None
    if "dist_token" in shapes and ("head.weight" in shapes) != ("head_dist.weight" in shapes):
        return None  # of timm's distilled ones both classify
    family, kind = ("deit", "distilled_") if "dist_token" in shapes else ("vit", "")
    name = f"{family}_{size}_{kind}patch{patch}_224"
    args: dict[str, Any] = {"img_size": side * patch} if side * patch != 224 else {}
    if "blocks.0.attn.qkv.bias" not in shapes:
        args["qkv_bias"] = False
    if name in _VITS and heads == usual_heads and hidden == 4 * width:
        return name, args
    args |= {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": hidden / width, "patch_size": patch}
    return f"{family}_base_{kind}patch16_224", args


def _is_usual(size: str | None, shapes: Shapes, config: Config) -> bool:
    """Whether a transformer of a size has as many blocks and heads as timm's."""
    width = shapes["patch_embed.proj.weight"][0]
    heads = _if_of(shapes, config).get("num_attention_heads", width // 64)
    return _VIT_SIZES.get((width, _depth(shapes))) == size is not None and heads == width // 64


def _beit(shapes: Shapes, config: Config) -> Architecture | None:
    width, _, _, patch = shapes["patch_embed.proj.weight"]
    size = {768: "base", 1024: "large"}.get(width)
    table = shapes.get("blocks.0.attn.relative_position_bias_table", (0,))[0]
    if (
        patch != 16 or table != 732 or "pos_embed" in shapes or not _is_usual(size, shapes, config)
    ):  # 224 pixels: 27² + 3
        return None
    return f"beit_{size}_patch16_224", {}


def _dinov2(shapes: Shapes, config: Config) -> Architecture | None:
    width = shapes["patch_embed.proj.weight"][0]
    size = {384: "small", 768: "base", 1024: "large"}.get(width)
    if shapes["pos_embed"][1] != 37 * 37 + 1 or not _is_usual(size, shapes, config):
        return None
    return f"vit_{size}_patch14_dinov2", {}


_LAYER = r"(?:\w+\.)?(?:encoder\.layer|layers)\.(\d+)"  # transformers 5 calls them layers, but writes encoder.layer
_HF_EMBEDDINGS: tuple[Rule, ...] = (
    (r"(?:\w+\.)?embeddings\.cls_token", "cls_token"),
    (r"(?:\w+\.)?embeddings\.distillation_token", "dist_token"),
    (r"(?:\w+\.)?embeddings\.position_embeddings", "pos_embed"),
    (r"(?:\w+\.)?embeddings\.mask_token", None),  # of masked pretraining
    (r"(?:\w+\.)?embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"(?:vit\.|deit\.|dinov2\.)?layernorm", "norm"),
    (r"(?:vit\.|deit\.)?pooler\.dense", None),  # of a model without a classifier; timm has none
    (r"(?:cls_)?classifier", "head"),
    (r"distillation_classifier", "head_dist"),
)
_HF_LAYER: tuple[Rule, ...] = (
    *(
        (rf"{_LAYER}\.attention\.(?:attention\.)?(?:{old}|{new}_proj)", rf"blocks.\1.attn.qkv#{i}")
        for i, (old, new) in enumerate((("query", "q"), ("key", "k"), ("value", "v")))
    ),
    (rf"{_LAYER}\.attention\.(?:output\.dense|o_proj)", r"blocks.\1.attn.proj"),
    (rf"{_LAYER}\.(?:layernorm_before|norm1)", r"blocks.\1.norm1"),
    (rf"{_LAYER}\.(?:layernorm_after|norm2)", r"blocks.\1.norm2"),
    (rf"{_LAYER}\.(?:intermediate\.dense|mlp\.fc1)", r"blocks.\1.mlp.fc1"),
    (rf"{_LAYER}\.(?:output\.dense|mlp\.fc2)", r"blocks.\1.mlp.fc2"),
)
_HF_VIT = Lineage("Hugging Face's ViT", (*_HF_EMBEDDINGS, *_HF_LAYER), _vit)
_HF_DINOV2 = Lineage(
    "Hugging Face's DINOv2",
    (*_HF_EMBEDDINGS[:-2], *_HF_LAYER, (rf"{_LAYER}\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma")),
    _dinov2,
)
_HF_BEIT = Lineage(
    "Hugging Face's BEiT",
    (
        (rf"{_LAYER}\.attention\.(?:attention\.)?(?:query|q_proj)\.bias", r"blocks.\1.attn.q_bias"),
        (rf"{_LAYER}\.attention\.(?:attention\.)?(?:value|v_proj)\.bias", r"blocks.\1.attn.v_bias"),
        (rf"{_LAYER}\.\S+\.relative_position_index", None),  # follows from the window's size
        (rf"{_LAYER}\.\S+\.relative_position_bias_table", r"blocks.\1.attn.relative_position_bias_table"),
        (rf"{_LAYER}\.lambda_([12])", r"blocks.\1.gamma_\2"),
        (r"(?:beit\.)?pooler\.layernorm", "fc_norm"),
        *_HF_EMBEDDINGS[:5],
        ("classifier", "head"),
        *_HF_LAYER,
    ),
    _beit,
)
_TV_LAYER = r"encoder\.layers\.encoder_layer_(\d+)"
_TV_VIT = Lineage(
    "torchvision's ViT",
    (
        ("class_token", "cls_token"),
        (r"encoder\.pos_embedding", "pos_embed"),
        ("conv_proj", "patch_embed.proj"),
        (rf"{_TV_LAYER}\.ln_([12])", r"blocks.\1.norm\2"),
        (rf"{_TV_LAYER}\.self_attention\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
        (rf"{_TV_LAYER}\.self_attention\.out_proj", r"blocks.\1.attn.proj"),
        (rf"{_TV_LAYER}\.mlp\.(?:0|linear_1)", r"blocks.\1.mlp.fc1"),
        (rf"{_TV_LAYER}\.mlp\.(?:3|linear_2)", r"blocks.\1.mlp.fc2"),
        (r"encoder\.ln", "norm"),
        (r"heads\.head", "head"),
    ),
    _vit,
)
_FLAX_LAYER = r"(?:opt/target/)?Transformer/encoderblock_(\d+)"
_FLAX_VIT = Lineage(
    "Google's ViT",
    (
        (r"(?:opt/target/)?cls", "cls_token"),
        (r"(?:opt/target/)?Transformer/posembed_input/pos_embedding", "pos_embed"),
        (r"(?:opt/target/)?embedding/kernel", "patch_embed.proj.weight", "hwio->oihw"),
        (r"(?:opt/target/)?embedding/bias", "patch_embed.proj.bias"),
        *(
            (rf"{_FLAX_LAYER}/MultiHeadDotProductAttention_1/{part}/{leaf}", rf"blocks.\1.attn.{name}", layout)
            for i, part in enumerate(("query", "key", "value"))
            for leaf, name, layout in (
                ("kernel", f"qkv.weight#{i}", "ihd->(hd)i"),
                ("bias", f"qkv.bias#{i}", "hd->(hd)"),
            )
        ),
        (rf"{_FLAX_LAYER}/MultiHeadDotProductAttention_1/out/kernel", r"blocks.\1.attn.proj.weight", "hdo->o(hd)"),
        (rf"{_FLAX_LAYER}/MultiHeadDotProductAttention_1/out/bias", r"blocks.\1.attn.proj.bias"),
        (rf"{_FLAX_LAYER}/LayerNorm_0/scale", r"blocks.\1.norm1.weight"),
        (rf"{_FLAX_LAYER}/LayerNorm_0/bias", r"blocks.\1.norm1.bias"),
        (rf"{_FLAX_LAYER}/LayerNorm_2/scale", r"blocks.\1.norm2.weight"),
        (rf"{_FLAX_LAYER}/LayerNorm_2/bias", r"blocks.\1.norm2.bias"),
        (rf"{_FLAX_LAYER}/MlpBlock_3/Dense_([01])/kernel", r"blocks.\1.mlp.fc{2+1}.weight", "io->oi"),
        (rf"{_FLAX_LAYER}/MlpBlock_3/Dense_([01])/bias", r"blocks.\1.mlp.fc{2+1}.bias"),
        (r"(?:opt/target/)?Transformer/encoder_norm/scale", "norm.weight"),
        (r"(?:opt/target/)?Transformer/encoder_norm/bias", "norm.bias"),
        (r"(?:opt/target/)?pre_logits/\w+", None),  # between trunk and head, of pretraining; timm drops it, too
        (r"(?:opt/target/)?head/kernel", "head.weight", "io->oi"),
        (r"(?:opt/target/)?head/bias", "head.bias"),
    ),
    _vit,
)

# --- Swin and ConvNeXt -----------------------------------------------------------------------------------------------

_SWINS: dict[tuple[int, ...], str] = {  # blocks of each stage, width, rows of a bias table
    (2, 2, 6, 2, 96, 169): "swin_tiny_patch4_window7_224", (2, 2, 18, 2, 96, 169): "swin_small_patch4_window7_224",
    (2, 2, 18, 2, 128, 169): "swin_base_patch4_window7_224", (2, 2, 18, 2, 192, 169): "swin_large_patch4_window7_224",
    (2, 2, 18, 2, 128, 529): "swin_base_patch4_window12_384",
    (2, 2, 18, 2, 192, 529): "swin_large_patch4_window12_384",
}  # fmt: skip


def _swin(shapes: Shapes, config: Config) -> Architecture | None:
    depths = _blocks(shapes, r"layers\.(\d+)\.blocks\.(\d+)\.")
    sizes = _width(shapes, "patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
    name = _SWINS.get((*depths, *sizes))
    return (name, {}) if name else None


_HF_SWIN_BLOCK = r"(?:swin\.)?encoder\.layers\.(\d+)\.blocks\.(\d+)"
_HF_SWIN = Lineage(
    "Hugging Face's Swin",
    (
        (r"(?:swin\.)?embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"(?:swin\.)?embeddings\.norm", "patch_embed.norm"),
        (r"(?:swin\.)?embeddings\.mask_token", None),  # of masked pretraining
        *(
            (rf"{_HF_SWIN_BLOCK}\.attention\.(?:self\.{old}|{new}_proj)", rf"layers.\1.blocks.\2.attn.qkv#{i}")
            for i, (old, new) in enumerate((("query", "q"), ("key", "k"), ("value", "v")))
        ),
        (rf"{_HF_SWIN_BLOCK}\.attention\.\S+\.relative_position_index", None),  # follows from the window's size
        (
            rf"{_HF_SWIN_BLOCK}\.attention\.\S+\.relative_position_bias_table",
            r"layers.\1.blocks.\2.attn.relative_position_bias_table",
        ),
        (rf"{_HF_SWIN_BLOCK}\.attention\.(?:output\.dense|o_proj)", r"layers.\1.blocks.\2.attn.proj"),
        (rf"{_HF_SWIN_BLOCK}\.layernorm_before", r"layers.\1.blocks.\2.norm1"),
        (rf"{_HF_SWIN_BLOCK}\.layernorm_after", r"layers.\1.blocks.\2.norm2"),
        (rf"{_HF_SWIN_BLOCK}\.(?:intermediate\.dense|mlp\.fc1)", r"layers.\1.blocks.\2.mlp.fc1"),
        (rf"{_HF_SWIN_BLOCK}\.(?:output\.dense|mlp\.fc2)", r"layers.\1.blocks.\2.mlp.fc2"),
        (r"(?:swin\.)?encoder\.layers\.(\d+)\.downsample\.(norm|reduction)", r"layers.{1+1}.downsample.\2"),
        (r"(?:swin\.)?layernorm", "norm"),
        ("classifier", "head.fc"),
    ),
    _swin,
)
_TV_SWIN = Lineage(
    "torchvision's Swin",
    (
        (r"features\.0\.0", "patch_embed.proj"),
        (r"features\.0\.2", "patch_embed.norm"),
        (r"features\.[1357]\.\d+\.attn\.relative_position_index", None),  # follows from the window's size
        (
            r"features\.([1357])\.(\d+)\.attn\.relative_position_bias_table",
            r"layers.{1//2}.blocks.\2.attn.relative_position_bias_table",
        ),
        (r"features\.([1357])\.(\d+)\.(norm[12]|attn\.qkv|attn\.proj)", r"layers.{1//2}.blocks.\2.\3"),
        (r"features\.([1357])\.(\d+)\.mlp\.0", r"layers.{1//2}.blocks.\2.mlp.fc1"),
        (r"features\.([1357])\.(\d+)\.mlp\.3", r"layers.{1//2}.blocks.\2.mlp.fc2"),
        (r"features\.([246])\.(norm|reduction)", r"layers.{1//2}.downsample.\2"),
        ("norm", "norm"),
        ("head", "head.fc"),
    ),
    _swin,
)
_CONVNEXTS: dict[tuple[int, ...], str] = {  # blocks of each stage, width
    (3, 3, 9, 3, 96): "convnext_tiny", (3, 3, 27, 3, 96): "convnext_small", (3, 3, 27, 3, 128): "convnext_base",
    (3, 3, 27, 3, 192): "convnext_large", (3, 3, 27, 3, 256): "convnext_xlarge",
}  # fmt: skip
_CONVNEXTS_V2: dict[tuple[int, ...], str] = {
    (2, 2, 6, 2, 40): "convnextv2_atto", (2, 2, 6, 2, 48): "convnextv2_femto", (2, 2, 6, 2, 64): "convnextv2_pico",
    (2, 2, 8, 2, 80): "convnextv2_nano", (3, 3, 9, 3, 96): "convnextv2_tiny", (3, 3, 27, 3, 128): "convnextv2_base",
    (3, 3, 27, 3, 192): "convnextv2_large", (3, 3, 27, 3, 352): "convnextv2_huge",
}  # fmt: skip


def _convnext(shapes: Shapes, config: Config) -> Architecture | None:
    depths = _blocks(shapes, r"stages\.(\d+)\.blocks\.(\d+)\.")
    table = _CONVNEXTS_V2 if "stages.0.blocks.0.mlp.grn.weight" in shapes else _CONVNEXTS
    name = table.get((*depths, *_width(shapes, "stem.0.weight")))
    # timm writes the linear layers of the smallest as convolutions, 1×1.
    return (name, {"conv_mlp": False} if name.endswith(("atto", "femto", "pico", "nano")) else {}) if name else None


_HF_NEXT = r"(?:convnext(?:v2)?\.)?"
_HF_CONVNEXT = Lineage(
    "Hugging Face's ConvNeXt",
    (
        (rf"{_HF_NEXT}embeddings\.patch_embeddings", "stem.0"),
        (rf"{_HF_NEXT}embeddings\.layernorm", "stem.1"),
        (rf"{_HF_NEXT}encoder\.stages\.(\d+)\.downsampling_layer\.([01])", r"stages.\1.downsample.\2"),
        *(
            (rf"{_HF_NEXT}encoder\.stages\.(\d+)\.layers\.(\d+)\.{old}", rf"stages.\1.blocks.\2.{new}")
            for old, new in {
                "layer_scale_parameter": "gamma", "dwconv": "conv_dw", "layernorm": "norm", "pwconv1": "mlp.fc1",
                "pwconv2": "mlp.fc2",
            }.items()
        ),
        (rf"{_HF_NEXT}encoder\.stages\.(\d+)\.layers\.(\d+)\.grn", r"stages.\1.blocks.\2.mlp.grn", "111c->c"),
        (rf"{_HF_NEXT}layernorm", "head.norm"),
        ("classifier", "head.fc"),
    ),
    _convnext,
)  # fmt: skip
_TV_CONVNEXT = Lineage(
    "torchvision's ConvNeXt",
    (
        (r"features\.0\.([01])", r"stem.\1"),
        (r"features\.([1357])\.(\d+)\.layer_scale", r"stages.{1//2}.blocks.\2.gamma", "c11->c"),
        *(
            (rf"features\.([1357])\.(\d+)\.block\.{old}", rf"stages.{{1//2}}.blocks.\2.{new}")
            for old, new in {0: "conv_dw", 2: "norm", 3: "mlp.fc1", 5: "mlp.fc2"}.items()
        ),
        (r"features\.([246])\.([01])", r"stages.{1//2}.downsample.\2"),
        (r"classifier\.0", "head.norm"),
        (r"classifier\.2", "head.fc"),
    ),
    _convnext,
)

# --- Convolutional networks ------------------------------------------------------------------------------------------


def _resnet(shapes: Shapes, config: Config) -> Architecture | None:
    if config.get("downsample_in_bottleneck") or config.get("downsample_in_first_stage"):
        return None  # strides elsewhere than in timm's
    return _torchvision_resnet(shapes, config)


def _torchvision_resnet(shapes: Shapes, config: Config) -> Architecture | None:
    """Tell torchvision's ResNet, ResNeXt or wide ResNet: every tensor fits but those of the head."""
    trunk = {name: shape for name, shape in shapes.items() if not name.startswith("fc.")}
    for name in _TORCHVISION_RESNETS:
        layout = find_layout({"name": name, "num_classes": 0, "in_chans": shapes["conv1.weight"][1]})
        if layout and all(
            trunk.get(own, shape if own.endswith("num_batches_tracked") else None) == shape
            for own, shape in layout.shapes.items()
        ):
            return (name, {}) if trunk.keys() <= layout.shapes.keys() else None
    return None


_TORCHVISION_RESNETS = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip
_RESNET_BLOCK = r"(\d+\.(?:conv\d|bn\d|downsample\.[01])\.\w+)"
_RESNET_HEAD: Rule = (r"(?:fc|head|classifier|linear|9)(?:\.\d)?", "fc")
_SEQUENTIAL_STAGES: tuple[Rule, ...] = (
    ("0", "conv1"),
    ("1", "bn1"),
    *((rf"{stage + 3}\.{_RESNET_BLOCK}", rf"layer{stage}.\1") for stage in (1, 2, 3, 4)),
)
_NAMED_STAGES: tuple[Rule, ...] = ((r"conv1|bn1", r"\g<0>"), (rf"layer(\d)\.{_RESNET_BLOCK}", r"layer\1.\2"))
_WRAPPED_RESNETS = tuple(
    Lineage(title, (*stages, _RESNET_HEAD), _torchvision_resnet, whole=True)
    for title, stages in (
        ("a ResNet in nn.Sequential", _SEQUENTIAL_STAGES),
        ("a ResNet with a head of another name", _NAMED_STAGES),
    )
)
_DENSENETS: dict[tuple[int, ...], str] = {  # layers of each block, width of the first convolution
    (6, 12, 24, 16, 64): "densenet121", (6, 12, 36, 24, 96): "densenet161", (6, 12, 32, 32, 64): "densenet169",
    (6, 12, 48, 32, 64): "densenet201",
}  # fmt: skip


def _densenet(shapes: Shapes, config: Config) -> Architecture | None:
    layers = _blocks(shapes, r"features\.denseblock(\d)\.denselayer(\d+)\.")
    name = _DENSENETS.get((*layers, *_width(shapes, "features.conv0.weight")))
    return (name, {}) if name else None


_TV_DENSENET = Lineage(
    "torchvision's DenseNet",
    (
        # PyTorch before 0.4.1 allowed a dot in a module's name, and torchvision's downloads have it still.
        (r"features\.(denseblock\d\.denselayer\d+)\.(norm|conv)\.?([12])", r"features.\1.\2\3"),
        (r"features\.(?:conv0|norm0|norm5|transition\d\.(?:norm|conv))", r"\g<0>"),
        (r"classifier(?:\.\d)?", "classifier"),
    ),
    _densenet,
    whole=True,
)
_KERAS_LEAVES = {
    "kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias", "moving_mean": "running_mean",
    "moving_variance": "running_var",
}  # fmt: skip
_KERAS_DENSENET = Lineage(
    "Keras's DenseNet",
    tuple(
        (rf"(?:[\w/]+/)?{layer}/{leaf}(?::0)?", f"{module}.{part}")
        for layer, module in (
            (r"conv1/conv", "features.conv0"),
            (r"conv1/bn", "features.norm0"),
            (r"conv(\d)_block(\d+)_0_bn", r"features.denseblock{1-1}.denselayer\2.norm1"),
            (r"conv(\d)_block(\d+)_1_conv", r"features.denseblock{1-1}.denselayer\2.conv1"),
            (r"conv(\d)_block(\d+)_1_bn", r"features.denseblock{1-1}.denselayer\2.norm2"),
            (r"conv(\d)_block(\d+)_2_conv", r"features.denseblock{1-1}.denselayer\2.conv2"),
            (r"pool(\d)_bn", "features.transition{1-1}.norm"),
            (r"pool(\d)_conv", "features.transition{1-1}.conv"),
            (r"bn", "features.norm5"),
            (r"(?:predictions|fc1000)", "classifier"),
        )
        for leaf, part in _KERAS_LEAVES.items()
    ),
    _densenet,
    whole=True,
)
_HF_STAGE = r"(?:resnet\.)?encoder\.stages\.(\d)\.layers\.(\d+)"
_HF_RESNET = Lineage(
    "Hugging Face's ResNet",
    (
        (r"(?:resnet\.)?embedder\.embedder\.convolution", "conv1"),
        (r"(?:resnet\.)?embedder\.embedder\.normalization", "bn1"),
        (rf"{_HF_STAGE}\.layer\.(\d)\.convolution", r"layer{1+1}.\2.conv{3+1}"),
        (rf"{_HF_STAGE}\.layer\.(\d)\.normalization", r"layer{1+1}.\2.bn{3+1}"),
        (rf"{_HF_STAGE}\.shortcut\.convolution", r"layer{1+1}.\2.downsample.0"),
        (rf"{_HF_STAGE}\.shortcut\.normalization", r"layer{1+1}.\2.downsample.1"),
        (r"classifier\.1", "fc"),
    ),
    _resnet,
)

# timm's names of what a block holds, by what it holds; each convolution is followed by its norm.
_UNITS = {
    "ccsc": ("conv_pw", "conv_dw", "se", "conv_pwl"), "ccc": ("conv_pw", "conv_dw", "conv_pwl"),
    "csc": ("conv_dw", "se", "conv_pw"), "cc": ("conv_dw", "conv_pw"),
}  # fmt: skip


def _units(block: str, place: str, kinds: Mapping[str, tuple[str, ...]]) -> Iterable[Rule]:
    """Rules for torchvision's inverted residuals: `block` matches the block, `place` is timm's name of it."""
    for kind, units in kinds.items():
        norms = 0
        for i, unit in enumerate(units):
            if unit == "se":
                yield rf"{block}:{kind}\.{i}\.fc1", rf"{place}.se.conv_reduce"
                yield rf"{block}:{kind}\.{i}\.fc2", rf"{place}.se.conv_expand"
            else:
                norms += 1
                yield rf"{block}:{kind}\.{i}\.0", rf"{place}.{unit}"
                yield rf"{block}:{kind}\.{i}\.1", rf"{place}.bn{norms}"


_TV_STEM: tuple[Rule, ...] = ((r"features\.0\.0", "conv_stem"), (r"features\.0\.1", "bn1"))
_TV_TOP: tuple[Rule, ...] = ((r"features\.\d+\.0", "conv_head"), (r"features\.\d+\.1", "bn2"))
_EFFICIENTNETS: dict[tuple[int, ...], Architecture] = {  # blocks, widths of the first and the last convolution
    (16, 32, 1280): ("efficientnet_b0", {}), (23, 32, 1280): ("efficientnet_b1", {}), (23, 32, 1408): ("efficientnet_b2", {}),
    (26, 40, 1536): ("efficientnet_b3", {}), (32, 48, 1792): ("efficientnet_b4", {}),
    (39, 48, 2048): ("efficientnet_b5", {"bn_eps": 0.001}), (45, 56, 2304): ("efficientnet_b6", {"bn_eps": 0.001}),
    (55, 64, 2560): ("efficientnet_b7", {"bn_eps": 0.001}), (40, 24, 1280): ("efficientnetv2_s", {"bn_eps": 0.001}),
    (57, 24, 1280): ("efficientnetv2_m", {"bn_eps": 0.001}), (79, 32, 1280): ("efficientnetv2_l", {"bn_eps": 0.001}),
}  # fmt: skip


def _efficientnet(shapes: Shapes, config: Config) -> Architecture | None:
    depth = sum(_blocks(shapes, r"blocks\.(\d+)\.(\d+)\."))
    return _EFFICIENTNETS.get((depth, *_width(shapes, "conv_stem.weight", "conv_head.weight")))


def _mobilenet(shapes: Shapes, config: Config) -> Architecture | None:
    known: dict[tuple[int, ...], Architecture] = {
        (32, 1280): ("mobilenetv2_100", {}),
        (16, 1280): ("mobilenetv3_large_100", {"bn_eps": 0.001}),
        (16, 1024): ("mobilenetv3_small_100", {"bn_eps": 0.001}),
    }
    return known.get(_width(shapes, "conv_stem.weight", "conv_head.weight"))


_TV_EFFICIENTNET = Lineage(
    "torchvision's EfficientNet",
    (
        *_TV_STEM,
        *_units(
            r"features\.(\d)\.(\d+)\.block",
            r"blocks.{1-1}.\2",
            {**_UNITS, "cc": ("conv_exp", "conv_pwl"), "c": ("conv",)},  # fused blocks
        ),
        *_TV_TOP,
        (r"classifier\.1", "classifier"),
    ),
    _efficientnet,
    parts=True,
)
_TV_MOBILENET_V2 = Lineage(
    "torchvision's MobileNetV2",
    (
        *_TV_STEM,
        *_units(r"features\.(\d+)\.conv", "blocks.{1@}", {"ccww": ("conv_pw", "conv_dw"), "cww": ("conv_dw",)}),
        (r"features\.(\d+)\.conv:ccww\.2", "blocks.{1@}.conv_pwl"),
        (r"features\.(\d+)\.conv:ccww\.3", "blocks.{1@}.bn3"),
        (r"features\.(\d+)\.conv:cww\.1", "blocks.{1@}.conv_pw"),
        (r"features\.(\d+)\.conv:cww\.2", "blocks.{1@}.bn2"),
        *_TV_TOP,
        (r"classifier\.1", "classifier"),
    ),
    _mobilenet,
    stages=(1, 2, 3, 4, 3, 3, 1),
    parts=True,
)
_TV_MOBILENETS_V3 = tuple(
    Lineage(
        "torchvision's MobileNetV3",
        (
            *_TV_STEM,
            *_units(r"features\.(\d+)\.block", "blocks.{1@}", _UNITS),
            (rf"features\.{sum(stages) + 1}\.0", f"blocks.{len(stages)}.0.conv"),
            (rf"features\.{sum(stages) + 1}\.1", f"blocks.{len(stages)}.0.bn1"),
            (r"classifier\.0\.weight", "conv_head.weight", "oi->oi11"),
            (r"classifier\.0\.bias", "conv_head.bias"),
            (r"classifier\.3", "classifier"),
        ),
        _mobilenet,
        stages=stages,
        parts=True,
    )
    for stages in ((1, 2, 3, 4, 2, 3), (1, 2, 3, 2, 3))
)


def _vgg(shapes: Shapes, config: Config) -> Architecture | None:
    convolutions = sum(name.startswith("features.") and len(shape) == 4 for name, shape in shapes.items())
    norm = "_bn" if any(name.endswith("running_var") for name in shapes) else ""
    return (f"vgg{convolutions + 3}{norm}", {}) if convolutions in (8, 10, 13, 16) else None


_TV_VGG = Lineage(
    "torchvision's VGG",
    (
        (r"features\.(\d+)", r"features.\1"),
        (r"classifier\.0\.weight", "pre_logits.fc1.weight", "o(i77)->oi77"),
        (r"classifier\.0\.bias", "pre_logits.fc1.bias"),
        (r"classifier\.3\.weight", "pre_logits.fc2.weight", "oi->oi11"),
        (r"classifier\.3\.bias", "pre_logits.fc2.bias"),
        (r"classifier\.6", "head.fc"),
    ),
    _vgg,
)

_TV_INCEPTION = Lineage(
    "torchvision's Inception v3",
    (
        (r"AuxLogits\..+", None),  # the auxiliary classifier; timm's network has none
        (r"(Conv2d_\d[ab]_\dx\d\.\w+|Mixed_\d[a-e]\.\w+\.\w+|fc)", r"\1"),
    ),
    lambda shapes, config: ("inception_v3", {}),
)
_GOOGLE_UNIT = r"resnet/block(\d)/unit(\d\d)"
_BITS: dict[tuple[int, ...], str] = {  # blocks of each stage, width of the first convolution
    (3, 4, 6, 3, 64): "resnetv2_50x1_bit", (3, 4, 6, 3, 192): "resnetv2_50x3_bit",
    (3, 4, 23, 3, 64): "resnetv2_101x1_bit", (3, 4, 23, 3, 192): "resnetv2_101x3_bit",
    (3, 8, 36, 3, 128): "resnetv2_152x2_bit", (3, 8, 36, 3, 256): "resnetv2_152x4_bit",
}  # fmt: skip


def _bit(shapes: Shapes, config: Config) -> Architecture | None:
    depths = _blocks(shapes, r"stages\.(\d)\.blocks\.(\d+)\.")
    name = _BITS.get((*depths, *_width(shapes, "stem.conv.weight")))
    return (name, {}) if name else None


_GOOGLE_BIT = Lineage(
    "Google's BiT",
    (
        (r"resnet/root_block/standardized_conv2d/kernel", "stem.conv.weight", "hwio->oihw"),
        *(
            rule
            for i, unit in enumerate("abc", 1)
            for rule in (
                (
                    rf"{_GOOGLE_UNIT}/{unit}/standardized_conv2d/kernel",
                    rf"stages.{{1-1}}.blocks.{{2-1}}.conv{i}.weight",
                    "hwio->oihw",
                ),
                (rf"{_GOOGLE_UNIT}/{unit}/group_norm/gamma", rf"stages.{{1-1}}.blocks.{{2-1}}.norm{i}.weight"),
                (rf"{_GOOGLE_UNIT}/{unit}/group_norm/beta", rf"stages.{{1-1}}.blocks.{{2-1}}.norm{i}.bias"),
            )
        ),
        (
            rf"{_GOOGLE_UNIT}/a/proj/standardized_conv2d/kernel",
            "stages.{1-1}.blocks.{2-1}.downsample.conv.weight",
            "hwio->oihw",
        ),
        (r"resnet/group_norm/gamma", "norm.weight"),
        (r"resnet/group_norm/beta", "norm.bias"),
        (r"resnet/head/conv2d/kernel", "head.fc.weight", "hwio->oihw"),
        (r"resnet/head/conv2d/bias", "head.fc.bias"),
    ),
    _bit,
)

LINEAGES = (
    _TV_DENSENET, _KERAS_DENSENET, *_WRAPPED_RESNETS, _HF_RESNET, _HF_VIT, _HF_DINOV2, _HF_BEIT, _HF_SWIN, _HF_CONVNEXT,
    _TV_VIT, _TV_SWIN, _TV_CONVNEXT, _TV_EFFICIENTNET, _TV_MOBILENET_V2, *_TV_MOBILENETS_V3, _TV_VGG, _TV_INCEPTION, _FLAX_VIT,
    _GOOGLE_BIT,
)  # fmt: skip
