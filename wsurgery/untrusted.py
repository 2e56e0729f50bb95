"""What other people made: only regular files are opened, no link is written through, and JSON comes in by its types."""

import io
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, TextIO, TypeVar

from wsurgery.errors import UsageError, WsurgeryError, printable

MAX_LINE = 1 << 24  # characters of a line of a table
MAX_COLUMNS = 30_000  # of a table: the largest set of labels, ImageNet's, has 21,841

T = TypeVar("T")
_MAX_DIGITS = 300


def open_regular(path: str | os.PathLike[str], *, buffering: int = 0) -> BinaryIO:
    """Open a file to read if it is one: a FIFO or a device would be waited for.

    Args:
        path: the file.
        buffering: as of `open`; unbuffered by default.

    Raises:
        WsurgeryError: it is something else.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WsurgeryError(f"{printable(str(path))} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=buffering)


def require_local(path: str | os.PathLike[str]) -> None:
    """Refuse an address where a file or a folder of this machine is to be written.

    Raises:
        UsageError: it is one.
    """
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]+):[/\\]+(.*)", str(path)):
        raise UsageError(
            f"{printable('://'.join(match.groups()))} is an address: name a file or a folder here; checkpoints alone are "
            "written to a store, by -o of surgery commands and by push"
        )


def refuse_link(path: str | os.PathLike[str]) -> None:
    """Refuse a symbolic link where wsurgery is about to write a file of its own, in a run folder or the cache.

    Writing would follow it, and whoever made the folder chose where to.

    Raises:
        WsurgeryError: it is a link.
    """
    if os.path.islink(path):
        raise WsurgeryError(
            f"{printable(str(path))} is a symbolic link, through which wsurgery does not write: remove it"
        )


def open_own(path: str | os.PathLike[str], mode: Literal["ab", "wb", "r+b"]) -> BinaryIO:
    """Open a file of wsurgery's own to write it in place, unbuffered, if it is new or regular, and no link.

    Raises:
        WsurgeryError: it is something else.
        OSError: it cannot be opened.
    """

    def without_links(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0), 0o666)

    refuse_link(path)
    stream = open(path, mode, buffering=0, opener=without_links)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise WsurgeryError(f"{printable(str(path))} is not a regular file")
    return stream


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a whole file of at most `limit` bytes.

    Raises:
        WsurgeryError: it is longer, or no regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > limit:
            raise WsurgeryError(f"{printable(str(path))} is larger than {limit:,} bytes, which none of its kind is")
        return stream.read(limit)


def text_of(path: str | os.PathLike[str], encoding: str) -> TextIO:
    """Open a regular file to read it as a table's text, its line ends as they are.

    Raises:
        As `open_regular`.
    """
    return io.TextIOWrapper(open_regular(path, buffering=-1), encoding, newline="")


def short_lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines of a table, each as it ends.

    Raises:
        WsurgeryError: one is longer than any table's.
    """
    while line := stream.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise WsurgeryError(f"a line has {MAX_LINE:,} characters or more, which no table has")
        yield line


def parse_json(text: str | bytes, kind: type[T], label: str) -> T:
    """Parse JSON into a type: a dataclass, a TypedDict, or what is made of them and of lists, maps, numbers and strings.

    NaN and Infinity are numbers, as Python writes them; an integer that no float64 can hold is none.

    Args:
        text: the JSON, in UTF-8 if it is bytes.
        kind: the type.
        label: what it is, for the message: a file's name.

    Raises:
        WsurgeryError: it is no JSON, or not of that type.
    """
    import json

    import msgspec

    try:
        value: Any = json.loads(text, parse_int=_integer)
        return msgspec.convert(value, kind)
    except (ValueError, RecursionError) as error:  # msgspec's own is a ValueError
        raise WsurgeryError(f"{printable(label)} is not what wsurgery writes: {printable(str(error))}") from None


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)
