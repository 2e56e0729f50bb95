"""`wsurgery digest`."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Input, Json, command
from wsurgery.errors import UsageError, printable


@command
def digest(
    source: Input = None,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="SHA-256 of the file's bytes, as the Hugging Face hub shows it.")
    ] = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="One line for each tensor, by name: digest, dtype, shape, name.")
    ] = False,
    json: Json = False,
) -> None:
    """Print a hash (BLAKE3) of the content: names, dtypes, shapes and bytes. Order, metadata and shards do not matter.

    Example: wsurgery digest resnet50.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.digest import content_digest, file_sha256, tensor_digests

    if sha256:
        if tensors:
            raise UsageError("--sha256 is of the whole file, --tensors of each tensor: choose one")
        if source in (None, "-") or not Path(str(source)).is_file():
            raise UsageError("--sha256 is of a file's bytes: name one file (or use sha256sum on a stream)")
        of_file = file_sha256(Path(str(source)))
        typer.echo(json_module.dumps({"sha256": of_file}) if json else of_file)
        return
    with open_checkpoint(source) as checkpoint:
        infos, digests = checkpoint.tensors, tensor_digests(checkpoint)
    content = content_digest(infos, digests)
    if json:
        rows = [
            {"name": name, "dtype": infos[name].dtype, "shape": list(infos[name].shape), "blake3": digests[name]}
            for name in sorted(infos)
        ]
        typer.echo(json_module.dumps({"blake3": content, "tensors": rows}))
    elif tensors:
        for name in sorted(infos):
            shape = ",".join(map(str, infos[name].shape))
            typer.echo(f"{digests[name]}  {infos[name].dtype} [{shape}]  {printable(name)}")
    else:
        typer.echo(content)
