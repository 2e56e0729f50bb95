"""What other people made: only regular files are opened, and JSON comes in by its types."""

import os
import stat
from typing import Any, BinaryIO, TypeVar

from wsurgery.errors import WsurgeryError, printable

T = TypeVar("T")
_MAX_DIGITS = 300


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read, unbuffered, if it is one: a FIFO or a device would be waited for.

    Raises:
        WsurgeryError: it is something else.
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WsurgeryError(f"{printable(str(path))} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


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
