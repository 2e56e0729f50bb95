"""`wsurgery show`."""

import csv as csv_module
import json as json_module
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.commands._shared import BlockMap, Input, Json, Part, Threads, command, print_table, say, table_console
from wsurgery.errors import UsageError, printable, table_cell

if TYPE_CHECKING:
    from wsurgery.checkpoint import Checkpoint, TensorInfo

_TOGETHER = 64  # small tensors


@command
def show(
    source: Input = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="One line for each tensor, not for each block.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read the tensors too: mean, std, min, max, zeros, NaN, infinities.")
    ] = False,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="The entries of the metadata instead, but for wsurgery's own (see log).")
    ] = False,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV on standard output, one line for each tensor.")] = False,
    threads: Threads = None,
    block_map: BlockMap = None,
) -> None:
    """Show blocks, roles and shapes, what is frozen, and where it came from. Reads the header only, unless --stats.

    Example: wsurgery show resnet50.safetensors --stats
    """
    from wsurgery.anatomy.scales import scaled_note
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.header import no_search_for_cycles
    from wsurgery.checkpoint.provenance import History
    from wsurgery.operations.description import describe

    if json and csv:
        raise UsageError("--json and --csv: choose one")
    if metadata and csv:
        raise UsageError("--metadata and --csv: --metadata --json is for scripts")
    if metadata and (stats or tensors):
        raise UsageError(f"--metadata and --{'stats' if stats else 'tensors'}: ask for one after the other")
    with open_checkpoint(source) as checkpoint, no_search_for_cycles():
        if metadata:
            _print_metadata(History.of(checkpoint).others, json=json)
            return
        description = describe(checkpoint, Part(block_map=block_map).selection)
        if stats:
            found = _statistics(checkpoint, threads)
            description["tensors"] = [
                {**row, **numbers} for row, numbers in zip(description["tensors"], found, strict=True)
            ]
        if json:
            typer.echo(json_module.dumps(description))
        elif csv:
            _print_csv(description["tensors"])
        else:
            _print_table(description, checkpoint.label, by_tensor=tensors or stats)
        if note := scaled_note(checkpoint.tensors, checkpoint.label):
            say(note)


def _print_metadata(entries: Mapping[str, str], *, json: bool) -> None:
    if json:
        typer.echo(json_module.dumps(dict(entries)))
    elif entries:
        print_table(("entry", "value"), sorted(entries.items()), left=("entry", "value"))
    else:
        say("no entries of other tools")


def _statistics(checkpoint: "Checkpoint", threads: int | None) -> Iterator[dict[str, Any]]:
    from concurrent.futures import ThreadPoolExecutor
    from itertools import groupby, islice

    from wsurgery.checkpoint.dtypes import BITS, is_float
    from wsurgery.checkpoint.reader import SMALL
    from wsurgery.cores import workers
    from wsurgery.operations.random_streams import CHUNK
    from wsurgery.operations.statistics import summaries, summary
    from wsurgery.progress import Progress

    def kind(tensor: "TensorInfo") -> tuple[object, ...]:
        computable = is_float(tensor.dtype) and BITS[tensor.dtype] >= 8
        return computable, tensor.dtype, tensor.shape, tensor.name if tensor.nbytes > SMALL else ""

    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    with ThreadPoolExecutor(workers(threads)) as pool, Progress(total, "reading") as progress:
        for (computable, *_), alike in groupby(checkpoint.tensors.values(), kind):
            while batch := list(islice(alike, _TOGETHER)):
                tensor = batch[0]
                if not computable:
                    yield from ({} for _ in batch)
                elif tensor.nbytes > SMALL:
                    run = pool.map if tensor.elements > CHUNK else map
                    yield vars(summary(checkpoint.read_array(tensor.name), run))
                else:
                    yield from map(vars, summaries([checkpoint.read_array(each.name) for each in batch]))
                progress.advance(sum(each.nbytes for each in batch))


def _print_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv_module.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        texts = {key: table_cell(printable(row[key], len(row[key]) * 10)) for key in ("name", "block")}
        if "scaled_by" in row:
            texts["scaled_by"] = table_cell(printable(" ".join(row["scaled_by"])))
        writer.writerow({**row, **texts, "shape": "x".join(map(str, row["shape"]))})


def _origin(history: Sequence[Mapping[str, Any]]) -> str:
    """Say what went in and what was done, in a line: `from resnet50.safetensors by transfuse, freeze-spec`."""
    sources = dict.fromkeys(name for record in history for name in record["inputs"] if name != "-")
    made_from = f"from {', '.join(sources)} " if sources else ""
    return f"{made_from}by {', '.join(record['command'] for record in history)} (wsurgery log has all of it)"


def _print_table(description: dict[str, Any], label: str, *, by_tensor: bool) -> None:
    from rich.text import Text

    console = table_console()
    architecture = description["architecture"]
    of_rows = {row["name"]: row for row in description["tensors"]}
    parameters = sum(block["parameters"] for block in description["blocks"])
    name = architecture["name"] if architecture else "unknown architecture"
    made_with = f" (--model {architecture['model']})" if architecture and "model" in architecture else ""
    title = f"{label}: {name}{made_with}, {parameters:,} parameters"
    console.print(Text(printable(title)))
    if description["history"]:
        console.print(Text(printable(_origin(description["history"]), 500)))
    columns = (
        ("name", "block", "role", "dtype", "shape", "frozen")
        if by_tensor
        else ("block", "parameters", "tensors", "MB", "dtypes", "roles", "frozen")
    )
    statistics = ("mean", "std", "min", "max", "zeros", "nan", "inf")
    shown = [key for key in statistics if any(key in row for row in of_rows.values())]
    lines = []
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
                lines.append(cells)
        else:
            frozen = sum(row["frozen"] for row in rows)
            dtypes, roles = (", ".join(dict.fromkeys(row[key] for row in rows)) for key in ("dtype", "role"))
            cells = [
                block["name"],
                f"{block['parameters']:,}",
                str(len(rows)),
                f"{block['bytes'] / 1e6:,.1f}",
                dtypes,
                roles,
                f"{frozen} of {len(rows)}" if frozen else "",
            ]
            lines.append(cells)
    words = ("name", "block", "role", "dtype", "dtypes", "roles")
    expendable = ("role", "dtype", "block", "frozen", "shape") if by_tensor else ()
    print_table((*columns, *shown), lines, left=words, expendable=expendable)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
