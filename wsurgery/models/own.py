"""Networks of other people: what `--model` names, and the way from there to a callable.

Only a command line, or Python code, can say it. What a checkpoint's metadata says of it is shown, and never imported.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn

from wsurgery.entry_points import find, plug_ins
from wsurgery.errors import UsageError, WsurgeryError, located, printable

GROUP = "wsurgery.models"

# `FILE.py:CALLABLE`, `package.module:CALLABLE`, the name of an entry point of the group `wsurgery.models`, or the callable.
Model = str | Callable[..., nn.Module]


@dataclass(frozen=True)
class OwnModel:
    """A callable that makes a network.

    Attributes:
        name: of the callable.
        said: what a record says of it: `cifar_resnet.py:resnet20`, without the file's folder.
        make: the callable.
        folder: where the file that it is from can import what lies beside it; None for a module.
    """

    name: str
    said: str
    make: Callable[..., Any]
    folder: Path | None = None

    def takes(self, argument: str) -> bool:
        """Whether it has an argument of this name; `num_classes` may be among what it passes on."""
        parameters = _signature(self.make).parameters
        passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        return argument in parameters or (passes_on and argument == "num_classes")

    def build(self, arguments: Mapping[str, Any]) -> nn.Module:
        """Make the network.

        Raises:
            UsageError: the callable raises, or returns something else.
        """
        with beside(self.folder):
            try:
                network = self.make(**arguments)
            except WsurgeryError:  # whoever counts what is built
                raise
            except (Exception, SystemExit) as error:  # whatever another person's code raises
                reason = _reason(error, self.folder)
                if isinstance(error, TypeError):
                    reason += f"; it takes {printable(str(_signature(self.make)))}"
                given = printable(", ".join(f"{key}={value!r}" for key, value in arguments.items()), 300)
                raise UsageError(f"--model {printable(self.said)} cannot be built of ({given}): {reason}") from error
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise UsageError(f"--model {printable(self.said)} returned a {kind}: a torch.nn.Module is needed")
        return network


def find_model(model: Model) -> OwnModel:
    """Import what `--model` names.

    Raises:
        UsageError: there is none, or its module cannot be imported.
    """
    if not isinstance(model, str):
        made = model.func if isinstance(model, partial) else model
        name = getattr(made, "__qualname__", type(made).__name__)
        return OwnModel(name, f"{getattr(made, '__module__', '?')}:{name}", model)
    where, colon, name = model.rpartition(":")
    folder = None
    if not colon and not model.endswith(".py"):
        point = _entry_point(model)
        where, name, said, load = point.module, point.attr, model, partial(importlib.import_module, point.module)
    elif not name or not where or name.endswith(".py"):
        raise UsageError(f"--model {printable(model)}: write it as FILE.py:CALLABLE or package.module:CALLABLE")
    elif where.endswith(".py"):
        file = Path(where).resolve()
        if not file.is_file():
            raise UsageError(f"--model {printable(model)}: there is no file {printable(where)}")
        modified = file.stat()
        folder, said = file.parent, f"{file.name}:{name}"
        load = partial(_import_file, file, modified.st_mtime_ns, modified.st_size)
    else:
        said, load = model, partial(importlib.import_module, where)
    with beside(folder):
        try:
            found = load()
        except (Exception, SystemExit) as error:  # whatever another person's code raises
            raise UsageError(f"--model {printable(model)} cannot be imported: {_reason(error, folder)}") from error
    make: Any = found
    for part in name.split("."):
        make = getattr(make, part, None)
    if isinstance(make, nn.Module) or not callable(make):
        names = [key for key, value in vars(found).items() if _is_of(value, found.__name__)]
        have = f"; it has {', '.join(names)}" if names else ""
        kind = "is no callable in" if make is None else f"is a {type(make).__name__}, not what makes a network, in"
        raise UsageError(f"--model {printable(model)}: {printable(name)} {kind} {printable(where)}{have}")
    return OwnModel(name, said, make, folder)


@contextmanager
def beside(folder: Path | None) -> Iterator[None]:
    """Let the modules of a folder be imported, as Python does with a script's."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _entry_point(name: str) -> EntryPoint:
    if found := find(GROUP, name):
        return found.entry_point
    known = ", ".join(plug_ins(GROUP)) or "none"
    raise UsageError(
        f"--model {printable(name)}: no installed package has such an entry point of {GROUP} (there are: {known}); "
        "for a file write FILE.py:CALLABLE"
    )


@cache
def _import_file(file: Path, modified: int, size: int) -> Any:
    """Import a file; once, as long as it is not changed."""
    name = f"wsurgery_model_{file.stem}"
    spec = spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, and what pickles, look there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_of(value: Any, module: str) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module


def _signature(make: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(make)
    except (TypeError, ValueError):  # of a callable that is written in C
        return inspect.Signature()


def _reason(error: BaseException, folder: Path | None) -> str:
    """Say an error in one line, with the file and line that raised it: of the user's own, the innermost."""

    def is_own(frame: FrameType) -> bool:
        return Path(frame.f_code.co_filename).parent == folder

    def is_not_ours(frame: FrameType) -> bool:
        return frame.f_code.co_filename != __file__ and "importlib" not in frame.f_code.co_filename

    return located(error, is_own) or located(error, is_not_ours) or printable(f"{type(error).__name__}: {error}")
