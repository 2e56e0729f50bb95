"""Blocks and roles of every architecture in the installed timm, against timm's own groups and module types.

    python tests/anatomy/sweep.py

Builds all networks on the meta device, which takes about 5 minutes of 2 free cores. What it reads of them stays in build/, one
file for each version of timm, so that the next run takes half a minute. Exit status 1 if an architecture outside
`BLOCK_EXCEPTIONS` is grouped otherwise, a tensor outside `ROLE_EXCEPTIONS` has a wrong role, or an exception is none.
"""

import gzip
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import timm
import torch
from timm.models import group_parameters
from torch import nn

from wsurgery.anatomy import block_map, role_map

# Architectures whose blocks are not timm's, and why.
BLOCK_EXCEPTIONS = {
    "cait_*": "timm counts the two class-attention blocks as a second part of the last two blocks, which run before them",
    "vit_*_rope_mixed_*": "timm's pattern misses rope.freqs, and so puts the tables of positions with the head",
    "vit_srelpos_*": "timm's pattern misses shared_rel_pos, and so puts the tables of positions with the head",
}
# architecture:tensor whose role the name and the shape do not tell, and why.
ROLE_EXCEPTIONS = {
    "*efficientnet_cc_*:*.conv_*.weight": "the kernels of CondConv's experts are (experts, out·in·kh·kw), like a linear layer",
    "lam*:*.conv_lambda.weight": "a 3-d convolution of one channel, (16, 1, k, k, 1), looks depthwise",
}

DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
LAYER_SCALES = ("LayerScale", "LayerScale2d", "Scale")
SAME, LISTED, WRONG = (
    "  blocks as timm's groups or order of definition",
    "  on the list of exceptions",
    "  WRONG BLOCKS",
)
ROLES, LISTED_ROLES, WRONG_ROLES = "  with a module's role", "  role on the list of exceptions", "  WRONG ROLES"
OF_A_MODULE = {"conv", "depthwise", "linear", "batch_norm", "norm"}  # roles that a bare parameter never has


@dataclass(frozen=True)
class Tensor:
    """As a header describes it, and the role that its module gives it: None where it is a bare parameter."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str | None


@dataclass(frozen=True)
class Architecture:
    """What timm knows of a network.

    Attributes:
        name: in timm.
        family: the module of timm that defines it.
        tensors: in the order of definition.
        groups: parameter → number of its coarse group; None where timm has none.
        ties: the names of each parameter that has several.
    """

    name: str
    family: str
    tensors: list[Tensor]
    groups: dict[str, int] | None
    ties: list[list[str]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tensor.shape for tensor in self.tensors}


def on_meta(name: str, **arguments: object) -> nn.Module:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        return timm.create_model(name, **arguments)


def describe(name: str, model: nn.Module) -> Architecture:
    owners = {
        f"{path}.{part}".lstrip("."): (module, part)
        for path, module in model.named_modules(remove_duplicate=False)
        for part in (*module._parameters, *module._buffers)
    }
    tensors = [
        Tensor(key, DTYPES[value.dtype], tuple(value.shape), _role(*owners[key], value))
        for key, value in model.state_dict().items()
    ]
    try:
        groups = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    except (AttributeError, AssertionError):  # PiT, MetaFormer, RDNet and others have no coarse groups
        groups = None
    aliases: dict[int, list[str]] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(key)
    family = timm.models._registry._model_to_module.get(name, "")
    return Architecture(name, family, tensors, groups, [names for names in aliases.values() if len(names) > 1])


def _role(module: nn.Module, part: str, value: torch.Tensor) -> str | None:
    kind, role = type(module).__name__, None
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "batch_norm"
    if not value.is_floating_point():
        return "integer"
    if "Norm" in kind or kind == "Affine":
        return None if "Block" in kind or "Former" in kind else "norm"
    if isinstance(module, nn.modules.conv._ConvNd) and part == "weight":
        role = "depthwise" if module.groups == module.in_channels > 1 else "conv"
    elif kind == "CondConv2d" and part == "weight":
        role = "conv"
    elif isinstance(module, (nn.Linear, nn.RNNBase, nn.MultiheadAttention)) and "weight" in part:
        role = "linear"
    elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)) and part.startswith("bias"):
        role = "bias"
    elif isinstance(module, nn.Embedding):
        role = "embedding"
    elif kind in LAYER_SCALES:
        role = "layer_scale"
    return role


def wrong_blocks(architecture: Architecture) -> str | None:
    """Say how our blocks differ from timm's coarse groups, None if they are the same partition in the same order.

    Where timm has no groups, the order of definition stands in. What we call neck and head may be in timm's last group of
    the trunk or after it. A group of vectors alone (a VGG's batch norm) goes with the group before it.
    """
    shapes = architecture.shapes
    blocks = block_map(shapes)
    if lost := [name for name, block in blocks.items() if block == "unplaced"]:
        return f"{lost[0]} and {len(lost) - 1} more are unplaced"
    for names in architecture.ties:
        if len({blocks[name] for name in names}) > 1:
            return f"{names[0]} and {names[1]} are one tensor in two blocks"
    if architecture.groups is None:
        order = {block: i for i, block in enumerate(dict.fromkeys(blocks.values()))}
        back = [(a, b) for a, b in pairwise(shapes) if order[blocks[a]] > order[blocks[b]]]
        return f"{back[0][0]} comes after {back[0][1]}" if back else None
    groups = _without_thin_groups(architecture.groups, shapes)
    trunk = {name: group for name, group in groups.items() if blocks[name] not in ("neck", "head")}
    if early := [name for name in groups if name not in trunk and groups[name] < max(trunk.values())]:
        return f"{early[0]} is in the {blocks[early[0]]}, timm has it in group {groups[early[0]]}"
    pairs = sorted({(group, blocks[name]) for name, group in trunk.items()})
    ours = [block for block in dict.fromkeys(blocks.values()) if block not in ("neck", "head")]
    if len(dict(pairs)) < len(pairs):
        twice = next(a for a, b in pairwise(pairs) if a[0] == b[0])
        return f"timm's group {twice[0]} is several blocks, one of them {twice[1]}"
    if [block for _, block in pairs] != ours:
        return f"in timm's order our blocks are {', '.join(block for _, block in pairs)}"
    return None


def _without_thin_groups(groups: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    thick = sorted({group for name, group in groups.items() if len(shapes[name]) > 1})
    return {name: max((g for g in thick if g <= group), default=thick[0]) for name, group in groups.items()}


def wrong_roles(architecture: Architecture) -> dict[str, str]:
    """Say which tensors have a role that is not that of their module's type: name → what is wrong."""
    roles = role_map({tensor.name: tensor for tensor in architecture.tensors})
    return {
        tensor.name: f"{tensor.shape} has the role {roles[tensor.name]}, in timm {tensor.role or 'a bare parameter'}"
        for tensor in architecture.tensors
        if (roles[tensor.name] != tensor.role if tensor.role else roles[tensor.name] in OF_A_MODULE)
    }


def excepted(name: str, exceptions: Mapping[str, str]) -> str | None:
    """Return the pattern of the exception that `name` is, None if it is none."""
    return next((pattern for pattern in exceptions if fnmatchcase(name, pattern)), None)


def _read(name: str) -> dict[str, object]:
    return asdict(describe(name, on_meta(name)))


def _be_nice() -> None:
    os.nice(10)
    torch.set_num_threads(1)


def architectures() -> Iterator[Architecture]:
    """Yield every architecture of the installed timm."""
    path = Path(__file__).parents[2] / "build" / f"timm-{timm.__version__}.json.gz"
    if not path.exists():
        print(f"building {len(timm.list_models())} networks, for {path}", file=sys.stderr)
        with multiprocessing.get_context("spawn").Pool(2, _be_nice) as pool:
            read = pool.map(_read, timm.list_models(), chunksize=8)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(gzip.compress(json.dumps(read).encode()))
        partial.replace(path)
    for record in json.loads(gzip.decompress(path.read_bytes())):
        tensors = [Tensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in record.pop("tensors")]
        yield Architecture(**record, tensors=tensors)


def main() -> int:
    counts = dict.fromkeys(("architectures", SAME, LISTED, WRONG, "tensors", ROLES, LISTED_ROLES, WRONG_ROLES), 0)
    needed: set[str] = set()
    for architecture in architectures():
        counts["architectures"] += 1
        difference, exception = wrong_blocks(architecture), excepted(architecture.name, BLOCK_EXCEPTIONS)
        counts[WRONG if difference and not exception else LISTED if difference else SAME] += 1
        if difference and exception:
            needed.add(exception)
        elif difference:
            print(f"{architecture.name}: {difference}")
        counts["tensors"] += len(architecture.tensors)
        counts[ROLES] += sum(tensor.role is not None for tensor in architecture.tensors)
        for name, wrong in wrong_roles(architecture).items():
            exception = excepted(f"{architecture.name}:{name}", ROLE_EXCEPTIONS)
            counts[LISTED_ROLES if exception else WRONG_ROLES] += 1
            if exception:
                needed.add(exception)
            else:
                print(f"{architecture.name}: {name} {wrong}")
    unneeded = {*BLOCK_EXCEPTIONS, *ROLE_EXCEPTIONS} - needed
    for pattern in unneeded:
        print(f"{pattern} is on the list of exceptions, and is none")
    print(f"timm {timm.__version__}")
    for what, count in counts.items():
        print(f"{what:<48} {count:>9,}")
    return int(bool(unneeded or counts[WRONG] or counts[WRONG_ROLES]))


if __name__ == "__main__":
    sys.exit(main())
