"""`wsurgery replay`."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import command, say


@command
def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint that wsurgery made.")],
    inputs: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Where files that it was made from are; repeatable. Default: beside FILE."),
    ] = None,
    remote: Annotated[
        bool, typer.Option("--remote", help="Read the URLs that its history names; without it, they are refused.")
    ] = False,
    timeout: Annotated[
        int, typer.Option(min=1, max=1_000_000, metavar="SECONDS", help="How long its commands may take.")
    ] = 600,
    room: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What it may write: 5GB. Default: ten times FILE, at least 1GB.")
    ] = None,
) -> None:
    """Run the history of a checkpoint again in a temporary folder, and say whether every byte agrees.

    Prints `identical`, or `different` with the first tensor that is not and exit status 1. The inputs' digests are
    checked first. A history with training is not run again; a trained input is taken as it is, if its digest is right.

    Example: wsurgery replay init.safetensors --inputs pretrained/
    """
    from wsurgery.operations.rewrite import parse_size
    from wsurgery.replay import replay as replay_history

    written = None if room is None else parse_size(room, "--room")
    difference = replay_history(file, inputs or [file.parent], remote=remote, say=say, timeout=timeout, room=written)
    if difference is not None:
        typer.echo(f"different: {difference}")
        raise typer.Exit(1)
    typer.echo("identical")
