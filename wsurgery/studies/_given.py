"""What a study is given, and what it says to people."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Union

from wsurgery.errors import UsageError, printable

if TYPE_CHECKING:
    from torch import nn

    from wsurgery.pipeline import Pipeline

Source = Union[str, Path, "Pipeline", "nn.Module"]
Say = Callable[[str], None]


def warn(line: str) -> None:
    """Issue what there is to be said as a warning, on behalf of who called a function here."""
    depth, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("wsurgery."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(line, stacklevel=depth)


def label(source: Source) -> str:
    """What messages call a checkpoint."""
    if isinstance(source, (str, Path)):
        from wsurgery.checkpoint.remote import without_secrets

        return without_secrets(str(source))
    from wsurgery.pipeline import Pipeline

    return "the pipeline" if isinstance(source, Pipeline) else f"the {type(source).__name__}"


def path_of(source: Source | None, option: str) -> str:
    if not isinstance(source, (str, Path)):
        raise UsageError(f"{option} is for files: give a path")
    return str(source)


def require_one_of(option: str, value: str | None, choices: Iterable[str | None]) -> None:
    if value not in choices:
        there = ", ".join(choice for choice in choices if choice is not None)
        raise UsageError(f"{option} {printable(str(value))}: one of {there}")


def require_at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} {value}: at least {least}")
