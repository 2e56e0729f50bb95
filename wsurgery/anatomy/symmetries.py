"""Which hidden units of a network can change places without changing its function: from names and shapes, family by family.

A family is a function that names the space in which each axis of each tensor lies. Axes in one space must be put in one order:
the outputs of a convolution, the batch norm behind it and the inputs of the next one; all that is added in a residual stream.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsurgery.anatomy.blocks import Shapes
from wsurgery.anatomy.prefixes import common_prefix
from wsurgery.errors import WsurgeryError, printable

Spaces = str | Sequence[str]  # of an axis: one, or several end to end

_IMAGE, _CLASSES = "image", "classes"  # what comes in and goes out keeps its order
_STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Group:
    """Units that change places together.

    Attributes:
        name: of the group.
        spaces: name → number of units, cut in `blocks` equal blocks.
        blocks: heads of attention, or groups of a grouped convolution. They change places as wholes, in all spaces alike.
        rigid: the spaces whose blocks keep their order within; in the others the units of each block change places, too.
    """

    name: str
    spaces: Mapping[str, int]
    blocks: int = 1
    rigid: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Symmetry:
    """What can be permuted.

    Attributes:
        groups: each can be permuted by itself.
        axes: tensor → for each of its first axes the spaces that lie along it, end to end, with the length of each; those of
            no group keep their order. Tensors without an axis of a group are left out.
        notes: what was left as it is although it might be permuted, for people.
    """

    groups: Sequence[Group]
    axes: Mapping[str, tuple[tuple[tuple[str, int], ...], ...]]
    notes: Sequence[str]


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
            network = _Network(short, architecture or {}, f"{label}: as {family}")
            describe(network)
            return network.symmetry(prefix)
    chains = [_CHAIN.fullmatch(name) for name in short]
    if len({chain and chain[1] for chain in chains}) == 1 and all(chains):
        network = _Network(short, architecture or {}, f"{label}: as an MLP")
        _mlp(network)
        return network.symmetry(prefix)
    known = ", ".join(name.partition(" ")[2] for name in _FAMILIES)
    raise WsurgeryError(
        f"{label}: which of its units may change places is not known: names like {printable(min(shapes, default=''), 60)} "
        f"are of none of {known}"
    )


class _Network:
    """Tensors, and the spaces of their axes as far as they are known."""

    def __init__(self, shapes: Shapes, architecture: Mapping[str, Any], what: str) -> None:
        self.shapes, self.architecture, self.what = shapes, architecture, what
        self.sizes: dict[str, int] = {}
        self._axes: dict[str, list[Sequence[str]]] = {}
        self._blocks: dict[str, tuple[str, int, bool]] = {}  # space → group, its blocks, whether they are rigid
        self._fixed = {_IMAGE, _CLASSES}
        self._notes: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def outputs(self, module: str) -> int:
        """Return the number of a layer's outputs; 0 without a weight."""
        return (self.shapes.get(f"{module}.weight") or (0,))[0]

    def numbered(self, pattern: str) -> list[str]:
        """Return what the names begin with that the pattern matches, in the order of the numbers in it."""
        found = {match[0] for name in self.shapes if (match := re.match(rf"{pattern}(?=\.)", name))}
        return sorted(found, key=lambda part: [int(number) for number in re.findall(r"\d+", part)])

    def place(self, name: str, *axes: Spaces) -> None:
        """Say in which spaces the first axes of a tensor lie; a space that is new gets its size from it."""
        shape = self.shapes.get(name, ())
        if len(shape) != len(axes) and not len(shape) > len(axes) == 2:  # a kernel's sides have no spaces
            raise self._unlike(name)
        self._axes[name] = [[each] if isinstance(each, str) else each for each in axes]
        for length, spaces in zip(shape, self._axes[name], strict=False):
            if len(spaces) == 1:
                self.sizes.setdefault(spaces[0], length)
            if sum(self.sizes[space] for space in spaces) != length:
                raise self._unlike(name)

    def vector(self, name: str, space: Spaces) -> None:
        """Place a vector, if there is one of this name."""
        if name in self:
            self.place(name, space)

    def layer(self, module: str, into: Spaces, out: Spaces) -> None:
        """Place a convolution or linear layer."""
        self.place(f"{module}.weight", out, into)
        self.vector(f"{module}.bias", out)

    def convolution(self, module: str, into: str, out: str) -> str:
        """Place a convolution that may be grouped; return the space of its outputs, which are the inputs' if it is depthwise."""
        outputs, inside = (*self.shapes.get(f"{module}.weight", ()), 0, 0)[:2]
        groups = self.sizes[into] // inside if inside else 0
        if groups <= 1:
            self.layer(module, into, out)
            return out
        if inside * groups != self.sizes[into] or outputs % groups:
            raise self._unlike(f"{module}.weight")
        if inside == 1 and outputs == groups:
            out = into
        else:
            self.blocks(module, groups, {into: True, out: False})
        self.fix(f"{module} inside")
        self.place(f"{module}.weight", out, f"{module} inside")
        self.vector(f"{module}.bias", out)
        return out

    def blocks(self, group: str, count: int, rigid: Mapping[str, bool]) -> None:
        """Say that spaces are cut in blocks, which change places together; of a space that is cut already, none will."""
        if not self._blocks.keys().isdisjoint(rigid):
            self.fix(*rigid)
        for space, is_rigid in rigid.items():
            self._blocks.setdefault(space, (group, count, is_rigid))

    def batch_norm(self, module: str, space: Spaces) -> None:
        """Place a batch norm. One without running statistics may be a group norm, which ties channels to their places."""
        self.norm(module, space)
        for part in _STATISTICS:
            self.place(f"{module}.{part}", space)
        if f"{module}.num_batches_tracked" in self:
            self.place(f"{module}.num_batches_tracked")

    def norm(self, module: str, space: Spaces) -> None:
        """Place a layer norm, if there is one."""
        for part in ("weight", "bias"):
            self.vector(f"{module}.{part}", space)

    def squeeze_and_excite(self, first: str, second: str, space: str) -> None:
        """Place the two layers that weigh the channels of a space, if there are any."""
        if f"{first}.weight" in self:
            self.layer(first, space, first)
            self.layer(second, first, space)

    def head(self, module: str, space: Spaces) -> None:
        """Place a classifier, if there is one."""
        if f"{module}.weight" in self:
            self.layer(module, space, _CLASSES)

    def mlp(self, module: str, space: Spaces) -> None:
        """Place two layers, the first of which may make gates, too, and the norms between them."""
        hidden = f"{module}.fc1"
        self.place(f"{module}.fc2.weight", space, hidden)
        gated = self.outputs(hidden) == 2 * self.sizes[hidden]
        self.layer(hidden, space, [hidden, hidden] if gated else hidden)
        self.vector(f"{module}.fc2.bias", space)
        for norm in ("norm", "grn"):
            self.norm(f"{module}.{norm}", hidden)

    def fix(self, *spaces: str) -> None:
        """Say that the units of spaces keep their order."""
        self._fixed.update(spaces)

    def note(self, text: str) -> None:
        """Say once what is left as it is."""
        if text not in self._notes:
            self._notes.append(text)

    def symmetry(self, prefix: str) -> Symmetry:
        """Return what was placed.

        Raises:
            WsurgeryError: a tensor was not.
        """
        for name in self.shapes:
            if name not in self._axes:
                raise WsurgeryError(
                    f"{self.what}, it has no place for {printable(name)}: what may be permuted is not known"
                )
        members: dict[tuple[str, int], dict[str, bool]] = {}
        for space in self.sizes:
            group, count, rigid = self._blocks.get(space, (space, 1, False))
            members.setdefault((group, count), {})[space] = rigid
        groups = [
            Group(name, {space: self.sizes[space] for space in own}, count, frozenset(s for s in own if own[s]))
            for (name, count), own in members.items()
            if self._fixed.isdisjoint(own)
        ]
        free = {space for group in groups for space in group.spaces}
        axes = {
            prefix + name: tuple(tuple((space, self.sizes[space]) for space in each) for each in own)
            for name, own in self._axes.items()
            if any(not free.isdisjoint(each) for each in own)
        }
        return Symmetry(groups, axes, self._notes)

    def _unlike(self, name: str) -> WsurgeryError:
        if name not in self:
            return WsurgeryError(f"{self.what}, it should have {printable(name)}: what may be permuted is not known")
        shape = self.shapes[name]
        return WsurgeryError(
            f"{self.what}, {printable(name)} does not fit as {shape}: what may be permuted is not known"
        )


def _cbr(network: _Network) -> None:
    space = _IMAGE
    for block in network.numbered(r"block\d+"):
        network.layer(f"{block}.conv", space, block)
        network.batch_norm(f"{block}.bn", space := block)
    network.head("fc", space)


def _vgg(network: _Network) -> None:
    space = _IMAGE
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


def _densenet(network: _Network) -> None:
    space = _IMAGE
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


def _resnet(network: _Network) -> None:
    space = _IMAGE
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


def _efficientnet(network: _Network) -> None:
    network.layer("conv_stem", _IMAGE, "conv_stem")
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


def _convnext(network: _Network) -> None:
    network.layer("stem.0", _IMAGE, stream := "stem")
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


def _mixer(network: _Network) -> None:
    network.layer("stem.proj", _IMAGE, stream := "stem")
    network.fix("positions")
    for block in network.numbered(r"blocks\.\d+"):
        for norm in ("norm1", "norm2"):
            network.norm(f"{block}.{norm}", stream)
        network.mlp(f"{block}.mlp_tokens", "positions")
        network.mlp(f"{block}.mlp_channels", stream)
    network.norm("norm", stream)
    network.head("head", stream)


def _vit(network: _Network) -> None:
    network.layer("patch_embed.proj", _IMAGE, stream := "patch_embed")
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
    for head in ("head", "head_dist"):
        network.head(head, stream)


def _attention(network: _Network, module: str, stream: str) -> None:
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
        network.note("attention is left as it is: the number of its heads is not recorded")
    normed = f"{module}.q_norm.weight" in network
    for norm in ("q_norm", "k_norm"):  # one for all heads
        network.norm(f"{module}.{norm}", f"{module} norm")
    network.fix(f"{module} norm")
    network.blocks(module, heads or 1, {keys: normed, values: False})


def _heads(architecture: Mapping[str, Any], size: int) -> int | None:
    """Return the number of heads of a vision transformer, from its arguments or timm's name; None if that is not known."""
    name, args = str(architecture.get("name")), architecture.get("args", {})
    heads = args.get("num_heads")
    if re.match(r"(?:vit|deit|deit3|flexivit)_", name) and "model" not in architecture and not args.keys() & _SIZES:
        heads = 16 if size in (1152, 1280, 1408, 1664) else size // 64
    return heads if isinstance(heads, int) and heads > 0 and size % heads == 0 else None


def _mlp(network: _Network) -> None:
    """A chain of linear layers by their numbers, `fc1`, `fc2` or `layers.0`, `layers.2`, with batch norms between them."""
    modules = network.numbered(r"\D*\d+")
    linear = [module for module in modules if len(network.shapes.get(f"{module}.weight", ())) == 2]
    space = _IMAGE
    for module in modules:
        if module in linear:
            network.layer(module, space, _CLASSES if module == linear[-1] else module)
            space = module
        else:
            network.batch_norm(module, space)
    network.note("the layers are taken for a chain, in the order of their numbers")


_SIZES = {"embed_dim", "num_heads"}  # arguments by which a ViT is not that of its name
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
