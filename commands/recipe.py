"""`wsurgery recipe`: the experiments that come with wsurgery, to be copied and changed."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Json, command, print_table, say
from wsurgery.errors import printable_json

recipe = typer.Typer(no_args_is_help=True, help="List the experiments that come with wsurgery, and copy one.")


@command
def recipe_list(json: Json = False) -> None:
    """List the recipes: experiments as Makefiles, each with a README.

    Example: wsurgery recipe list
    """
    from wsurgery.recipe import recipes

    found = recipes()
    if json:
        typer.echo(printable_json([{"name": each.name, "about": each.about} for each in found]))
    else:
        print_table(
            ("recipe", "what it asks"), [[each.name, each.about] for each in found], left=("recipe", "what it asks")
        )


@command
def recipe_copy(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="One that `wsurgery recipe list` names.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made if it is missing; has to be empty.")],
) -> None:
    """Copy a recipe with all that it needs: it runs where it lies, on any data, and with arms of your own.

    An arm is a line at the top of its Makefile; common.mk beside it says how.

    Run it with make -C FOLDER DATA=/data/my.csv SEEDS="1 2 3".

    Example: wsurgery recipe copy meanvar my-study/
    """
    from wsurgery.recipe import copy_recipe

    copy_recipe(name, folder)
    say(f"{folder}: make -C {folder} runs it; arms, data and settings: see the top of its Makefile and common.mk")


recipe.command("list")(recipe_list)
recipe.command("copy")(recipe_copy)
