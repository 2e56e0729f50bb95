"""What changed from one checkpoint to another, by block and by tensor, whatever names and types the two have."""

from typing import Any

from wsurgery.anatomy import Selection
from wsurgery.checkpoint import Checkpoint, TensorInfo
from wsurgery.checkpoint.provenance import History
from wsurgery.errors import WsurgeryError
from wsurgery.operations.counterparts import COUNTER, seen_as, under_names_of, untied
from wsurgery.operations.difference import Difference, comparable, differences


def changes(
    a: Checkpoint, b: Checkpoint, selection: Selection, *, threads: int | None = None, by_tensor: bool = True
) -> dict[str, Any]:
    """Compare two checkpoints, as `diff --json` prints it.

    Args:
        a: the one that changed.
        b: what it changed to. One of the two may be a stream whose tensors stand in the other's order.
        selection: of the tensors of both.
        threads: default all cores. They do not change the result.
        by_tensor: whether `tensors` is filled, too.

    Returns:
        `identical`, `blocks`, `tensors`, and what cannot be compared or is in one only. `equal` is a share, 0 to 1;
        `relative_l2`, `cosine` and `max` are None where they are undefined.

    Raises:
        UsageError: the selection matches nothing.
        WsurgeryError: neither holds a tensor, or one ends early.
    """
    a = untied(a, [b])[0]
    found_in_b = under_names_of(a.tensors, a.tensors, b)
    known = {tensor.name for tensor in found_in_b.values()}
    b = seen_as(b, found_in_b | {name: tensor for name, tensor in b.tensors.items() if name not in known})
    both = {**b.tensors, **a.tensors}
    if not both:
        raise WsurgeryError(f"{a.label} and {b.label} hold no tensors")
    selection = selection.with_map(History.of(a).blocks or History.of(b).blocks)
    passed_over = {name for name in a.tensors.keys() ^ b.tensors.keys() if name.endswith(COUNTER)}
    chosen = selection.names(both) - passed_over
    blocks = {name: block for name, block in selection.place(both).items() if name in chosen}
    in_both = [name for name in chosen if name in a.tensors and name in b.tensors]
    alike = {name for name in in_both if comparable(a.tensors[name], b.tensors[name])}
    other_type = {name for name in alike if a.tensors[name].dtype != b.tensors[name].dtype}
    order = a.tensors if b.seekable else b.tensors
    found = differences(a, b, [name for name in order if name in alike], threads=threads)
    members: dict[str, list[str]] = {}
    for name, block in blocks.items():
        members.setdefault(block, []).append(name)
    block_rows = []
    for block, names in members.items():
        compared = [name for name in names if name in alike]
        whole = sum((found[name] for name in compared), Difference()) if compared else None
        block_rows.append(
            {
                "name": block,
                "tensors": len(names),
                "compared": len(compared),
                **_measures(whole, one_type=other_type.isdisjoint(names)),
            }
        )
    return {
        "identical": alike == chosen and not other_type and all(found[name].identical for name in alike),
        "blocks": block_rows,
        "tensors": [
            {"name": name, "block": blocks[name], **_measures(found[name], one_type=name not in other_type)}
            for name in blocks
            if name in alike
        ]
        if by_tensor
        else [],
        "only_in_a": [_described(a.tensors[name]) for name in blocks if name not in b.tensors],
        "only_in_b": [_described(b.tensors[name]) for name in blocks if name not in a.tensors],
        "changed_dtype": [
            {"name": name, "a": _described(a.tensors[name]), "b": _described(b.tensors[name])}
            for name in blocks
            if name in other_type
        ],
        "changed_kind": [
            {"name": name, "a": _described(a.tensors[name]), "b": _described(b.tensors[name])}
            for name in blocks
            if name not in alike and name in a.tensors and name in b.tensors
        ],
    }


def _described(tensor: TensorInfo) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _measures(of: Difference | None, *, one_type: bool) -> dict[str, Any]:
    return {
        "relative_l2": of.relative_l2 if of else None,
        "cosine": of.cosine if of else None,
        "max": of.max_difference if of else None,
        "equal": of.equal if of else None,
        "identical": of is not None and of.identical and one_type,
    }
