"""What a checkpoint's header says of it: blocks, roles, sizes, what is frozen, where it came from."""

import re
from fnmatch import translate
from math import prod
from typing import Any

from wsurgery.anatomy import Selection, role_map
from wsurgery.anatomy.scales import scales
from wsurgery.buffers import BATCH_NORM_STATISTICS
from wsurgery.checkpoint import Checkpoint
from wsurgery.checkpoint.opening import STDIN
from wsurgery.checkpoint.provenance import History


def describe(checkpoint: Checkpoint, selection: Selection | None = None) -> dict[str, Any]:
    """Describe a checkpoint, as `show --json` prints it. No tensor is read.

    Args:
        checkpoint: open.
        selection: whose block map, if it has one, is taken in place of the checkpoint's own.

    Returns:
        `architecture`, `history`, `blocks` in the order in which data meets them, and `tensors` in file order. The
        parameters of a block are its elements without integers and running statistics.

    Raises:
        WsurgeryError: the history is damaged, or the block map does not fit.
    """
    history = History.of(checkpoint)
    blocks = (selection or Selection()).with_map(history.blocks).place(checkpoint.tensors)
    roles = role_map(checkpoint.tensors)
    frozen = re.compile("|".join(map(translate, history.freeze))).match if history.freeze else None
    scaled = scales(checkpoint.tensors)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "block": blocks[name],
            "role": roles[name],
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "bytes": tensor.nbytes,
            "frozen": frozen is not None and frozen(name) is not None,
        }
        for name, tensor in checkpoint.tensors.items()
    ]
    members: dict[str, list[dict[str, Any]]] = {block: [] for block in blocks.values()}
    for row in rows:
        if row["name"] in scaled:
            row["scaled_by"] = scaled[row["name"]]
        members[row["block"]].append(row)
    return {
        "architecture": history.architecture,
        "history": [
            {"command": record["command"], "inputs": [given.get("name", STDIN) for given in record.get("inputs", [])]}
            for record in history.log
        ],
        "blocks": [
            {
                "name": block,
                "parameters": sum([prod(row["shape"]) for row in inside if is_parameter(row["name"], row["role"])]),
                "bytes": sum([row["bytes"] for row in inside]),
                "tensors": [row["name"] for row in inside],
            }
            for block, inside in members.items()
        ],
        "tensors": rows,
    }


def is_parameter(name: str, role: str) -> bool:
    """Whether a tensor's elements are parameters: not integers and buffers, and not what a batch norm measures."""
    return role not in ("integer", "buffer") and not (role == "batch_norm" and name.endswith(BATCH_NORM_STATISTICS))
