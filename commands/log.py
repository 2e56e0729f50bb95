"""`wsurgery log`."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Input, Json, command, say
from wsurgery.errors import UsageError, printable


@command
def log(
    source: Input = None,
    json: Json = False,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="As a model card in Markdown: the pipeline, what it read, with digests, and the licence if known.",
        ),
    ] = False,
) -> None:
    """Print the history of a checkpoint as the shell pipeline that made it.

    A checkpoint that is written to hf:// gets its card by itself, unless the model there has a README.md.

    Example: wsurgery log init.safetensors

    Example: wsurgery log --card init.safetensors > README.md
    """
    from wsurgery.checkpoint import open_checkpoint
    from wsurgery.checkpoint.provenance import History, as_pipeline, packages

    if json and card:
        raise UsageError("--json and --card are two ways of printing it: name one")
    with open_checkpoint(source) as checkpoint:
        if card:
            from wsurgery.checkpoint.card import model_card

            typer.echo(model_card(checkpoint, Path(checkpoint.label).stem or "model"), nl=False)
            return
        records = History.of(checkpoint).log
        if json:
            typer.echo(json_module.dumps(list(records), indent=2))
        elif records:
            for name, package in packages(records).items():
                typer.echo(f"# {printable(name)} is of {printable(package)}")
            typer.echo(as_pipeline(records))
        else:
            say(f"{checkpoint.label} has no history: wsurgery did not make it")
