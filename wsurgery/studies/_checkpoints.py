"""The checkpoints that a study takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from wsurgery.checkpoint import Checkpoint, open_checkpoint
from wsurgery.checkpoint.digest import content_digest, tensor_digests
from wsurgery.checkpoint.provenance import History, describe_input
from wsurgery.ending import temporary_folder
from wsurgery.models import load, models_for
from wsurgery.models.own import Model
from wsurgery.pipeline import Pipeline
from wsurgery.pipeline import open as open_pipeline
from wsurgery.studies._given import Source, label


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
