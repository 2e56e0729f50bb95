"""The option of the commands that decode images."""

from typing import Annotated

import typer

SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that are missing or cannot be read, and count them.")
]
