"""Which edits there are: those of `commands/`, and those that other packages bring by entry points."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from wsurgery import commands, entry_points
from wsurgery.errors import WsurgeryError
from wsurgery.operations.declaration import Edit

GROUP = "wsurgery.commands"


class PlugIn(entry_points.PlugIn):
    """An edit of another package."""

    def load(self) -> Edit:
        """Import it.

        Raises:
            WsurgeryError: it cannot be imported, or is no edit.
        """
        from wsurgery.checkpoint.records import COMMAND

        if not re.search(COMMAND, self.name):
            raise WsurgeryError(f"{self} has no name for a command: a-z, 0-9, - and _")
        found = super().load()
        if not isinstance(found, Edit):
            raise WsurgeryError(f"{self} is no edit: {GROUP} names a function declared with wsurgery.plugin.edit")
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
    """Return the edits of other packages by name."""
    own = {module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)}
    return {name: PlugIn(**vars(found)) for name, found in entry_points.plug_ins(GROUP).items() if name not in own}


def find_edit(name: str) -> Edit | None:
    """Return the edit of a name, None where there is none.

    Raises:
        WsurgeryError: it is that of a plug-in that cannot be imported.
    """
    if found := edits().get(name):
        return found
    return plug_ins()[name].load() if name in plug_ins() else None
