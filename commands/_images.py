"""The options of the commands that decode images."""

from pathlib import Path
from typing import Annotated

import typer

SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that are missing or cannot be read, and count them.")
]
BadList = Annotated[
    Path | None,
    typer.Option(metavar="FILE.csv", help="--skip-bad, and list each of them there with what is wrong with it."),
]
