"""Which network a checkpoint is of: what its metadata, a config.json beside it, the user and its tensors say."""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsurgery.anatomy.blocks import HEAD, Shapes, block_map, first_convolution
from wsurgery.errors import UsageError, WsurgeryError, printable
from wsurgery.untrusted import read_regular

# {"name", "num_classes", "in_chans", "args"}, of pretrained weights also "pretrained_cfg"
Architecture = dict[str, Any]

# What timm says of pretrained weights: mostly how their images are made.
_PRETRAINED = (
    "tag", "license", "input_size", "test_input_size", "fixed_input_size", "interpolation", "crop_pct", "test_crop_pct",
    "crop_mode", "mean", "std", "pool_size", "first_conv", "classifier",
)  # fmt: skip
_MAX_CONFIG = 10_000_000  # bytes; those with the names of 22,000 classes have 1,500,000
# Attention pooling stands in the head, and has no row a class: timm's, and whatever learns what it asks for (SigLIP's, AIMv2's).
_POOLING, _ASKED = "attn_pool.", (".probe", ".latent", ".cls_token")

CLASSIFIERS = {"classifier", "fc", "head", "last_linear", "logits"}  # who of several outputs has the classes
_LAST = {
    *CLASSIFIERS,
    "aux_head",
    "dist_head",
    "head_dist",
    "linear",
    "out_proj",
}  # who is the last of several of one width


def last_weights(shapes: Shapes, blocks: Mapping[str, str]) -> list[str]:
    """Name the weights of the head that have a row a class: those whose rows no other weight of it takes as its input.

    Names are sorted in a file, so that `classifier` may stand before the `pre_classifier` which feeds it. Where each may feed
    another by its shape, it is those that are called as the last ones are, or else all.

    Args:
        shapes: tensor name → shape.
        blocks: tensor name → block.
    """
    pooling = tuple(
        name.rpartition(".")[0] + "." for name, block in blocks.items() if block == HEAD and name.endswith(_ASKED)
    )
    heads = [
        name
        for name, shape in shapes.items()
        if blocks[name] == HEAD and len(shape) > 1 and _POOLING not in name and not name.startswith(pooling)
    ]
    takers = Counter(shapes[name][1] for name in heads)  # inputs → how many take so many
    last = [
        name for name in heads if takers[shapes[name][0]] == (shapes[name][0] == shapes[name][1])
    ]  # none but itself
    return last or [name for name in heads if is_last(name)] or heads


def is_last(name: str) -> bool:
    """Whether a weight of the head is called as one that feeds no other of it."""
    module = name.rpartition(".")[0]
    return module.rpartition(".")[2] in _LAST and ".pre_logits." not in f".{module}"


def describe_architecture(
    name: str, shapes: Shapes, args: Mapping[str, Any] | None = None, blocks: Mapping[str, str] | None = None
) -> Architecture:
    """Return the entry of the metadata for a network of timm's `name`, its sizes read off the tensors.

    `num_classes` is the number of rows of the head's last weight (0: no head), `in_chans` the channels that the first
    convolution meets; it is left out where no convolution meets the image.

    Args:
        name: of the network.
        shapes: tensor name → shape.
        args: what it is made with besides.
        blocks: tensor name → block, where a map of the user's own says it.
    """
    blocks = block_map(shapes) if blocks is None else blocks
    heads = last_weights(shapes, blocks)
    architecture = {"name": name, "num_classes": shapes[heads[-1]][0] if heads else 0, "args": dict(args or {})}
    with contextlib.suppress(UsageError):
        convolution = first_convolution(shapes, blocks)
        if blocks[convolution] == next(iter(blocks.values())):
            architecture["in_chans"] = shapes[convolution][1]
    return architecture


def read_config(path: Path | None, name: str = "config.json") -> dict[str, Any]:
    """Read the config.json that the Hugging Face hub keeps beside a checkpoint; {} where there is none.

    Args:
        path: the checkpoint, a file or a folder; None for standard input.
        name: of another such file.

    Raises:
        WsurgeryError: it is not JSON.
    """
    config = None if path is None else (path if path.is_dir() else path.parent) / name
    if config is None or not config.is_file() or config.stat().st_size > _MAX_CONFIG:
        return {}
    try:
        entries = json.loads(read_regular(config, _MAX_CONFIG))
    except (ValueError, RecursionError):
        raise WsurgeryError(f"{printable(str(config))} is not JSON: repair it or take it away") from None
    return entries if isinstance(entries, dict) else {}


def pretrained_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of the weights and how their images are made, under the names of timm's pretrained_cfg.

    Args:
        config: timm's config.json, timm's pretrained_cfg itself, or transformers' preprocessor_config.json.
    """
    inner = config.get("pretrained_cfg", config)
    if not isinstance(inner, dict):
        return {}
    if inner.get("do_normalize", True):
        inner = {"mean": inner.get("image_mean"), "std": inner.get("image_std"), **inner}
    return {key: inner[key] for key in _PRETRAINED if inner.get(key) is not None}


def normalisation(mean: str | None, std: str | None) -> dict[str, list[float]]:
    """Read how a user wants images normalised, as an entry of `pretrained_cfg`: what is given of `mean` and `std`.

    Args:
        mean, std: of the values of each channel, 0 to 1: `R,G,B`, or one number for all three.

    Raises:
        UsageError: one has not so many numbers, or a standard deviation is not above 0.
    """
    found = {}
    for key, text in (("mean", mean), ("std", std)):
        if text is None:
            continue
        try:
            numbers = [float(word) for word in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)) or (key == "std" and min(numbers) <= 0):
            above = " above 0" if key == "std" else ""
            raise UsageError(
                f"--{key} {printable(text, 80)}: write it as R,G,B, three numbers{above}, or one for all three"
            )
        found[key] = numbers
    return found


def choose_architecture(
    shapes: Shapes, *, recorded: Architecture | None, config: Mapping[str, Any], arch: str | None
) -> Architecture | None:
    """Say which network tensors are of, by what is trusted most.

    A name that the user gives counts; without one, or where they agree, the metadata, then timm's config.json.

    Args:
        shapes: tensor name → shape, under timm's names.
        recorded: what the metadata says.
        config: what config.json says: `architecture`, `model_args` and `pretrained_cfg`, as timm writes them.
        arch: the name that the user gives.

    Returns:
        The entry of the metadata, sizes read off the tensors where it is not recorded; None if nothing says.
    """
    if recorded is not None and arch in (None, recorded["name"]):
        return recorded
    name, args = config.get("architecture"), config.get("model_args")
    if isinstance(name, str) and arch in (None, name):
        args = args if isinstance(args, dict) else {}
        sizes = ("num_classes", "in_chans")
        found = describe_architecture(name, shapes, {key: value for key, value in args.items() if key not in sizes})
        classes = config.get("num_classes")
        if type(classes) is int and any(shape[:1] == (classes,) for shape in shapes.values()):
            found["num_classes"] = classes
        settings = pretrained_settings(config)
        return {**found, "pretrained_cfg": settings} if settings else found
    return None if arch is None else describe_architecture(arch, shapes)
