"""The checkpoints that a study takes, and what it says to people."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from wsurgery.checkpoint import Checkpoint, open_checkpoint
from wsurgery.checkpoint.digest import content_digest, tensor_digests
from wsurgery.checkpoint.provenance import History, describe_input
from wsurgery.checkpoint.remote import without_secrets
from wsurgery.ending import temporary_folder
from wsurgery.errors import UsageError, printable
from wsurgery.models import load, models_for
from wsurgery.models.own import Model
from wsurgery.pipeline import Pipeline
from wsurgery.pipeline import open as open_pipeline

Source = str | Path | Pipeline | nn.Module


Say = Callable[[str], None]


def warn(line: str) -> None:
    """Issue what there is to be said as a warning, on behalf of who called a function here."""
    depth, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("wsurgery."):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(line, stacklevel=depth)


def unedited(source: Source) -> Source:
    """Return the file of a pipeline that has no edits, and everything else as it is."""
    return source._checkpoint.path or source if isinstance(source, Pipeline) else source


@contextmanager
def made(source: Pipeline | nn.Module) -> Iterator[Checkpoint]:
    """Write a pipeline's result, or a network, to a temporary file, and open that as if it were piped in."""
    with temporary_folder("wsurgery-") as folder:
        file = folder / "init.safetensors"
        open_pipeline(source).write(file)
        with Checkpoint(file.open("rb", buffering=0), None, label=label(source)) as checkpoint:
            yield checkpoint


def network_of(source: Source, arch: str | None, model: Model | None) -> nn.Module:
    """Return the network of a checkpoint, or a copy of a network."""
    if isinstance(source, (str, Path)):
        return load(source, arch, model=model)
    return deepcopy(source) if isinstance(source, nn.Module) else open_pipeline(source).load(arch, model=model)


def models_of(sources: Sequence[Source], model: Model | None) -> list[Model | None]:
    """Say for which of several checkpoints a model is, as `models_for` does for files."""
    if all(isinstance(source, (str, Path)) for source in sources):
        return list(models_for([str(source) for source in sources], model))
    return [None if isinstance(source, nn.Module) else model for source in sources]


def label(source: Source) -> str:
    """What messages call a checkpoint."""
    if isinstance(source, (str, Path)):
        return without_secrets(str(source))
    return "the pipeline" if isinstance(source, Pipeline) else f"the {type(source).__name__}"


def describe(source: Source) -> dict[str, Any]:
    """Describe a checkpoint for a record; a network by its type and what `wsurgery digest` says of its weights."""
    if isinstance(source, (str, Path)):
        with open_checkpoint(source) as checkpoint:
            return _known(describe_input(checkpoint, History(), flows=False))
    with open_pipeline(source)._opened() as planned:
        if isinstance(source, Pipeline):
            return _known(describe_input(planned, History(), flows=False))
        return {"name": type(source).__name__, "digest": content_digest(planned.tensors, tensor_digests(planned))}


def _known(described: dict[str, Any]) -> dict[str, Any]:
    """Wait for digests."""
    return {key: value.result() if hasattr(value, "result") else value for key, value in described.items()}


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
            raise UsageError(f"--{name} {value}: at least {least}")
