"""Tables that fit a terminal: no number is broken, words fold, and what has no room stands below or is left out by name."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

_NARROWEST = 20  # to which words are folded before a column goes


def fitted(table: "Table", console: "Console", *, expendable: Sequence[str] = ()) -> tuple[list["Table"], list[str]]:
    """Make a table as narrow as the terminal.

    Columns at the left fold, to 20 characters and then anywhere. Others break between words, once. What has no room even
    so goes: first the expendable columns, then further tables below with the first column repeated.

    Args:
        table: any number of columns.
        console: where it will be printed.
        expendable: headings of columns that may be left out, the first one first.

    Returns:
        The table as it is where it has room, else tables to print below each other; and the headings that were left out,
        but for those of empty columns.
    """
    chosen, left_out = list(table.columns), []
    if _room(table, chosen, console) >= sum(_whole(column) for column in chosen):
        return [table], []
    for heading in expendable:
        if _room(table, chosen, console) >= sum(map(_least, chosen)):
            break
        gone = [column for column in chosen if _text(column.header) == heading]
        left_out += [heading for column in gone if any(_texts(column))]
        chosen = [column for column in chosen if column not in gone]
    parts = [_part(table, columns, _room(table, columns, console)) for columns in _stacked(table, chosen, console)]
    for part in parts[1:]:
        part.title = None
    for part in parts[:-1]:
        part.caption = None
    return parts, left_out


def _stacked(table: "Table", columns: Sequence["Column"], console: "Console") -> Iterator[list["Column"]]:
    first, *others = columns
    part = [first]
    for column in others:
        if len(part) > 1 and _room(table, [*part, column], console) < sum(map(_least, [*part, column])):
            yield part
            part = [first]
        part.append(column)
    yield part


def _part(table: "Table", columns: Sequence["Column"], room: int) -> "Table":
    """Copy a table with some of its columns, in the widths that `room` leaves them."""
    widths = {id(column): _least(column) for column in columns}
    extra = max(room - sum(widths.values()), 0)
    for left, column in zip(
        range(len(columns), 0, -1), sorted(columns, key=lambda x: _whole(x) - _least(x)), strict=True
    ):
        more = min(_whole(column) - _least(column), extra // left)
        widths[id(column)] += more
        extra -= more
    part = copy(table)
    part.columns = [
        replace(column, _index=i, width=widths[id(column)], no_wrap=False, overflow="fold")
        for i, column in enumerate(columns)
    ]
    return part


def _room(table: "Table", columns: Sequence["Column"], console: "Console") -> int:
    """Return the characters that padding and lines leave for the cells of so many columns."""
    _, right, _, left = table.padding
    between = max(left, right) if table.collapse_padding else left + right
    edges = (left + right) * (not table.pad_edge) - (table.box is not None)
    return console.width - len(columns) * (between + (table.box is not None)) + edges


def _texts(column: "Column") -> list[str]:
    return [_text(cell) for cell in column._cells]


def _text(cell: Any) -> str:
    return cell if isinstance(cell, str) else str(cell.plain)


def _whole(column: "Column") -> int:
    return max(map(cell_len, [_text(column.header), *_texts(column)]))


def _least(column: "Column") -> int:
    """Return the width down to which a column reads well."""
    heading = max(map(cell_len, _text(column.header).split()), default=0)
    if column.justify == "left":
        return max(heading, min(_NARROWEST, _whole(column)))
    return max([heading, *map(_halved, _texts(column))])


def _halved(text: str) -> int:
    """Return the width in which a text fits on two lines, broken between words."""
    words = text.split(" ")
    halves = ((" ".join(words[:i]), " ".join(words[i:])) for i in range(len(words)))
    return min(max(map(cell_len, both)) for both in halves)
