"""`wsurgery show`."""

import json as json_module
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.commands._shared import Input, Json, command, table_console

if TYPE_CHECKING:
    from wsurgery.checkpoint import Checkpoint


@command
def show(
    source: Input = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="One line for each tensor, not for each block.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the tensors too: mean, std, min, max, zeros, NaN, infinities.")
    ] = False,
    json: Json = False,
) -> None:
    """Show blocks, roles and shapes. Reads the header only, unless --stats.

    Example: wsurgery show resnet50.safetensors --stats
    """
    from wsurgery.checkpoint import open_checkpoint

    with open_checkpoint(source) as checkpoint:
        description = _describe(checkpoint, with_stats=stats)
        if json:
            typer.echo(json_module.dumps(description))
        else:
            _print_table(description, checkpoint.label, by_tensor=tensors or stats)


def _describe(checkpoint: "Checkpoint", *, with_stats: bool) -> dict[str, Any]:
    from fnmatch import fnmatchcase

    from wsurgery.anatomy import block_map, role_map
    from wsurgery.checkpoint.provenance import History

    history = History.of(checkpoint)
    blocks = block_map({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    roles = role_map(checkpoint.tensors)
    rows = []
    for name, tensor in checkpoint.tensors.items():
        frozen = any(fnmatchcase(name, glob) for glob in history.freeze)
        row = {
            "name": name,
            "block": blocks[name],
            "role": roles[name],
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "frozen": frozen,
        }
        rows.append({**row, **_statistics(checkpoint, name)} if with_stats else row)
    members: dict[str, list[str]] = {}
    for name, block in blocks.items():
        members.setdefault(block, []).append(name)
    position = {name: i for i, name in enumerate(checkpoint.tensors)}
    return {
        "architecture": history.architecture,
        "blocks": [
            {
                "name": block,
                "parameters": sum(
                    checkpoint.tensors[name].elements for name in names if _is_parameter(name, roles[name])
                ),
                "tensors": sorted(names, key=position.__getitem__),
            }
            for block, names in members.items()
        ],
        "tensors": rows,
    }


def _is_parameter(name: str, role: str) -> bool:
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return role != "integer" and not (role == "batch_norm" and name.endswith(buffers))


def _statistics(checkpoint: "Checkpoint", name: str) -> dict[str, Any]:
    from wsurgery.checkpoint.dtypes import is_float
    from wsurgery.operations.statistics import summary

    if not is_float(checkpoint.tensors[name].dtype):
        return {}
    try:
        return asdict(summary(checkpoint.read_array(name)))
    except TypeError:  # elements smaller than a byte
        return {}


def _print_table(description: dict[str, Any], label: str, *, by_tensor: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from wsurgery.errors import printable

    console = table_console()
    architecture = description["architecture"]
    of_rows = {row["name"]: row for row in description["tensors"]}
    parameters = sum(block["parameters"] for block in description["blocks"])
    title = f"{label}: {architecture['name'] if architecture else 'unknown architecture'}, {parameters:,} parameters"
    console.print(Text(printable(title)))
    columns = (
        ("name", "block", "role", "dtype", "shape", "frozen")
        if by_tensor
        else ("block", "parameters", "tensors", "dtypes", "frozen")
    )
    statistics = ("mean", "std", "min", "max", "zeros", "nan", "inf")
    shown = [key for key in statistics if any(key in row for row in of_rows.values())]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in (*columns, *shown):
        table.add_column(
            column,
            justify="left" if column in ("name", "block", "role", "dtype", "dtypes") else "right",
            overflow="fold",
        )
    for block in description["blocks"]:
        rows = [of_rows[name] for name in block["tensors"]]
        if by_tensor:
            for row in rows:
                cells = [
                    row["name"],
                    row["block"],
                    row["role"],
                    row["dtype"],
                    str(tuple(row["shape"])),
                    "yes" if row["frozen"] else "",
                ]
                cells += [_number(row.get(key)) for key in shown]
                table.add_row(*(Text(printable(cell)) for cell in cells))
        else:
            frozen = sum(row["frozen"] for row in rows)
            dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in rows))
            cells = [
                block["name"],
                f"{block['parameters']:,}",
                str(len(rows)),
                dtypes,
                f"{frozen} of {len(rows)}" if frozen else "",
            ]
            table.add_row(*map(Text, cells))
    console.print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
