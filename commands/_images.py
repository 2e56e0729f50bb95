"""The option of the commands that decode images, and what they say of it."""

from collections.abc import Sequence
from typing import Annotated

import typer

from wsurgery.commands._shared import say

SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out images that are missing or cannot be read, and count them.")
]


def say_skipped(split: str, reasons: Sequence[str]) -> None:
    """Count the images of a split that were left out, and say what was wrong with the first."""
    if reasons:
        say(f"{split}: {len(reasons)} images left out, first: {reasons[0]}")
