"""Which tensors selectors choose, by the rules of blocks and roles as the documentation has them."""

from fnmatch import fnmatchcase

from soak.checkpoints import State, blocks_of
from soak.edits import Edit

IDENTITY = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


class Refused(Exception):
    """The edit has to be refused."""


class Undecided(Exception):
    """The model does not know."""


def is_batch_norm(state: State, name: str) -> bool:
    """Whether it is one of the five tensors of a module that has running statistics."""
    module, _, part = name.rpartition(".")
    there = [f"{module}.{each}" if "." in name else each for each in ("running_mean", "running_var")]
    return part in IDENTITY and all(each in state.tensors for each in there)


def has_role(state: State, name: str, role: str) -> bool:
    """Whether a tensor has a role: batch_norm, integer or conv."""
    tensor, own = state.tensors[name], is_batch_norm(state, name)
    number = tensor.dtype.startswith(("F", "BF", "C"))
    if role == "batch_norm":
        return own
    if role == "integer":
        return not own and not number
    return not own and number and name.rpartition(".")[2] == "weight" and len(tensor.shape) in (3, 4, 5)


def selected(state: State, edit: Edit) -> set[str]:
    """Say which tensors the selectors choose."""
    given, chosen = edit.selectors, set(state.tensors)
    places = blocks_of(state)
    if {"upto", "blocks"} & given.keys() and not places:
        raise Undecided
    order = list(dict.fromkeys(places.values()))
    if upto := given.get("upto"):
        if upto not in order:
            raise Refused
        chosen &= {name for name in chosen if order.index(places[name]) <= order.index(upto)}
    if blocks := given.get("blocks"):
        if not set(blocks.split(",")) <= set(order):
            raise Refused
        chosen &= {name for name in chosen if places[name] in blocks.split(",")}
    if role := given.get("role"):
        found = [{name for name in state.tensors if has_role(state, name, each)} for each in role.split(",")]
        if not all(found):
            raise Refused
        chosen &= set().union(*found)
    only = [{name for name in state.tensors if fnmatchcase(name, glob)} for glob in given.get("only", ())]
    without = [{name for name in state.tensors if fnmatchcase(name, glob)} for glob in given.get("except_", ())]
    if not all(only) or not all(without):
        raise Refused
    chosen &= set().union(*only) if only else chosen
    chosen -= set().union(*without)
    if not chosen:
        raise Refused
    return chosen
