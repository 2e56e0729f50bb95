"""The families of networks whose units can change places: for each a function that places its tensors, by timm's names."""

import re
from collections.abc import Mapping
from typing import Any

from wsurgery.anatomy.blocks import Shapes
from wsurgery.anatomy.prefixes import common_prefix
from wsurgery.anatomy.symmetries import CLASSES, IMAGE, Network, Symmetry
from wsurgery.errors import WsurgeryError, printable


def find_symmetry(shapes: Shapes, architecture: Mapping[str, Any] | None, label: str) -> Symmetry:
    """Say which units of a network can change places.

    Args:
        shapes: tensor name → shape.
        architecture: the entry of the metadata, which tells the number of a vision transformer's heads.
        label: what messages call the checkpoint.

    Raises:
        WsurgeryError: it is of no known family, or has a tensor that its family does not have.
    """
    prefix = common_prefix(shapes)
    short = {name[len(prefix) :]: shape for name, shape in shapes.items()}
    for family, (sign, describe) in _FAMILIES.items():
        if all(name in short for name in sign):
            network = Network(short, architecture or {}, f"{label}: as {family}")
            describe(network)
            return network.symmetry(prefix)
    chains = [_CHAIN.fullmatch(name) for name in short]
    if len({chain and chain[1] for chain in chains}) == 1 and all(chains):
        network = Network(short, architecture or {}, f"{label}: as an MLP")
        _mlp(network)
        return network.symmetry(prefix)
    known = ", ".join(name.partition(" ")[2] for name in [*_FAMILIES, "an MLP"])
    raise WsurgeryError(
        f"{label}: which of its units may change places is not known: names like {printable(min(shapes, default=''), 60)} "
        f"are of none of {known}"
    )


def _cbr(network: Network) -> None:
    space = IMAGE
    for block in network.numbered(r"block\d+"):
        network.layer(f"{block}.conv", space, block)
        network.batch_norm(f"{block}.bn", space := block)
    network.head("fc", space)


def _vgg(network: Network) -> None:
    space = IMAGE
    for module in network.numbered(r"features\.\d+"):
        if len(network.shapes.get(f"{module}.weight", ())) > 1:
            network.layer(module, space, module)
            space = module
        else:
            network.batch_norm(module, space)
    for module in network.numbered(r"pre_logits\.fc\d"):
        network.layer(module, space, module)
        space = module
    network.head("head.fc", space)


def _densenet(network: Network) -> None:
    space = IMAGE
    for conv in network.numbered(r"features\.conv\d"):
        network.layer(conv, space, conv)
        network.batch_norm(conv.replace("conv", "norm"), space := conv)
    spaces = [space]
    for part in sorted(
        network.numbered(r"features\.(?:denseblock\d+\.denselayer\d+|transition\d+)"),
        key=lambda part: [int(number) for number in re.findall(r"\d+", f"{part}.999999")][:2],
    ):
        if "transition" in part:
            network.batch_norm(f"{part}.norm", spaces)
            network.layer(f"{part}.conv", spaces, part)
            spaces = [part]
            continue
        network.batch_norm(f"{part}.norm1", spaces)
        network.layer(f"{part}.conv1", spaces, f"{part}.conv1")
        network.batch_norm(f"{part}.norm2", f"{part}.conv1")
        network.layer(f"{part}.conv2", f"{part}.conv1", part)
        spaces = [*spaces, part]
    network.batch_norm("features.norm5", spaces)
    network.head("classifier", spaces)


def _resnet(network: Network) -> None:
    space = IMAGE
    for module in network.numbered(r"conv1(?:\.[036])?"):
        if f"{module}.weight" in network:
            network.layer(module, space, module)
            space = module
            if module in ("conv1.0", "conv1.3"):
                network.batch_norm(f"conv1.{int(module[-1]) + 1}", space)
    network.batch_norm("bn1", stream := space)
    for block in network.numbered(r"layer\d+\.\d+"):
        last = len(network.numbered(rf"{re.escape(block)}\.conv\d"))
        for i in range(1, last):
            conv = f"{block}.conv{i}"
            space = network.convolution(conv, stream if i == 1 else space, conv)
            network.batch_norm(f"{block}.bn{i}", space)
        into = stream
        for i in (0, 1):  # behind a pooling, if there is one
            if f"{block}.downsample.{i}.weight" in network and f"{block}.downsample.{i + 1}.weight" in network:
                network.layer(f"{block}.downsample.{i}", into, stream := block)
                network.batch_norm(f"{block}.downsample.{i + 1}", stream)
        if (
            stream is into and network.outputs(f"{block}.conv{last}") != network.sizes[into]
        ):  # channels of zeros are added, who knows where
            network.fix(into, stream := block)
            network.note("the residual stream is left as it is: a shortcut widens it without weights")
        network.layer(f"{block}.conv{last}", space, stream)
        network.batch_norm(f"{block}.bn{last}", stream)
        network.squeeze_and_excite(f"{block}.se.fc1", f"{block}.se.fc2", stream)
    network.head("fc" if "fc.weight" in network else "linear", stream)


def _efficientnet(network: Network) -> None:
    network.layer("conv_stem", IMAGE, "conv_stem")
    network.batch_norm("bn1", stream := "conv_stem")
    for block in network.numbered(r"blocks\.\d+\.\d+"):
        convs = [f"{block}.{conv}" for conv in ("conv", "conv_exp", "conv_pw", "conv_dw", "conv_pwl")]
        convs = [conv for conv in convs if f"{conv}.weight" in network]
        if f"{block}.conv_pwl" not in convs:  # the pointwise one is behind the depthwise one
            convs.sort(key=lambda conv: conv.endswith("conv_pw"))
        space = stream
        for i, conv in enumerate(convs, 1):
            if conv == convs[-1]:
                network.squeeze_and_excite(f"{block}.se.conv_reduce", f"{block}.se.conv_expand", space)
                # A shortcut, if the stride is 1: to tie what need not be tied does no harm.
                same = network.outputs(conv) == network.sizes[stream]
                network.layer(conv, space, stream := stream if same else block)
                space = stream
            else:
                space = network.convolution(conv, space, conv)
            network.batch_norm(f"{block}.bn{i}", space)
    if "conv_head.weight" in network:
        network.layer("conv_head", stream, "conv_head")
        stream = "conv_head"
        if "bn2.weight" in network:
            network.batch_norm("bn2", stream)
    network.head("classifier", stream)


def _convnext(network: Network) -> None:
    network.layer("stem.0", IMAGE, stream := "stem")
    network.norm("stem.1", stream)
    for part in network.numbered(r"stages\.\d+\.(?:downsample|blocks\.\d+)"):
        if part.endswith("downsample"):
            network.norm(f"{part}.0", stream)
            network.layer(f"{part}.1", stream, part)
            stream = part
            continue
        network.convolution(f"{part}.conv_dw", stream, part)
        network.norm(f"{part}.norm", stream)
        network.mlp(f"{part}.mlp", stream)
        network.vector(f"{part}.gamma", stream)
    for norm in ("norm_pre", "head.norm"):
        network.norm(norm, stream)
    network.head("head.fc", stream)


def _mixer(network: Network) -> None:
    network.layer("stem.proj", IMAGE, stream := "stem")
    network.fix("positions")
    for block in network.numbered(r"blocks\.\d+"):
        for norm in ("norm1", "norm2"):
            network.norm(f"{block}.{norm}", stream)
        network.mlp(f"{block}.mlp_tokens", "positions")
        network.mlp(f"{block}.mlp_channels", stream)
    network.norm("norm", stream)
    network.head("head", stream)


def _vit(network: Network) -> None:
    network.layer("patch_embed.proj", IMAGE, stream := "patch_embed")
    for table in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        if table in network:
            network.fix(f"{table} 0", f"{table} 1")
            network.place(table, f"{table} 0", f"{table} 1", stream)
    for block in network.numbered(r"blocks\.\d+"):
        _attention(network, f"{block}.attn", stream)
        network.mlp(f"{block}.mlp", stream)
        for part in ("norm1", "norm2"):
            network.norm(f"{block}.{part}", stream)
        for part in ("ls1", "ls2"):
            network.vector(f"{block}.{part}.gamma", stream)
    for norm in ("patch_embed.norm", "norm_pre", "norm", "fc_norm"):
        network.norm(norm, stream)
    network.head("head", stream)
    if "head_dist.weight" in network:  # of a distilled one
        network.head("head_dist", stream)


def _attention(network: Network, module: str, stream: str) -> None:
    """Place attention: q, k and v as timm joins them, (3, heads, units of a head), and what follows."""
    keys, values = f"{module} q and k", f"{module} v"
    network.place(f"{module}.proj.weight", stream, values)
    network.sizes[keys] = size = network.sizes[values]
    network.layer(f"{module}.qkv", stream, [keys, keys, values])
    network.vector(f"{module}.proj.bias", stream)
    network.norm(f"{module}.norm", values)
    heads = _heads(network.architecture, size)
    if not heads:
        network.fix(keys, values)
        network.note("attention is left as it is: what kind it is, and of how many heads, is not recorded")
    normed = f"{module}.q_norm.weight" in network
    network.fix(f"{module} norm")
    for norm in ("q_norm", "k_norm"):  # one for all heads
        network.norm(f"{module}.{norm}", f"{module} norm")
    network.blocks(module, heads or 1, {keys: normed, values: False})


# Those whose heads do not follow from their width as the others' do: of timm's names the beginnings.
_HEADS = {"vit_base_patch16_gap": 16, "vit_giantopt_patch16": 16}


def _heads(architecture: Mapping[str, Any], size: int) -> int | None:
    """Return the number of heads of one of timm's vision transformers, None if that is not known.

    Rotary embeddings, which have no tensors, bind q and k to their places: of `vit_pe_*` and what timm has not, nothing is known.
    """
    args = architecture.get("args", {})
    if "model" in architecture or not re.match(r"(?:vit|deit|deit3|flexivit)_(?!pe_)", architecture.get("name", "")):
        return None
    heads = args.get("num_heads")
    if heads is None and "embed_dim" not in args:
        own = next((n for name, n in _HEADS.items() if architecture["name"].startswith(name)), None)
        heads = own or (16 if size in (1152, 1280, 1408, 1664) else size // 64)
    return heads if isinstance(heads, int) and heads > 0 and size % heads == 0 else None


def _mlp(network: Network) -> None:
    """A chain of linear layers by their numbers, `fc1`, `fc2` or `layers.0`, `layers.2`, with batch norms between them."""
    modules = network.numbered(r"\D*\d+")
    linear = [module for module in modules if len(network.shapes.get(f"{module}.weight", ())) == 2]
    shape = network.shapes[f"{linear[0]}.weight"] if linear else ()
    if len(set(shape)) == 1 and f"{linear[0]}.bias" not in network:
        raise WsurgeryError(
            f"{network.what}, {printable(linear[0])}.weight {shape} without a bias may be an embedding, whose rows are inputs: "
            "what may be permuted is not known"
        )
    space = IMAGE
    for module in modules:
        if module in linear:
            out = CLASSES if module == linear[-1] else module
            network.layer(module, space, out)
            space = out
        else:
            network.batch_norm(module, space)
    network.note("the layers are taken for a chain, in the order of their numbers")


_CHAIN = re.compile(r"(.*?)\d+\.(?:weight|bias|running_mean|running_var|num_batches_tracked)")
# Family → names of tensors that it is known by; the first that fits counts.
_FAMILIES = {
    "a CBR network": (("block1.conv.weight", "block1.bn.weight"), _cbr),
    "a VGG": (("features.0.weight", "pre_logits.fc1.weight"), _vgg),
    "a DenseNet": (("features.denseblock1.denselayer1.conv1.weight",), _densenet),
    "a ResNet": (("layer1.0.conv1.weight", "bn1.weight"), _resnet),
    "an EfficientNet": (("conv_stem.weight", "bn1.weight", "blocks.0.0.bn1.weight"), _efficientnet),
    "a ConvNeXt": (("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"), _convnext),
    "a Mixer": (("stem.proj.weight", "blocks.0.mlp_tokens.fc1.weight"), _mixer),
    "a ViT": (("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"), _vit),
}
