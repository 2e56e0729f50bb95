"""What a tensor does, from its name, its shape, its dtype and its siblings."""

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from wsurgery.anatomy.blocks import first_convolution
from wsurgery.buffers import BATCH_NORM_STATISTICS, is_buffer
from wsurgery.errors import UsageError

BATCH_NORM_PARTS = ("weight", "bias", *BATCH_NORM_STATISTICS)
ROLES = (
    "conv", "depthwise", "linear", "batch_norm", "norm", "embedding", "position", "token", "layer_scale", "bias",
    "buffer", "integer", "other",
)  # fmt: skip
LAYERS = ("conv", "depthwise", "linear")  # whose weights multiply what comes in
_INCLUDES = {
    "conv": {"conv", "depthwise"},
    "norm": {"norm", "batch_norm"},
    "embedding": {"embedding", "position", "token"},
}

# Words, between underscores, in the names of tables.
_TABLES = {
    "position": {"pos", "position", "positional", "rel", "relative", "biases", "freqs", "wpe"},
    "token": {"token", "tokens", "cls", "class", "register", "registers", "latent", "probe", "query"},
    "embedding": {"embed", "embeds", "emb", "embedding", "embeddings"},
}
_LOOKED_UP = _TABLES["embedding"] | {"wte", "wpe", "shared", "relative"}  # the module of a table that is a `weight`
_LAYER_SCALE = re.compile(r"gamma\w*|ls\d?|lambda_?\d|(?:res|layer)_scale\w*")
_SCALE_AND_SHIFT = ({"gamma", "beta"}, {"alpha", "beta"})  # a norm's weight and bias by other names
_SCALES_AND_SHIFTS = set().union(*_SCALE_AND_SHIFT)
_LINEAR = re.compile(r"\w*proj_weight|weight_(?:ih|hh)_l\d+(?:_reverse)?")  # of attention and recurrent modules
_BIAS = re.compile(r"\w+_bias|bias_(?:ih|hh)_l\d+(?:_reverse)?")


_LOSS = re.compile(r"criterion|criteria|loss|loss_\w+|\w+_loss")
_WEIGHTS_OF_CLASSES = re.compile(r"(?:pos|neg|class|cls|label)_weights?")
# What a weight is called where it is pruned, or kept apart from its norm.
_WEIGHTS = re.compile(r"weight_orig|weight_v|original1?")
_TRANSPOSED = re.compile(r"transp|deconv|upconv|up_conv|convtr")


class Described(Protocol):
    """A tensor as a header describes it."""

    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102


def role_map(tensors: Mapping[str, Described]) -> dict[str, str]:
    """Give every tensor its role, one of `ROLES`.

    A batch norm is a module with both `running_mean` and `running_var`; all its tensors have the role `batch_norm`.
    A convolution is depthwise when each output channel reads one of several input channels: shape[1] = 1 < shape[0], and
    it neither meets an image or a signal of one channel, nor is a transposed one, (in, out, …), that makes it. Kernels of
    experts, (experts, out·in·kh·kw), look linear (CondConv). A weight that is pruned or kept apart from its norm (`weight_orig`,
    `weight_v`, `parametrizations.weight.original`) has the role of the layer's own.
    """
    modules: dict[str, list[tuple[str, str, Described]]] = defaultdict(list)
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        modules[module].append((name, part, tensor))
    roles = dict.fromkeys(tensors, "")
    parametrised = any(module.endswith(".parametrizations.weight") for module in modules)
    known: dict[tuple[object, ...], list[str]] = {}  # modules repeat: names, dtypes and shapes → roles
    for module, members in modules.items():
        last = module.rpartition(".")[2]
        last = "" if last.isdecimal() else last  # a number says nothing
        apart = modules.get(f"{module}.parametrizations.weight", []) if parametrised else []
        kind = (last, bool(apart), *[(part, tensor.dtype, tensor.shape) for _, part, tensor in members])
        alike = known.get(kind)
        if alike is None:
            siblings = {part: tensor.shape for _, part, tensor in members}
            weights = [x.shape for _, part, x in (*members, *apart) if _WEIGHTS.fullmatch(part) and len(x.shape) > 1]
            if weights:
                siblings["weight"] = weights[-1]
            alike = known[kind] = [_role(last, part, tensor, siblings) for _, part, tensor in members]
        for (name, _, _), role in zip(members, alike, strict=True):
            roles[name] = role
    if "depthwise" in roles.values():
        with contextlib.suppress(UsageError):
            roles[_first_convolution({name: tensor.shape for name, tensor in tensors.items()})] = "conv"
    return roles


def _first_convolution(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name the convolution that meets the image; of a network without one, that which meets a volume or a signal."""
    weights = {name: shape for name, shape in shapes.items() if name.endswith("weight")}
    dimensions = {len(shape) for shape in weights.values()}
    wanted = next((n for n in (4, 5, 3) if n in dimensions), 4)
    # As if it were one of an image: the first side of the kernel stands for all.
    flat = {name: (*shape[:3], 1) if len(shape) == wanted else shape for name, shape in shapes.items()}
    return first_convolution(shapes if wanted == 4 else flat)


def matches_role(role: str, wanted: str, shape: Sequence[int]) -> bool:
    """Whether `role` is `wanted` or a kind of it.

    A depthwise convolution is a `conv`, a batch norm a `norm`, a table of positions or a class token an `embedding`. A `conv`
    that is not depthwise and whose kernel has one position, 1 x 1, is `pointwise`, too.
    """
    if wanted == "pointwise":
        return role == "conv" and math.prod(shape[2:]) == 1
    return role in _INCLUDES.get(wanted, {wanted})


def _role(last: str, part: str, tensor: Described, siblings: Mapping[str, tuple[int, ...]]) -> str:
    """Say what the tensor `part` of a module does, whose own name ends in `last`."""
    shape = tensor.shape
    if _WEIGHTS.fullmatch(part) and len(shape) > 1 and (last == "weight" or not part.startswith("original")):
        part = "weight"
    if part in BATCH_NORM_PARTS and "running_mean" in siblings and "running_var" in siblings:
        return "batch_norm"
    if not tensor.dtype.startswith(("F", "BF", "C")):
        return "integer"
    if is_buffer(part, shape):
        return "buffer"
    if len(shape) < 2 and (_LOSS.fullmatch(last) or _WEIGHTS_OF_CLASSES.fullmatch(part)):
        return "other"
    if part == "weight" and len(shape) in (3, 4, 5):
        bias = siblings.get("bias", shape[:1])
        is_depthwise = shape[1] == 1 < shape[0] and bias == shape[:1] and not _TRANSPOSED.search(last)
        return "depthwise" if is_depthwise else "conv"
    if part == "weight" and len(shape) == 2:
        return "linear" if "bias" in siblings else _lookup(last) or "linear"
    if len(shape) == 1 and len(siblings.get("weight", ())) == 1:
        return "norm"
    if part in _SCALES_AND_SHIFTS and any(part in pair and pair <= siblings.keys() for pair in _SCALE_AND_SHIFT):
        return "norm"
    if len(shape) == 2 and _LINEAR.fullmatch(part):
        return "linear"
    if len(shape) == 1 and (_BIAS.fullmatch(part) or (part == "bias" and "weight" in siblings)):
        return "bias"
    if _LAYER_SCALE.fullmatch(part) or last.startswith(("res_scale", "layer_scale")):
        return "layer_scale"
    return _table(part) or "other"


@lru_cache
def _table(word: str) -> str | None:
    words = _words(word)
    return next((kind for kind, known in _TABLES.items() if words & known), None)


@lru_cache
def _lookup(word: str) -> str | None:
    words = _words(word)
    if words & {"proj", "out"} or not words & _LOOKED_UP:  # embed_out of GPT-NeoX is the output layer
        return None
    return "position" if words & _TABLES["position"] else "embedding"


def _words(name: str) -> set[str]:
    return {word.rstrip("0123456789") for word in name.split("_")}
