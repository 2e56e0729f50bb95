"""Which tensor of one checkpoint is which of another: under wrappers' prefixes, and where two are tied in one of them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from wsurgery.anatomy.prefixes import common_prefix
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.provenance import History
from wsurgery.checkpoint.spool import spooled
from wsurgery.errors import printable
from wsurgery.operations.planning import Planned
from wsurgery.operations.tensor_edit import TensorEdit

COUNTER = "num_batches_tracked"  # of a batch norm, which PyTorch before 0.4.1 had not, and nothing depends on


def under_names_of(into: Collection[str], chosen: Collection[str], source: Checkpoint) -> dict[str, TensorInfo]:
    """Give the tensors of `source` the names that another checkpoint has for them.

    Prefixes of known wrappers (`module.`, `model.`) may differ; any other (`backbone.`) is looked through where one side has
    it and the other has none. A tensor that is tied in `source` stands under its other name, too, where the other checkpoint
    has a tensor of that name.

    Args:
        into: names of the other's tensors.
        chosen: the names among them that matter. Where one of them is in `source`, prefixes are taken as they are.
        source: whose tensors they are.

    Returns:
        New name → the tensor, under its own.
    """
    aliases = History.of(source).aliases(source.tensors)
    named = {**source.tensors, **{alias: source.tensors[name] for alias, name in aliases.items()}}
    best = {name: name for name in named}
    if chosen and not any(name in named for name in chosen):
        anchor = max(sorted(chosen), key=lambda name: (not name.endswith(COUNTER), len(name)))
        dots = [i + 1 for i, character in enumerate(anchor) if character == "."]
        prefixes = [(common_prefix(source.tensors), common_prefix(into))]
        prefixes += [("", anchor[:i]) for i in dots if anchor[i:] in named]
        prefixes += [(name[: -len(anchor)], "") for name in named if name.endswith(f".{anchor}")]
        found: dict[int, list[dict[str, str]]] = {}
        wanted = set(chosen)
        for old, new in dict.fromkeys(prefixes):
            renamed = {new + name[len(old) :]: name for name in named if name.startswith(old)}
            found.setdefault(len(wanted & renamed.keys()), []).append(renamed)
        most = found[max(found)]
        if max(found) and len(most) == 1:  # of two towers of one shape only the user knows which
            best = most[0]
    return {new: named[name] for new, name in best.items() if name not in aliases or new in into}


def seen_as(checkpoint: Checkpoint, tensors: Mapping[str, TensorInfo], history: History | None = None) -> Checkpoint:
    """Return the checkpoint itself where it has these names, else itself seen under them.

    Args:
        checkpoint: open; a tensor that stands there once may have two names if it is read at any place.
        tensors: new name → the tensor.
        history: of the result. Default: the checkpoint's own.
    """
    if tensors == checkpoint.tensors:
        return checkpoint
    edits = [TensorEdit(replace(tensor, name=name), checkpoint, tensor) for name, tensor in tensors.items()]
    return Planned(checkpoint.label, edits, history or History.of(checkpoint), [checkpoint])


def untied(checkpoint: Checkpoint, others: Iterable[Checkpoint]) -> tuple[Checkpoint, History, list[str]]:
    """See a checkpoint with tensors apart that are tied in it and not in others.

    Args:
        checkpoint: open.
        others: those with which it is put together.

    Returns:
        The checkpoint, its history, and what to say of it.
    """
    history, others = History.of(checkpoint), list(others)
    aliases = history.aliases(checkpoint.tensors)
    apart = {
        alias: name
        for alias, name in aliases.items()
        if any(alias in other.tensors and name in other.tensors for other in others)
    }
    if not apart:
        return checkpoint, history, []
    checkpoint = spooled(checkpoint)  # one tensor is read twice
    own = {name: text for name, text in history.others.items() if name not in apart}
    after: dict[str, list[str]] = {}
    for alias, name in apart.items():
        after.setdefault(name, []).append(alias)
    tensors = {
        name: checkpoint.tensors[first] for first in checkpoint.tensors for name in (first, *after.get(first, []))
    }
    history = replace(history, others=own)
    says = [f"{printable(alias)} is no longer tied to {printable(name)}" for alias, name in apart.items()]
    return seen_as(checkpoint, tensors, history), history, says
