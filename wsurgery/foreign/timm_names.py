"""Names of other libraries to timm's, recognised from names and shapes.

A lineage is a table in `lineages.py`, or one function from shapes to the architecture's name and the new names. It is
taken where it knows every tensor and no two get one name; else the names stay.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from wsurgery.errors import UsageError, printable
from wsurgery.foreign.lineages import LINEAGES, Config, Lineage, Shapes
from wsurgery.foreign.wrappers import unwrapped

# What people call the attribute that holds their network.
_FAMILY = re.compile(
    r"(?:(?:wide_)?res(?:net|next)|(?:se)?resnet|densenet|efficientnet|mobilenet|inception|vgg|convnext|regnet|swin|vit|deit)"
    r"[\w]{0,40}\.|(?:cnn|feature_extractor|extractor|img_encoder|image_encoder)\."
)
_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Piece:
    """A tensor of the file as it goes into one of the result.

    Attributes:
        name: its name in the file.
        before: its shape, split where a layout splits a dimension.
        axes: the order in which these dimensions are stored.
        shape: the shape after that.
    """

    name: str
    before: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TimmNames:
    """What a state dict's tensors become.

    Attributes:
        pieces: new name → what it is joined from along the first dimension, mostly one tensor as it is.
        left_out: names in the file that have no counterpart in timm.
        architecture: timm's name of the network and more arguments; None where it is not recognised.
        lineage: whose names they were; None where none was recognised.
        prefix: what was stripped from every name.
        inner: wrappers' parts that were taken out of names.
        beside: names in the file of tensors of the training, which are left out.
    """

    pieces: dict[str, tuple[Piece, ...]]
    left_out: tuple[str, ...] = ()
    architecture: tuple[str, dict[str, Any]] | None = None
    lineage: str | None = None
    prefix: str = ""
    inner: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by new name."""
        return {name: joined_shape(pieces) for name, pieces in self.pieces.items()}


def same_names(shapes: Shapes) -> TimmNames:
    """Leave every name as it is."""
    return TimmNames({name: _as_it_is(name, shape) for name, shape in shapes.items()})


def to_timm(shapes: Shapes, config: Config | None = None) -> TimmNames:
    """Take wrappers off, and give tensors of a known lineage timm's names.

    Args:
        shapes: tensor name → shape.
        config: what Hugging Face's config.json beside the file says.

    Raises:
        UsageError: tensors that timm joins do not fit together.
    """
    bare = unwrapped(shapes)
    held, prefix = bare.names, bare.prefix
    found = _renamed_to_timm(held, shapes, config or {})
    inside = _without_attribute(held)
    if found is None and inside:
        found = _renamed_to_timm(inside, shapes, config or {})
        if found or _FAMILY.match(next(iter(held))):
            prefix, held = prefix + next(iter(held)).partition(".")[0] + ".", inside
    if found is None:
        found = TimmNames({new: _as_it_is(old, shapes[old]) for new, old in held.items()})
    return replace(found, prefix=prefix, inner=bare.inner, beside=bare.left_out)


def _renamed_to_timm(held: Mapping[str, str], shapes: Shapes, config: Config) -> TimmNames | None:
    """Rename by the first lineage that knows all names (unwrapped name → name in the file); None if there is none."""
    inner = {name: shapes[old] for name, old in held.items()}
    if (lite := efficientnet_lite(inner)) and len(set(lite[1].values())) == len(inner):
        pieces = {new: _as_it_is(held[old], inner[old]) for old, new in lite[1].items()}
        return TimmNames(pieces, (), (lite[0], {}), "EfficientNet-lite")
    for lineage in LINEAGES:
        if found := _follow(lineage, inner, held):
            try:
                architecture = lineage.architecture(found.shapes, config)
            except (LookupError, ValueError, ArithmeticError):  # a tensor is missing or odd: only a part of a network
                architecture = None
            if architecture or not lineage.whole:
                return replace(found, architecture=architecture)
    return None


def _without_attribute(held: Mapping[str, str]) -> dict[str, str]:
    """Take off what all names begin with, an attribute of somebody's class; {} if they begin with several things."""
    first = {name.partition(".")[0] for name in held}
    return {name.partition(".")[2]: old for name, old in held.items()} if len(first) == 1 and "" not in first else {}


def joined_shape(pieces: tuple[Piece, ...]) -> tuple[int, ...]:
    """Shape of the pieces joined along their first dimension.

    Raises:
        UsageError: they do not fit together.
    """
    if len(pieces) == 1:
        return pieces[0].shape
    if any(not piece.shape or piece.shape[1:] != pieces[0].shape[1:] for piece in pieces):
        shown = ", ".join(f"{printable(piece.name)} {piece.shape}" for piece in pieces)
        raise UsageError(f"{shown} cannot be joined: keep the names with --keep-names")
    return (sum(piece.shape[0] for piece in pieces), *pieces[0].shape[1:])


def _as_it_is(name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
    return (Piece(name, shape, tuple(range(len(shape))), shape),)


def _follow(lineage: Lineage, shapes: Shapes, held: Mapping[str, str]) -> TimmNames | None:
    """Apply a lineage's rules; None where it does not fit, or leaves everything as it is.

    Args:
        lineage: the names.
        shapes: unwrapped name → shape.
        held: unwrapped name → name in the file.
    """
    matched = _with_parts(shapes) if lineage.parts else {name: name for name in shapes}
    found: dict[str, dict[str, Piece]] = defaultdict(dict)
    left_out = []
    for name, shape in shapes.items():
        try:
            new, layout = _renamed(lineage, matched[name])
            if new is None:
                left_out.append(held[name])
                continue
            piece = rearranged(held[name], shape, layout) if layout else _as_it_is(held[name], shape)[0]
        except (LookupError, ValueError):
            return None
        new, _, number = new.partition("#")
        if number in found[new]:
            return None
        found[new][number] = piece
    pieces = {new: tuple(numbered[i] for i in sorted(numbered)) for new, numbered in found.items()}
    is_whole = all(sorted(numbered) in ([""], ["0", "1", "2"]) for numbered in found.values())
    if not is_whole or not (left_out or pieces.keys() - shapes.keys()):
        return None
    return TimmNames(pieces, tuple(left_out), None, lineage.title)


def _renamed(lineage: Lineage, name: str) -> tuple[str | None, str]:
    """Return the new name (None: leave it out) and the layout, if any.

    Raises:
        LookupError: no rule matches, or a block's number is beyond the stages.
    """
    module, _, leaf = name.rpartition(".")
    for pattern, new, *layout in lineage.rules:
        kept = ""
        match = re.fullmatch(pattern, name, re.ASCII)
        if match is None and leaf in _LEAVES:
            match, kept = re.fullmatch(pattern, module, re.ASCII), f".{leaf}"
        if match is None:
            continue
        if new is None:
            return None, ""
        new, joined, number = new.partition("#")
        filled = re.sub(r"\{(\d)(\S+?)\}", partial(_number, match, lineage.stages), new)
        return match.expand(filled) + kept + joined + number, "".join(layout)
    raise LookupError(name)


def _number(match: re.Match[str], stages: tuple[int, ...], field: re.Match[str]) -> str:
    n, change = int(match[int(field[1])]), field[2]
    if change == "@":
        places = (f"{stage}.{index}" for stage, size in enumerate(stages) for index in range(size))
        return dict(enumerate(places, 1))[n]
    return str({"-1": n - 1, "+1": n + 1, "//2": n // 2}[change])


def rearranged(name: str, shape: tuple[int, ...], layout: str) -> Piece:
    """Apply a layout, as `hwio->oihw`: letters are dimensions, digits sizes, a bracket several that are one.

    Raises:
        ValueError: the shape does not fit the layout.
    """
    left, right = (re.findall(r"\((\w+)\)|(\w)", side) for side in layout.split("->"))
    sizes: dict[str, int] = {}
    for (joined, single), size in zip(left, shape, strict=True):
        known = math.prod(int(letter) for letter in joined + single if letter.isdigit())
        unknown = [letter for letter in joined + single if letter.isalpha()]
        if size % known or (not unknown and size != known):
            raise ValueError(f"{shape} does not fit {layout}")
        sizes |= dict.fromkeys(unknown, size // known)  # of several unknown ones in a bracket none could be told
    stored = [letter for joined, single in left for letter in joined + single]
    wanted = [letter for joined, single in right for letter in joined + single]
    letters = [letter for letter in wanted if letter in sizes]
    axes = sorted(range(len(stored)), key=lambda i: letters.index(stored[i]) if stored[i] in sizes else len(stored))
    after = [math.prod(sizes.get(letter) or int(letter) for letter in joined + single) for joined, single in right]
    return Piece(name, tuple(sizes.get(letter) or int(letter) for letter in stored), tuple(axes), tuple(after))


def _with_parts(names: Iterable[str]) -> dict[str, str]:
    """Write into each name what its block holds: `features.2.0.block.1.0.weight` has `block:ccsc` for `block`."""
    split = {
        name: re.fullmatch(r"(features\.[\d.]+)\.(block|conv)\.(\d{1,4})\.(\w+).*", name, re.ASCII) for name in names
    }
    held: dict[str, dict[int, str]] = defaultdict(dict)
    for match in split.values():
        if match:
            kind = "c" if match[4].isdigit() else "s" if match[4] in ("fc1", "fc2") else "w"
            held[match[1]][int(match[3])] = kind
    return {
        name: f"{match[1]}.{match[2]}:{''.join(held[match[1]][i] for i in sorted(held[match[1]]))}{name[match.end(2) :]}"
        if match
        else name
        for name, match in split.items()
    }


# Blocks, and the width of the trunk's end → timm's name (the twin without tf_ pads differently), blocks of each stage.
_LITES: dict[tuple[int, ...], tuple[str, tuple[int, ...]]] = {
    (16, 320): ("tf_efficientnet_lite0", (1, 2, 2, 3, 3, 4, 1)),
    (21, 320): ("tf_efficientnet_lite1", (1, 3, 3, 4, 4, 5, 1)),
    (21, 352): ("tf_efficientnet_lite2", (1, 3, 3, 4, 4, 5, 1)),
    (24, 384): ("tf_efficientnet_lite3", (1, 3, 3, 5, 5, 6, 1)),
    (30, 448): ("tf_efficientnet_lite4", (1, 4, 4, 6, 6, 8, 1)),
}
_LITE_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE_EXPANDED = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_LITE_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def efficientnet_lite(shapes: Shapes) -> tuple[str, dict[str, str]] | None:
    """Rename EfficientNet-PyTorch's lite models: `_blocks.3._expand_conv.weight` is `blocks.2.0.conv_pw.weight`."""
    parsed = {name: re.fullmatch(r"(?:_blocks\.(\d{1,3})\.)?(_\w+)\.(\w+)", name, re.ASCII) for name in shapes}
    numbers = {int(match[1]) for match in parsed.values() if match and match[1]}
    kind = _LITES.get((len(numbers), *shapes.get("_conv_head.weight", ())[1:2]))
    if kind is None:
        return None
    architecture, stages = kind
    places = [(stage, index) for stage, size in enumerate(stages) for index in range(size)]
    names = {}
    for name, match in parsed.items():
        if match is None:
            return None
        number, part, leaf = match.groups()
        if number is None:
            table, place = _LITE_TOP, ""
        elif int(number) < len(places):
            table = _LITE_EXPANDED if f"_blocks.{number}._expand_conv.weight" in shapes else _LITE_SEPARABLE
            place = "blocks.{}.{}.".format(*places[int(number)])
        else:
            return None
        if part not in table:
            return None
        names[name] = f"{place}{table[part]}.{leaf}"
    return architecture, names
