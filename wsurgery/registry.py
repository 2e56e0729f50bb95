"""Which edits there are: those of `commands/`, and those that other packages bring by entry points."""

import ast
import importlib.machinery
import importlib.util
import pkgutil
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from wsurgery import commands, entry_points
from wsurgery.errors import WsurgeryError, printable
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

    @property
    def sentence(self) -> str:
        """The first line of its docstring, read from its file without running it; empty where none is found."""
        top, *below = self.entry_point.module.split(".")
        try:
            spec = importlib.util.find_spec(top)
            for i in range(len(below)):
                name = ".".join((top, *below[: i + 1]))
                spec = spec and importlib.machinery.PathFinder.find_spec(name, spec.submodule_search_locations)
            source = importlib.util.decode_source(Path(spec.origin).read_bytes()) if spec and spec.origin else ""
            for statement in ast.parse(source).body:
                if isinstance(statement, ast.FunctionDef) and statement.name == self.entry_point.attr:
                    return printable((ast.get_docstring(statement) or "").partition("\n")[0])
        except (ImportError, OSError, ValueError, SyntaxError):  # its own command says what is wrong
            pass
        return ""


@cache
def command_modules() -> dict[str, str]:
    """Return the name of each subcommand, and of its module in `commands/`: `reset-bn` and `reset_bn`."""
    modules = [module.name for module in pkgutil.iter_modules(commands.__path__) if not module.name.startswith("_")]
    return {name.replace("_", "-"): name for name in modules}


def load_command(name: str) -> Any:
    """Import the module of a subcommand, and return what stands in it under its own name."""
    module = command_modules()[name]
    return getattr(importlib.import_module(f"wsurgery.commands.{module}"), module)


@cache
def edits() -> dict[str, Edit]:
    """Return wsurgery's own edits by name."""
    return {name: entry for name in command_modules() if isinstance(entry := load_command(name), Edit)}


@cache
def plug_ins() -> dict[str, PlugIn]:
    """Return the edits of other packages by name."""
    found = entry_points.plug_ins(GROUP)
    return {name: PlugIn(**vars(found[name])) for name in found if name not in command_modules()}


def find_edit(name: str) -> Edit | None:
    """Return the edit of a name, None where there is none.

    Raises:
        WsurgeryError: it is that of a plug-in that cannot be imported.
    """
    if name in command_modules():
        found = load_command(name)
        return found if isinstance(found, Edit) else None
    return plug_ins()[name].load() if name in plug_ins() else None
