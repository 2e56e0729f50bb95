"""`wsurgery log`."""

import json as json_module

import typer

from wsurgery.commands._shared import Input, Json, command, say


@command
def log(source: Input = None, json: Json = False) -> None:
    """Print the history of a checkpoint as the shell pipeline that made it.

    Example: wsurgery log init.safetensors
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, as_pipeline, packages
    from wsurgery.errors import printable

    with open_checkpoint(source) as checkpoint:
        records = History.of(checkpoint).log
        if json:
            typer.echo(json_module.dumps(list(records), indent=2))
        elif records:
            for name, package in packages(records).items():
                typer.echo(f"# {printable(name)} is of {printable(package)}")
            typer.echo(as_pipeline(records))
        else:
            say(f"{checkpoint.label} has no history: wsurgery did not make it")
