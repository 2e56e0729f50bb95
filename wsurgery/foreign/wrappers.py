"""Names as they were before a network was wrapped: by torch, by a trainer, by a self-supervised method."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from wsurgery.anatomy.prefixes import common_prefix

# Parts of names that only wrappers have: torch.compile, FSDP, activation checkpointing, fairscale, Lightning's strategies.
_INNER = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module|_forward_module)\."
)

# What may hold the network while other tensors stand beside it.
_TRUNKS = (
    "encoder_q.", "base_encoder.", "online_encoder.", "online_network.", "module.", "model.", "net.", "network.", "student.",
    "backbone.", "encoder.", "trunk.",
)  # fmt: skip
_CONTRASTIVE = ("encoder_q.", "base_encoder.")  # MoCo's: their last layer projects, it does not classify
# First parts of names that are of the training, and of no network that is used afterwards.
_OF_TRAINING = re.compile(
    r"criterion|\w*loss(?:es|_\w+)?|\w*metrics?|(?:train|val|valid|validation|test)_\w+|\w*(?:auc|auroc|accuracy|confmat)"
    r"|encoder_k|(?:momentum|target|teacher|ema)(?:_\w+)?|model_ema|queue|queue_ptr|online_(?:predictor|projector)|n_averaged"
    r"|projetion|projection_(?:head|mlp)|prototypes|dino_head|ibot_head|bn"
)
# Of these, what stands beside a network that has no prefix.
_BESIDE = re.compile(r"(?:projection_head|prototypes|n_averaged|decoder_(?:embed|pos_embed|blocks|norm|pred))")
# What a self-supervised method calls its own, and a network as well (Whisper's classifier reads its `projector`): of the
# training beside what only such a method has, or, as a chain of layers, where nothing but it and the encoder is there.
_SHARED = re.compile(r"(?:predictor|projector|projection|center)(?:\.(?P<chain>(?:\w+\.)?\d+)\.[\w.]+|\..*)?")
_METHOD = re.compile(
    r"encoder_k|(?:momentum|target|teacher|ema)(?:_\w+)?|queue|queue_ptr|online_\w+|prototypes|dino_head|ibot_head"
)
_MAE = "decoder_pred"  # with it, mask_token is of the decoder, too
_DEEPEST = 8  # wrappers in wrappers
_MOST_PARTS = 32  # of a network that are wrapped by themselves
_LONGEST = 100  # characters of a first part that are looked at
_HEAD = re.compile(r"(?:fc|head|classifier|linear)\.(?:\d+\.)?(?:weight|bias)")
_PROJECTION = re.compile(r"head\.(?:mlp|last_layer|layers)\.[\w.]+")
_MLP = re.compile(r"fc\.(\d)\.(?:weight|bias|running_mean|running_var|num_batches_tracked)")
_FIRST = ("conv1.", "conv_stem.", "features.", "stem.", "patch_embed.", "0.weight")  # what a whole network begins with


@dataclass(frozen=True)
class Unwrapped:
    """Names without what wrapped them.

    Attributes:
        names: new name → name in the file.
        prefix: what stood before all that are kept.
        inner: parts that stood elsewhere in names, and are taken out.
        left_out: names in the file of tensors that belong to the training.
    """

    names: dict[str, str]
    prefix: str = ""
    inner: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def unwrapped(names: Iterable[str]) -> Unwrapped:
    """Take wrappers off: parts of names that only wrappers have, and prefixes of all names but those of the training.

    Args:
        names: of the tensors.

    Returns:
        What is left. Names stay where two would become one.
    """
    whole = list(names)
    bare = _renamed({name: name for name in whole}, lambda name: _INNER.sub("", name))
    held = _without_modules(bare)
    has_modules = held.keys() != bare.keys()
    prefixes = ""
    for _ in range(_DEEPEST):
        if step := _step(held):
            prefixes += step[0]
            held = step[1]
    kept = set(held.values())
    before = {old[: len(old) - len(new)] if old.endswith(new) else None for new, old in held.items()}
    prefix = before.pop() if len(before) == 1 else None
    inner: tuple[str, ...] = ()
    if prefix is None:
        prefix = prefixes
        inner = tuple(
            sorted({part for old in kept for part in _INNER.findall(old)} | ({"module."} if has_modules else set()))
        )
    return Unwrapped(held, prefix, inner, tuple(name for name in whole if name not in kept))


def _renamed(held: dict[str, str], rename: Callable[[str], str]) -> dict[str, str]:
    """Change names; where two would become one, or one nothing, change none."""
    new = {rename(name): old for name, old in held.items()}
    return held if "" in new or len(new) < len(held) else new


def _without_modules(held: dict[str, str]) -> dict[str, str]:
    """Take `module.` out of the inside of names where a part of the network was wrapped: all of the part goes through it."""
    parts = {name[:i] for name in held if (i := name.find(".module.")) > 0}
    for part in sorted(parts) if len(parts) <= _MOST_PARTS else ():
        below = [name for name in held if name.startswith(f"{part}.")]
        if all(name.startswith(f"{part}.module.") for name in below):
            held = _renamed(held, partial(_short, part))
    return held


def _short(part: str, name: str) -> str:
    return part + name[len(part) + len(".module") :] if name.startswith(f"{part}.module.") else name


def _step(held: dict[str, str]) -> tuple[str, dict[str, str]] | None:
    """Take one prefix off, or leave out what is beside the network; None where there is nothing to do."""
    if prefix := common_prefix(held):
        inside = {name[len(prefix) :]: old for name, old in held.items()}
        mlp = {match[0]: match[1] for name in inside if (match := _MLP.fullmatch(name))}
        if prefix.endswith("backbone.") and len(set(mlp.values())) > 1:  # SimCLR's: it projects
            inside = {name: old for name, old in inside.items() if name not in mlp}
        return prefix, inside
    for trunk in _TRUNKS:
        inside = {name[len(trunk) :]: old for name, old in held.items() if name.startswith(trunk) and name != trunk}
        outside = {name: old for name, old in held.items() if not name.startswith(trunk)}
        rest = _not_of_training(outside, trunk)
        if len(inside) < 2 or not any(name.endswith("weight") for name in inside) or not outside:
            continue
        if not rest and any(_first(name) != "bn" for name in outside):
            if trunk in _CONTRASTIVE:
                inside = {name: old for name, old in inside.items() if _first(name) not in ("fc", "head")}
            return trunk, inside
        if trunk in ("backbone.", "encoder.", "trunk.") and any(name.startswith(_FIRST) for name in inside):
            if all(map(_PROJECTION.fullmatch, rest)):
                return trunk, inside
            if all(map(_HEAD.fullmatch, rest)) and inside.keys().isdisjoint(rest):
                return trunk, inside | {name: outside[name] for name in rest}
    beside = {name for name in held if _BESIDE.fullmatch(_first(name))}
    if beside and len(beside) < len(held):
        beside |= {"mask_token"} if any(_first(name) == _MAE for name in beside) else set()
        return "", {name: old for name, old in held.items() if name not in beside}
    return None


def _first(name: str) -> str:
    return name[: _LONGEST + 1].partition(".")[0]


def _not_of_training(outside: Iterable[str], trunk: str) -> list[str]:
    """Name what stands beside a trunk and may be of the network."""
    rest = [name for name in outside if not _matches(_OF_TRAINING, _first(name))]
    shared = {name: match for name in rest if (match := _SHARED.fullmatch(name[:_LONGEST]))}
    alone = len(shared) == len(rest) and all(match["chain"] for match in shared.values())
    if alone or trunk in _CONTRASTIVE or any(_matches(_METHOD, _first(name)) for name in outside):
        return [name for name in rest if name not in shared]
    return rest


def _matches(pattern: re.Pattern[str], first: str) -> bool:
    return len(first) <= _LONGEST and pattern.fullmatch(first) is not None
