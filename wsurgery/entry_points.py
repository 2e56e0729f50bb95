"""What other packages bring by entry points. Nothing of it is imported before it is asked for by its name."""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsurgery.errors import WsurgeryError, printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


@dataclass(frozen=True)
class PlugIn:
    """Something of another package, which is not imported before it is used.

    Attributes:
        name: under which it is asked for.
        package: the distribution that brings it.
        version: of that.
        entry_point: where it is.
    """

    name: str
    package: str
    version: str
    entry_point: "EntryPoint"

    def __str__(self) -> str:
        return f"the plug-in {self.name} of {self.package} {self.version}"

    def load(self) -> Any:
        """Import it.

        Raises:
            WsurgeryError: it cannot be imported.
        """
        try:
            return self.entry_point.load()
        except Exception as error:  # whatever another package's code raises
            reason = printable(f"{type(error).__name__}: {error}")
            raise WsurgeryError(f"{self} cannot be imported: {reason}") from error

    def load_function(self, what: str) -> Any:
        """Import it, where it has to be a function.

        Args:
            what: it should be, for the message.

        Raises:
            WsurgeryError: it cannot be imported, or is no function.
        """
        found = self.load()
        if not callable(found):
            raise WsurgeryError(f"{self} is a {type(found).__name__}: {self.entry_point.group} names {what}")
        return found


@cache
def plug_ins(group: str) -> dict[str, PlugIn]:
    """Return what packages bring of a group, by name; of two with one name, that of the package that comes first by its own."""
    found: dict[str, PlugIn] = {}
    if not _is_named(group):
        return found
    from importlib.metadata import entry_points

    for point in sorted(
        entry_points(group=group), key=lambda point: (point.name, point.dist.name if point.dist else "")
    ):
        package, version = (point.dist.name, point.dist.version) if point.dist else ("?", "?")
        found.setdefault(point.name, PlugIn(point.name, package, version, point))
    return found


def find(group: str, name: str) -> PlugIn | None:
    """Return what a package brings of a group under a name, None where none does."""
    return plug_ins(group).get(name)


def _is_named(group: str) -> bool:
    """Whether a package may bring something of a group: to ask costs a tenth of importing `importlib.metadata`, for --help."""
    wanted = f"[{group}]".encode()
    for folder in map(Path, sys.path):
        if folder.is_file():  # an archive
            return True
        for file in folder.glob("*.*-info/entry_points.txt"):
            if wanted in file.read_bytes():
                return True
    return False
