"""`wsurgery diff`."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from wsurgery.commands._pictures import labels_of
from wsurgery.commands._shared import Force, Json, Part, Threads, command, print_table, say, table_console
from wsurgery.errors import UsageError, printable


@command
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The checkpoint before, or - for standard input.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The checkpoint after, or - for standard input.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="One line for each tensor, not for each block.")] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with status 1 if anything differs. Without it, the status is 0.")
    ] = False,
    json: Json = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the blocks' distances, too: .pdf, .svg or .png.")
    ] = None,
    force: Force = False,
    threads: Threads = None,
    *,
    part: Part,
) -> None:
    """Show how far the tensors moved from A to B: relative L2 distance, cosine, largest change, share of equal elements.

    Elements with equal bits are equal, NaN too. A dash stands where a number is undefined: for integers, for norms of 0,
    and where a NaN or an infinity differs. Metadata and the order of the tensors are not compared. A wrapper's prefix
    (module., model.) that only one has is looked through, a tied tensor stands for each of its names, other element types are
    compared by value, and counters (num_batches_tracked) that only one has are passed over.

    Example: wsurgery diff init.safetensors run

    Example: wsurgery diff init.safetensors run --plot moved.png
    """
    from contextlib import ExitStack

    from wsurgery.anatomy.scales import scaled_note
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History
    from wsurgery.checkpoint.spool import seekable
    from wsurgery.operations.changes import changes

    if plot is not None:  # a library that is missing is said before anything is read
        from wsurgery.figures.block_changes import draw_block_changes
        from wsurgery.figures.style import save
    if a == b == "-":
        raise UsageError("only one of A and B can be standard input: name the other")
    with ExitStack() as stack:
        before, after = stack.enter_context(open_checkpoint(a)), stack.enter_context(open_checkpoint(b))
        if not before.seekable and list(before.tensors) != list(after.tensors):
            after = stack.enter_context(seekable(after))
        # A tied tensor is asked for once by each of its names.
        before, after = (
            stack.enter_context(seekable(each)) if History.of(each).aliases(each.tensors) else each
            for each in (before, after)
        )
        description = changes(before, after, part.selection, threads=threads, by_tensor=tensors or json)
        for each in (before, after):
            if note := scaled_note(each.tensors, each.label):
                say(note)
        if json:
            typer.echo(json_module.dumps(description))
        else:
            _print_table(description, by_tensor=tensors)
    if plot is not None:
        title = "A: {}, B: {}".format(*labels_of([a, b]))
        save(draw_block_changes(description, title=title), plot, force=force)
    if exit_code and not description["identical"]:
        raise typer.Exit(1)


def _print_table(description: dict[str, Any], *, by_tensor: bool) -> None:
    from rich.text import Text

    console = table_console()
    lines = []
    first = ("tensor", "block") if by_tensor else ("block", "tensors")
    for row in description["tensors" if by_tensor else "blocks"]:
        cells = [row["name"], row["block"]] if by_tensor else [row["name"], _count(row)]
        cells += [_number(row["relative_l2"]), _number(row["cosine"], 6), _number(row["max"])]
        cells.append("identical" if row["identical"] else _percent(row["equal"]))
        lines.append(cells)
    print_table((*first, "relative L2", "cosine", "max |B-A|", "equal"), lines, left=("tensor", "block"))
    for key, words in (("only_in_a", "only in A"), ("only_in_b", "only in B")):
        for row in description[key]:
            console.print(Text(f"{words}: {printable(row['name'])} {_short(row)}"))
    if rows := description["changed_dtype"]:
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        first = rows[0]
        said = f"{printable(first['a']['name'])} {_short(first['a'])} in A, {_short(first['b'])} in B{more}"
        console.print(Text(f"compared by value: {said}"))
    for row in description["changed_kind"]:
        console.print(
            Text(f"not comparable: {printable(row['name'])} {_short(row['a'])} in A, {_short(row['b'])} in B")
        )


def _count(row: dict[str, Any]) -> str:
    return str(row["tensors"]) if row["compared"] == row["tensors"] else f"{row['compared']} of {row['tensors']}"


def _short(row: dict[str, Any]) -> str:
    return f"{row['dtype']} {tuple(row['shape'])}"


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _percent(share: float | None) -> str:
    # 0 and 100 % only where it is: one element in a billion is a difference.
    if share is None:
        return "–"
    if share in (0, 1) or 0.0005 <= share < 0.9995:
        return f"{100 * share:.1f} %"
    text = f"{100 * share:.2g}" if share < 0.5 else f"{100 * share:.6g}"
    return "<100 %" if text == "100" else f"{text} %"
