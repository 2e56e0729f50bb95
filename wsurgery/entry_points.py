"""What other packages bring by entry points. Nothing of it is imported before it is asked for by its name."""

import sys
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from wsurgery.errors import WsurgeryError, located, printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


_GROUPS = ("wsurgery.commands", "wsurgery.data", "wsurgery.metrics", "wsurgery.models")


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
        except (Exception, SystemExit) as error:  # whatever another package's code raises
            reason = located(error, self.owns) or printable(f"{type(error).__name__}: {error}")
            raise WsurgeryError(f"{self} cannot be imported: {reason}") from error

    def owns(self, frame: FrameType) -> bool:
        """Whether a frame of a traceback is of its package."""
        return _package(frame.f_globals.get("__name__")) == _package(self.entry_point.module)

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


def fault(error: BaseException, command: str, model: str | None = None) -> str | None:
    """Say in one line what went wrong in the code of somebody else: of a plug-in, or of the network that `--model` names.

    Args:
        error: as it was caught. What it was computing with may stand in its attribute `tensor`.
        command: the subcommand that was running.
        model: what `--model` said.

    Returns:
        None if none of their lines was running.
    """
    said = f" on {on}" if (on := getattr(error, "tensor", None)) else ""
    if model is not None and ":" in model:
        where = model.rpartition(":")[0]
        folder = Path(where).resolve().parent if where.endswith(".py") else None

        def is_theirs(frame: FrameType) -> bool:
            if folder is None:
                return _package(frame.f_globals.get("__name__")) == _package(where)
            return Path(frame.f_code.co_filename).parent == folder

        if reason := located(error, is_theirs):
            return f"the network of --model {printable(model)} failed: {reason}"
    if not any(map(_is_named, _GROUPS)):
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    theirs = [each for group in _GROUPS for each in plug_ins(group).values() if any(map(each.owns, frames))]

    def is_another(plug_in: PlugIn) -> bool:  # of the same package
        called = {frame.f_code.co_name for frame in frames if plug_in.owns(frame)}
        return plug_in.name != command and plug_in.entry_point.attr not in called

    theirs.sort(key=is_another)
    return f"{theirs[0]} failed{said}: {located(error, theirs[0].owns)}" if theirs else None


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


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
