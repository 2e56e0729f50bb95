"""Tables as people have them: text with any separator, gzipped or not, as spreadsheets and data frames write it, and Parquet."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from wsurgery.errors import UsageError, WsurgeryError, plain_cell, printable
from wsurgery.untrusted import MAX_COLUMNS, open_regular, short_lines

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".csv.gz", ".tsv.gz", ".parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# The row numbers that data frames and spreadsheets write beside the data, and the columns after a line's last comma.
_NAMELESS = re.compile(r"|unnamed: \d+(_level_\d+|\.\d+)*|__index_level_\d+__", re.IGNORECASE)
_FREE_ROWS, _FREE_CELLS = 1_000_000, 30_000_000  # of a packed file, however few bytes it has
_MAX_NAMES = 40  # of the columns in a message
_BLOCK = 4096  # rows that are turned into columns at once


@dataclass(frozen=True, eq=False)
class Table:
    """n rows of text.

    Attributes:
        file: where it is from.
        columns: name → (n,) values, white space around them gone; the file's order. Columns without a name, and a data
            frame's row numbers, are left out.
        separator: what stands between a line's fields; nothing for Parquet.
        lines: (n,) the line in which each row ends, or for Parquet its number from 1.
    """

    file: Path
    columns: Mapping[str, Sequence[str]]
    separator: str
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, name: str) -> Sequence[str]:
        """The values of a column, (n,).

        Raises:
            WsurgeryError: there is none; it names the separator and the columns that there are.
        """
        found = self.find(name)
        if found is None:
            raise self.wrong(f"there is no column {name!r}{self.described}")
        return self.columns[found]

    @property
    def described(self) -> str:
        """The separator that was guessed and the columns, for messages."""
        names = ", ".join(list(self.columns)[:_MAX_NAMES])
        more = f" and {len(self.columns) - _MAX_NAMES} more" if len(self.columns) > _MAX_NAMES else ""
        between = f", separated by {SEPARATORS[self.separator]}," if self.separator else ""
        return f": the columns{between} are {names or 'none'}{more}"

    def find(self, *names: str) -> str | None:
        """The first of some columns that is there, as the table writes it; capitals do not matter."""
        folded = {name.casefold(): name for name in reversed([*self.columns])}
        for name in names:
            if name in self.columns or name.casefold() in folded:
                return name if name in self.columns else folded[name.casefold()]
        return None

    def take(self, rows: Sequence[int]) -> "Table":
        """Some rows, in the order given."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return replace(self, columns=columns, lines=[self.lines[row] for row in rows])

    def join(self, other: "Table", on: str, other_on: str = "") -> "Table":
        """This table with the columns of another beside it that it lacks, by the values of a column in both.

        Of rows of `other` with one value the first is taken; where there is none, the columns are empty.

        Raises:
            WsurgeryError: one of them lacks the column.
        """
        row_of: dict[str, int] = {}
        for row, value in enumerate(other[other_on or on]):
            row_of.setdefault(value, row)
        rows = [row_of.get(value) for value in self[on]]
        added = {
            name: ["" if row is None else values[row] for row in rows]
            for name, values in other.columns.items()
            if self.find(name) is None
        }
        return replace(self, columns={**self.columns, **added})

    def where(self, row: int) -> str:
        """A row, for messages."""
        return f"{'line' if self.separator else 'row'} {self.lines[row]}"

    def wrong(self, what: str, row: int | None = None) -> WsurgeryError:
        """An error of this table, in one line."""
        where = "" if row is None else f" {self.where(row)}:"
        return WsurgeryError(f"{printable(str(self.file))}:{where} {printable(what, 2000)}")


def is_table(path: str) -> bool:
    """Whether the suffix is a table's."""
    return path.lower().endswith(SUFFIXES)


def read_table(file: Path, encoding: str = "") -> Table:
    """Read a table.

    The separator is what the first line has most of. Lines of nothing but separators are left out, and so are more of
    them at a line's end than the first line has.

    Args:
        file: .csv, .tsv, .tab or .txt, of which the first two may be gzipped, a text file without a suffix, or .parquet.
        encoding: of text. Default: UTF-16 if the file begins with its mark, else UTF-8.

    Raises:
        WsurgeryError: it is not what its suffix says, has a column twice, or a line with other fields than the first.
        UsageError: another suffix, or no such encoding.
    """
    if not is_table(file.name) and file.suffix:
        sheet = ": save the sheet as CSV UTF-8" if file.suffix.lower() in (".xlsx", ".xls", ".ods") else ""
        raise UsageError(f"{printable(str(file))}: a table is a {', '.join(SUFFIXES[:-1])} or .parquet file{sheet}")
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise UsageError(
            f"encoding={printable(encoding)}: there is no such encoding; cp1252 and utf-8 are two"
        ) from None
    try:
        return _read_parquet(file) if file.suffix.lower() == ".parquet" else _read_text(file, encoding)
    except UnicodeDecodeError as error:
        remedy = "" if encoding else ": save it as UTF-8, or say which it is: encoding=cp1252 for most spreadsheets"
        raise WsurgeryError(f"{printable(str(file))} is not {error.encoding} (byte {error.start}){remedy}") from None
    except Exception as error:  # of Arrow's, csv's, gzip's and ours
        if isinstance(error, UsageError) or (isinstance(error, OSError) and error.filename is not None):
            raise
        what = " ".join(str(error).split()).removeprefix(f"{printable(str(file))}: ")
        raise WsurgeryError(f"{printable(str(file))}: {printable(what, 2000)}") from None


@contextmanager
def _open_text(file: Path, encoding: str) -> Iterator[TextIO]:
    with open_regular(file, buffering=-1) as stream:
        raw = io.BufferedReader(gzip.GzipFile(fileobj=stream)) if file.suffix.lower() == ".gz" else stream
        try:
            marked = raw.read(2) in (b"\xff\xfe", b"\xfe\xff")
            raw.seek(0)
            yield io.TextIOWrapper(raw, encoding or ("utf-16" if marked else "utf-8-sig"), newline="")
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise WsurgeryError("it is not whole, or no gzip file") from None


def _read_text(file: Path, encoding: str) -> Table:
    with _open_text(file, encoding) as stream:
        lines = short_lines(stream)
        first = next(lines, "")
        bare = re.sub(r'"[^"]*"', "", first)
        separator = max(SEPARATORS, key=bare.count)
        reader = csv.reader(chain([first], lines), delimiter=separator, skipinitialspace=True, strict=True)
        rows = _whole_rows(reader)
        names = [plain_cell(name.strip()) for name in next(rows, ([], 0))[0]]
        _check_columns(len(names))
        kept = [i for i, name in enumerate(names) if not _NAMELESS.fullmatch(name)]
        last = max(kept, default=-1) + 1  # fields after it say nothing
        columns: list[list[str]] = [[] for _ in kept]
        ends: list[int] = []
        memo: dict[str, str] = {}  # short values come often, and are kept once
        cells = _FREE_CELLS + 100 * file.stat().st_size
        table = Table(file, dict.fromkeys((names[i] for i in kept), ()), separator, ends)
        for block in _blocks(_rows(rows, table, len(names), last, ends)):
            for values, i in zip(columns, kept, strict=True):
                stripped = (plain_cell(row[i].strip()) for row in block)
                values.extend(memo.setdefault(value, value) if len(value) < 8 else value for value in stripped)
            if len(ends) * len(names) > cells:  # of a gzipped file: another has no more fields than bytes
                raise WsurgeryError(f"there are {len(ends):,} rows and more in {file.stat().st_size:,} bytes")
    if len(table.columns) < len(kept):
        twice = next(name for name in table.columns if names.count(name) > 1)
        raise WsurgeryError(f"column {twice!r} is there twice")
    return replace(table, columns={names[i]: values for i, values in zip(kept, columns, strict=True)})


def _whole_rows(reader: Iterator[list[str]]) -> Iterator[tuple[list[str], int]]:
    """The rows of csv's reader, each with the line in which it ends; a quote that is never closed would take all that follow."""
    end = 0
    try:
        for row in reader:
            end = reader.line_num  # type: ignore[attr-defined]
            yield row, end
    except csv.Error as error:
        raise WsurgeryError(
            f"line {end + 1}: a row begins here that does not end ({error}): a field that begins with a quote ends with "
            'one, before a separator, and has each quote in it twice, as in "say ""a""": mend it, or take the quote out'
        ) from None


def _rows(
    whole: Iterator[tuple[list[str], int]], table: Table, n: int, last: int, ends: list[int]
) -> Iterator[list[str]]:
    """The rows that hold something, each with its `n` fields; the number of its line goes to `ends`."""
    for row, end in whole:
        if not any(row):
            continue
        ends.append(end)
        if len(row) != n:
            if len(row) < last or any(row[n:]):
                raise table.wrong(f"there are {len(row)} fields and {n} columns{table.described}", len(ends) - 1)
            row += [""] * (n - len(row))
        yield row


def _blocks(rows: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    while block := list(islice(rows, _BLOCK)):
        yield block


def _read_parquet(file: Path) -> Table:
    import pyarrow.parquet as pq  # takes a quarter of a second, which who reads text need not

    with open_regular(file) as stream, pq.ParquetFile(stream) as parquet:
        _check_columns(parquet.metadata.num_columns)
        size, rows = file.stat().st_size, parquet.metadata.num_rows
        # Packed, a column of one value takes no bytes, however many rows there are.
        if rows > _FREE_ROWS + 16 * size or rows * parquet.metadata.num_columns > _FREE_CELLS + 100 * size:
            raise WsurgeryError(f"there are {rows:,} rows in {size:,} bytes")
        schema = parquet.schema_arrow
    fields = [field for field in schema if not _NAMELESS.fullmatch(field.name)]
    names, texts = _flat(fields)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise WsurgeryError(f"column {twice!r} is there twice")
    # Kept once for all rows that have it: a long text that comes often is a few bytes in the file.
    table = pq.read_table(file, columns=names, read_dictionary=texts, use_threads=False)
    return Table(file, {name.strip(): _texts(table[name], name) for name in names}, "", range(1, table.num_rows + 1))


def _flat(fields: "list[pa.Field]") -> tuple[list[str], list[str]]:
    """Return the names of the columns that have one value a cell, without images and lists, and of those that are text."""
    from pyarrow import types

    flat = [
        field
        for field in fields
        if not (types.is_nested(field.type) or types.is_binary(field.type) or types.is_large_binary(field.type))
    ]
    texts = [field.name for field in flat if types.is_string(field.type) or types.is_large_string(field.type)]
    return [field.name for field in flat], texts


def _texts(column: "pa.ChunkedArray", name: str) -> list[str]:
    import pyarrow as pa

    values: list[str] = []
    try:
        for chunk in column.chunks:
            if pa.types.is_dictionary(chunk.type):
                kept = [(value or "").strip() for value in chunk.dictionary.cast(pa.string()).to_pylist()]
                values += ["" if index is None else kept[index] for index in chunk.indices.to_pylist()]
            else:
                values += [(value or "").strip() for value in chunk.cast(pa.string()).to_pylist()]
    except (pa.ArrowException, ValueError) as error:
        raise WsurgeryError(f"column {name!r} is not text: {error}") from None
    return values


def _check_columns(n: int) -> None:
    if n > MAX_COLUMNS:
        raise WsurgeryError(f"there are {n:,} columns: at most {MAX_COLUMNS:,} are read")
