"""Which edits there are: those of `commands/`, and those that other packages bring by entry points."""

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from wsurgery import commands
from wsurgery.errors import WsurgeryError, printable
from wsurgery.operations.declaration import Edit

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "wsurgery.commands"


@dataclass(frozen=True)
class PlugIn:
    """An edit of another package, which is not imported before it is used.

    Attributes:
        name: of the command.
        package: the distribution that brings it.
        version: of that.
        entry_point: where it is.
    """

    name: str
    package: str
    version: str
    entry_point: "EntryPoint"

    def load(self) -> Edit:
        """Import it.

        Raises:
            WsurgeryError: it cannot be imported, or is no edit.
        """
        said = f"the plug-in {self.name} of {self.package} {self.version}"
        try:
            found = self.entry_point.load()
        except Exception as error:  # whatever another package's code raises
            reason = printable(f"{type(error).__name__}: {error}")
            raise WsurgeryError(f"{said} cannot be imported: {reason}") from error
        if not isinstance(found, Edit):
            raise WsurgeryError(f"{said} is no edit: {GROUP} names a function declared with wsurgery.plugin.edit")
        return replace(found, name=self.name, package={"name": self.package, "version": self.version})


def command_modules() -> Iterator[tuple[str, Any]]:
    """Import the modules of `commands/`; yield the name of each subcommand and what stands under that name there."""
    for module in pkgutil.iter_modules(commands.__path__):
        if not module.name.startswith("_"):
            entry = getattr(importlib.import_module(f"wsurgery.commands.{module.name}"), module.name)
            yield module.name.replace("_", "-"), entry


@cache
def edits() -> dict[str, Edit]:
    """Return wsurgery's own edits by name."""
    return {name: entry for name, entry in command_modules() if isinstance(entry, Edit)}


@cache
def plug_ins() -> dict[str, PlugIn]:
    """Return the edits of other packages by name; of two with one name, the package that comes first by its name."""
    from importlib.metadata import entry_points

    own = {module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)}
    found: dict[str, PlugIn] = {}
    for point in sorted(
        entry_points(group=GROUP), key=lambda point: (point.name, point.dist.name if point.dist else "")
    ):
        if point.name not in own:
            package, version = (point.dist.name, point.dist.version) if point.dist else ("?", "?")
            found.setdefault(point.name, PlugIn(point.name, package, version, point))
    return found


def find_edit(name: str) -> Edit | None:
    """Return the edit of a name, None where there is none.

    Raises:
        WsurgeryError: it is that of a plug-in that cannot be imported.
    """
    if found := edits().get(name):
        return found
    return plug_ins()[name].load() if name in plug_ins() else None
