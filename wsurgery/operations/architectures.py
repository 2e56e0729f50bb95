"""The networks that can be made without torch: the paper's CBR family and timm's plain ResNets, as tables of tensors.

The tables are data, not modules: what a network computes is in `wsurgery.models` and timm, whose names, shapes and order
these are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from wsurgery.anatomy.architecture import Architecture
from wsurgery.errors import UsageError, printable

CBR_FAMILY: Mapping[str, Mapping[str, Any]] = {  # Raghu et al. 2019, appendix A
    "cbr_large_t": {"kernel": 7, "widths": (32, 64, 128, 256, 512), "last_pool": False},
    "cbr_large_w": {"kernel": 7, "widths": (64, 128, 256, 512)},
    "cbr_small": {"kernel": 7, "widths": (32, 64, 128, 256)},
    "cbr_tiny": {"kernel": 5, "widths": (64, 128, 256, 512)},
    "cbr_tiny_narrow": {"kernel": 5, "widths": (32, 64, 128, 256)},
}
SLIM_CHANNELS = (64, 128, 128, 256)  # ResNet-50 has (64, 128, 256, 512); the bottleneck multiplies each by 4


class _ResNet(NamedTuple):
    """What tells one of timm's plain ResNets from another.

    Attributes:
        layers: residual blocks of each stage.
        bottleneck: whether a block is 1×1, 3×3, 1×1 with four times the channels, or 3×3, 3×3.
        cardinality: groups of the 3×3 convolution in a bottleneck.
        base_width: its channels in each group, where the stage has 64.
        stem: output channels of three 3×3 convolutions; none for one of 7×7.
        pools: whether a shortcut pools before its 1×1 convolution.
        channels: of each stage.
    """

    layers: tuple[int, ...]
    bottleneck: bool = True
    cardinality: int = 1
    base_width: int = 64
    stem: tuple[int, ...] = ()
    pools: bool = False
    channels: tuple[int, ...] = (64, 128, 256, 512)

    def width(self, channels: int) -> int:
        """Return the channels of the 3×3 convolution in a stage of `channels`."""
        return math.floor(channels * self.base_width / 64) * self.cardinality if self.bottleneck else channels


_PLAIN, _TIERED, _WIDE = (32, 32, 64), (24, 32, 64), (64, 64, 128)
RESNETS = {
    "resnet10t": _ResNet((1, 1, 1, 1), bottleneck=False, stem=_TIERED, pools=True),
    "resnet14t": _ResNet((1, 1, 1, 1), stem=_TIERED, pools=True),
    "resnet18": _ResNet((2, 2, 2, 2), bottleneck=False),
    "resnet18d": _ResNet((2, 2, 2, 2), bottleneck=False, stem=_PLAIN, pools=True),
    "resnet26": _ResNet((2, 2, 2, 2)),
    "resnet26d": _ResNet((2, 2, 2, 2), stem=_PLAIN, pools=True),
    "resnet26t": _ResNet((2, 2, 2, 2), stem=_TIERED, pools=True),
    "resnet34": _ResNet((3, 4, 6, 3), bottleneck=False),
    "resnet34d": _ResNet((3, 4, 6, 3), bottleneck=False, stem=_PLAIN, pools=True),
    "resnet50": _ResNet((3, 4, 6, 3)),
    "resnet50_slim": _ResNet((3, 4, 6, 3), channels=SLIM_CHANNELS),
    "resnet50c": _ResNet((3, 4, 6, 3), stem=_PLAIN),
    "resnet50d": _ResNet((3, 4, 6, 3), stem=_PLAIN, pools=True),
    "resnet50s": _ResNet((3, 4, 6, 3), stem=_WIDE),
    "resnet50t": _ResNet((3, 4, 6, 3), stem=_TIERED, pools=True),
    "resnet101": _ResNet((3, 4, 23, 3)),
    "resnet101d": _ResNet((3, 4, 23, 3), stem=_PLAIN, pools=True),
    "resnet152": _ResNet((3, 8, 36, 3)),
    "resnet152d": _ResNet((3, 8, 36, 3), stem=_PLAIN, pools=True),
    "wide_resnet50_2": _ResNet((3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": _ResNet((3, 4, 23, 3), base_width=128),
    "resnext50_32x4d": _ResNet((3, 4, 6, 3), cardinality=32, base_width=4),
    "resnext101_32x4d": _ResNet((3, 4, 23, 3), cardinality=32, base_width=4),
    "resnext101_32x8d": _ResNet((3, 4, 23, 3), cardinality=32, base_width=8),
    "resnext101_64x4d": _ResNet((3, 4, 23, 3), cardinality=64, base_width=4),
}
_WITHOUT_TENSORS = {"drop_rate", "drop_path_rate"}  # arguments that leave the tensors as they are

Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Layout:
    """The tensors of a network.

    Attributes:
        architecture: the entry of the metadata, complete.
        shapes: tensor name → shape, in the order of timm's `state_dict`.
        zeros: those that start at zero: the weight of the last batch norm of each residual block (`zero_init_last`).
    """

    architecture: Architecture
    shapes: Mapping[str, tuple[int, ...]]
    zeros: frozenset[str] = frozenset()


def find_layout(architecture: Architecture) -> Layout | None:
    """Return the tensors of a network.

    Args:
        architecture: as the metadata has it; `num_classes` and `in_chans` may be missing or None: 1000 and 3.

    Returns:
        None for a network that is not in the tables, and for arguments that they do not know: timm knows more.
    """
    name, args = architecture["name"], architecture.get("args", {})
    classes, in_chans = (
        default if architecture.get(key) is None else architecture[key]
        for key, default in (("num_classes", 1000), ("in_chans", 3))
    )
    complete = {"name": name, "num_classes": classes, "in_chans": in_chans, "args": args}
    if any(not _is_number(args[key]) for key in _WITHOUT_TENSORS & args.keys()):
        return None
    if name in CBR_FAMILY and args.keys() <= {"width", "drop_rate"} and _is_number(args.get("width", 1)):
        family = CBR_FAMILY[name]
        channels = scale_widths(family["widths"], args.get("width", 1))
        return Layout(complete, dict(_cbr(family["kernel"], channels, in_chans, classes)))
    if name in RESNETS and args.keys() <= {"channels", *_WITHOUT_TENSORS}:
        network = RESNETS[name]
        given = args.get("channels", network.channels)
        if not _are_sizes(given) or len(given) != len(network.layers) or not network.width(min(given)):
            return None
        network = network._replace(channels=tuple(given))
        shapes = dict(_resnet(network, in_chans, classes))
        last = ".bn3.weight" if network.bottleneck else ".bn2.weight"
        zeros = (key for key in shapes if key.startswith("layer") and key.endswith(last))
        return Layout(complete, shapes, frozenset(zeros))
    return None


_WIDEST = 1000  # times a network's own width


def width_arguments(name: str, width: float) -> dict[str, Any]:
    """Return the arguments that give the network `name` all its widths times `width`: of a ResNet, those of its stages.

    Raises:
        UsageError: it is none of the networks here, or the factor is too large, or too small for its groups.
    """
    if not width <= _WIDEST:  # nor NaN
        raise UsageError(f"--width {width:g}: give a factor of at most {_WIDEST}")
    if name in CBR_FAMILY:
        return {"width": width}
    if name in RESNETS:
        channels = scale_widths(RESNETS[name].channels, width)
        if not RESNETS[name].width(min(channels)):
            raise UsageError(f"--width {width} leaves {name} no channels: give a larger factor")
        return {"channels": channels}
    raise UsageError(f"--width is for the CBR networks and plain ResNets: give {printable(name)} its widths with --arg")


def scale_widths(widths: Sequence[int], factor: float) -> tuple[int, ...]:
    """Multiply widths by a factor, each at least 1.

    Raises:
        UsageError: no tensor is as wide.
    """
    if not abs(factor) * max(widths) < 1 << 31:
        raise UsageError(f"a width of {factor:g} times {max(widths)} channels is none: give a smaller factor")
    return tuple(max(1, round(width * factor)) for width in widths)


def _cbr(kernel: int, widths: Sequence[int], in_chans: int, classes: int) -> Tensors:
    inside = in_chans
    for number, outside in enumerate(widths, 1):
        yield f"block{number}.conv.weight", (outside, inside, kernel, kernel)
        yield from _batch_norm(f"block{number}.bn", outside)
        inside = outside
    yield from _classifier(inside, classes)


def _resnet(network: _ResNet, in_chans: int, classes: int) -> Tensors:
    inside = in_chans
    for position, outside in zip((0, 3, 6), network.stem, strict=False):
        yield f"conv1.{position}.weight", (outside, inside, 3, 3)
        if position < 6:
            yield from _batch_norm(f"conv1.{position + 1}", outside)
        inside = outside
    if not network.stem:
        inside = 64
        yield "conv1.weight", (inside, in_chans, 7, 7)
    yield from _batch_norm("bn1", inside)
    for stage, (channels, blocks) in enumerate(zip(network.channels, network.layers, strict=True), 1):
        outside = channels * (4 if network.bottleneck else 1)
        width = network.width(channels)
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            convolutions = [(width, inside, 3, 3), (outside, width, 3, 3)]
            if network.bottleneck:
                grouped = (width, width // network.cardinality, 3, 3)
                convolutions = [(width, inside, 1, 1), grouped, (outside, width, 1, 1)]
            for number, shape in enumerate(convolutions, 1):
                yield f"{prefix}.conv{number}.weight", shape
                yield from _batch_norm(f"{prefix}.bn{number}", shape[0])
            if block == 0 and (stage > 1 or inside != outside):
                position = 1 if network.pools else 0
                yield f"{prefix}.downsample.{position}.weight", (outside, inside, 1, 1)
                yield from _batch_norm(f"{prefix}.downsample.{position + 1}", outside)
            inside = outside
    yield from _classifier(inside, classes)


def _batch_norm(module: str, channels: int) -> Tensors:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{module}.{part}", (channels,)
    yield f"{module}.num_batches_tracked", ()


def _classifier(features: int, classes: int) -> Tensors:
    if classes:
        yield "fc.weight", (classes, features)
        yield "fc.bias", (classes,)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_sizes(value: object) -> bool:
    return isinstance(value, (tuple, list)) and all(type(size) is int and size > 0 for size in value)
