"""The `wsurgery` command: one subcommand for each module in `commands/`."""

import importlib
import pkgutil
import signal
from typing import NoReturn

import typer

from wsurgery import __version__, commands


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wsurgery {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Collect the subcommands: a module `reset_bn` holds a function `reset_bn`, typed as `reset-bn`."""
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # importing rich's Markdown takes longer than all the rest of --help
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def wsurgery(
        version: bool = typer.Option(
            False, "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        """Edit network weights with small commands joined by pipes, then train and compare.

        Surgery reads one safetensors checkpoint and writes one: from a file or standard input, to standard output or -o.
        """

    for module in pkgutil.iter_modules(commands.__path__):
        if not module.name.startswith("_"):
            entry = getattr(importlib.import_module(f"wsurgery.commands.{module.name}"), module.name)
            if isinstance(entry, typer.Typer):
                app.add_typer(entry, name=module.name.replace("_", "-"))
            else:
                app.command(module.name.replace("_", "-"))(entry)
    return app


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)  # unwinds, so that a half-written output is taken back


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _terminate)
    build_app()()


if __name__ == "__main__":
    main()
