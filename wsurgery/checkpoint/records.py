"""The types of the `wsurgery` entry: what a history is held against where it enters.

Keys that are not named here are those of a newer version: they are kept and not looked at.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from msgspec import Meta, Struct, convert

from wsurgery.checkpoint.trained import TrainedOn
from wsurgery.errors import WsurgeryError
from wsurgery.untrusted import parse_json

MAX_DEPTH = 128  # logs inside the descriptions of inputs
MAX_RECORDS = 100_000  # in all logs together
COMMAND = r"^[a-z0-9][a-z0-9_-]{0,63}\Z"  # its name: no shell reads it otherwise
OPTION = r"^(--[a-z0-9][a-z0-9-]{0,63})?\Z"  # that an input is given with; none of one that stands by its place

Natural = Annotated[int, Meta(ge=0)]
Size = Annotated[int, Meta(ge=0, lt=1 << 31)]  # of a dimension


class Input(Struct, kw_only=True):
    """A file or a stream that a command read: see `describe_input`."""

    name: Annotated[str, Meta(min_length=1)]
    option: Annotated[str, Meta(pattern=OPTION)] = ""
    size: Natural = 0
    blake3: str = ""
    header: str = ""
    url: str = ""
    revision: str | None = None
    log: "list[Record]" = []


class Package(Struct):
    """Where the command of a plug-in comes from."""

    name: str
    version: str


class Record(Struct, kw_only=True):
    """One run of a command: see `make_record`."""

    command: Annotated[str, Meta(pattern=COMMAND)]
    arguments: list[str] = []
    seed: Natural = 0
    version: str = ""
    inputs: list[Input] = []
    package: Package | None = None
    output: str = ""
    trained_on: TrainedOn | None = None


class Architecture(Struct, kw_only=True):
    """Which network it is."""

    name: str
    num_classes: Size | None = None
    in_chans: Size | None = None
    args: dict[str, Any] = {}
    model: str = ""


class Entry(Struct, kw_only=True):
    """The whole entry."""

    architecture: Architecture | None = None
    blocks: Annotated[dict[str, list[str]], Meta(min_length=1)] | None = None
    freeze: list[str] = []
    log: list[Record] = []


def parse_entry(text: str) -> dict[str, Any]:
    """Parse the entry and hold it against its types.

    Returns:
        It as it was written, every key with it, so that it can be written again.

    Raises:
        WsurgeryError: it is not what wsurgery writes.
    """
    entry = parse_json(text, dict[str, Any], "the entry")
    try:
        convert(entry, Entry)
    except (ValueError, RecursionError) as error:
        raise WsurgeryError(str(error)) from None
    require_bounded(entry.get("log", []))
    return entry


def require_bounded(log: Sequence[dict[str, Any]]) -> None:
    """Refuse logs inside of logs without end.

    Raises:
        WsurgeryError: they are deeper than `MAX_DEPTH`, or have more than `MAX_RECORDS` records.
    """
    records, depth, level = 0, 0, list(log)
    while level:
        records += len(level)
        depth += 1
        if depth > MAX_DEPTH or records > MAX_RECORDS:
            raise WsurgeryError(f"a history is longer than {MAX_RECORDS:,} commands, or {MAX_DEPTH} deep")
        level = [inner for record in level for given in record.get("inputs", []) for inner in given.get("log", [])]
