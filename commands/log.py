"""`wsurgery log`."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Force, Input, Json, command, say
from wsurgery.errors import UsageError


@command
def log(
    source: Input = None,
    json: Json = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="Print a drawing of it, SVG: files, commands, and what flowed where.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", metavar="FILE.svg", help="Write the drawing to this file.")
    ] = None,
    force: Force = False,
) -> None:
    """Print the history of a checkpoint as the shell pipeline that made it, or draw it.

    Example: wsurgery log init.safetensors

    Example: wsurgery log init.safetensors --graph -o history.svg
    """
    from wsurgery.checkpoint import AtomicFile, open_checkpoint
    from wsurgery.checkpoint.provenance import History, as_pipeline, packages
    from wsurgery.checkpoint.writer import write_all
    from wsurgery.errors import printable

    if graph and json:
        raise UsageError("--graph and --json: choose one")
    if output is not None and not (graph and output.suffix == ".svg"):
        raise UsageError(f"-o {printable(str(output))}: it is for --graph, which writes an .svg file")
    with open_checkpoint(source) as checkpoint:
        records = History.of(checkpoint).log
        if graph:
            from wsurgery.figures.history_graph import history_svg

            drawing = history_svg(records, checkpoint.name or checkpoint.label, alone=True)
            if output is None:
                typer.echo(drawing)
                return
            with AtomicFile(output, force=force) as stream:
                write_all(stream, drawing.encode())
        elif json:
            typer.echo(json_module.dumps(list(records), indent=2))
        elif records:
            for name, package in packages(records).items():
                typer.echo(f"# {printable(name)} is of {printable(package)}")
            typer.echo(as_pipeline(records))
        else:
            say(f"{checkpoint.label} has no history: wsurgery did not make it")
