"""Names of other libraries to timm's, recognised from names and shapes.

A lineage is one function, from shapes to the architecture's name and the new names, or None where the tensors are not
of its kind; and one line in `_LINEAGES`.
"""

import contextlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from wsurgery.anatomy.blocks import HEAD, Shapes, block_map, first_convolution
from wsurgery.errors import UsageError

_PREFIXES = ("module.", "_orig_mod.", "model.")  # of data-parallel, compiled and Lightning modules


@dataclass(frozen=True)
class TimmNames:
    """What a state dict's tensors are called.

    Attributes:
        names: name in the file → new name, in the file's order.
        architecture: timm's name of the network; None where no lineage was recognised.
        prefix: what was stripped from every name.
    """

    names: dict[str, str]
    architecture: str | None
    prefix: str


def to_timm(shapes: Shapes) -> TimmNames:
    """Strip wrappers' prefixes that all names share, and give tensors of a known lineage timm's names.

    Args:
        shapes: tensor name → shape.
    """
    prefix = common_prefix(shapes)
    inner = {name[len(prefix) :]: shape for name, shape in shapes.items()}
    for lineage in _LINEAGES:
        found = lineage(inner)
        if found is not None and len(set(found[1].values())) == len(inner):
            architecture, names = found
            return TimmNames({prefix + name: names[name] for name in inner}, architecture, prefix)
    return TimmNames({prefix + name: name for name in inner}, None, prefix)


def common_prefix(names: Iterable[str]) -> str:
    """Return the wrappers' prefixes that all names share: `module.`, `_orig_mod.`, `model.`, in any order."""
    names, prefix = list(names), ""
    while names:
        shared = next((p for p in _PREFIXES if all(n.startswith(prefix + p) and n != prefix + p for n in names)), None)
        if shared is None:
            break
        prefix += shared
    return prefix


def describe_architecture(name: str, shapes: Shapes) -> dict[str, Any]:
    """Return the entry of the metadata for a network of timm's `name`, its sizes read off the tensors.

    `num_classes` is the number of rows of the last weight in the head (0: no head), `in_chans` the channels that the first
    convolution meets; it is left out where no convolution meets the image.
    """
    blocks = block_map(shapes)
    heads = [shapes[key] for key in shapes if blocks[key] == HEAD and len(shapes[key]) > 1]
    architecture = {"name": name, "num_classes": heads[-1][0] if heads else 0, "args": {}}
    with contextlib.suppress(UsageError):
        architecture["in_chans"] = shapes[first_convolution(shapes)][1]
    return architecture


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


_LINEAGES = (efficientnet_lite,)
