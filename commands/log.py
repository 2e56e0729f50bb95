"""`wsurgery log`."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Force, Input, Json, command, say
from wsurgery.errors import UsageError, printable


@command
def log(
    source: Input = None,
    json: Json = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="As a drawing, SVG: files, commands, and what flowed where.")
    ] = False,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="As a model card, Markdown: the pipeline, its inputs and digests, a run's data and AUC, the licence if known.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Write the drawing (.svg) or the card (.md) to this file.")
    ] = None,
    force: Force = False,
) -> None:
    """Print the history of a checkpoint as the shell pipeline that made it, draw it, or write a model card of it.

    A checkpoint that is written to hf:// gets its card by itself, unless the model there has a README.md.

    Example: wsurgery log init.safetensors

    Example: wsurgery log init.safetensors --graph -o history.svg

    Example: wsurgery log init.safetensors --card -o README.md
    """
    from wsurgery.checkpoint import AtomicFile, open_checkpoint
    from wsurgery.checkpoint.provenance import History, as_pipeline, packages
    from wsurgery.checkpoint.sink import write_all

    if json + graph + card > 1:
        raise UsageError("--json, --graph and --card: choose one")
    if output is not None and output.suffix != (".svg" if graph else ".md" if card else None):
        raise UsageError(
            f"-o {printable(str(output))}: it is for --graph, which writes an .svg file, and --card, which writes an .md file"
        )
    with open_checkpoint(source) as checkpoint:
        records, name = History.of(checkpoint).log, checkpoint.name or checkpoint.label
        if graph or card:
            if graph:
                from wsurgery.figures.history_graph import history_svg

                text = history_svg(records, name, alone=True) + "\n"
            else:
                from wsurgery.checkpoint.card import model_card, title_of

                text = model_card(checkpoint, title_of(checkpoint))
            if output is None:
                typer.echo(text, nl=False)
                return
            with AtomicFile(output, force=force) as stream:
                write_all(stream, text.encode())
        elif json:
            typer.echo(json_module.dumps(list(records), indent=2))
        elif records:
            for command, package in packages(records).items():
                typer.echo(f"# {printable(command)} is of {printable(package)}")
            typer.echo(as_pipeline(records))
        else:
            say(f"{checkpoint.label} has no history: wsurgery did not make it")
