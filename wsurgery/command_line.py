"""The command line: one subcommand for each module in `commands/`, and for each plug-in."""

import gc
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from wsurgery import __version__, ending
from wsurgery.commands._edits import as_command
from wsurgery.errors import WsurgeryError, redacted
from wsurgery.operations.declaration import Edit
from wsurgery.registry import command_modules, plug_ins

# Importing rich's Markdown takes longer than all the rest of --help.
_SETTINGS: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}
_CONTEXT = {"help_option_names": ["-h", "--help"]}


class _Commands(TyperGroup):
    """The subcommands; a plug-in is imported when it is run, and not for the help of the others."""

    _own_only = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Name the subcommands."""
        return [*super().list_commands(ctx), *([] if self._own_only else plug_ins())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a subcommand."""
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in plug_ins():
            return found
        app = typer.Typer(**_SETTINGS, context_settings=_CONTEXT)
        try:
            app.command(cmd_name)(as_command(plug_ins()[cmd_name].load()))
        except WsurgeryError as error:
            typer.echo(f"wsurgery: {error}", err=True)
            raise typer.Exit(error.exit_status) from None
        return typer.main.get_command(app)

    def invoke(self, ctx: Any) -> Any:
        """Run a subcommand; what the parser says of a word does not repeat a secret that is in it."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message"):
                error.message = redacted(error.message)  # type: ignore[attr-defined]
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the help's list of subcommands."""
        self._own_only = True
        super().format_commands(ctx, formatter)
        self._own_only = False
        if plug_ins():
            with formatter.section("Plug-ins"):
                formatter.write_dl(
                    [(name, f"{plug_in.package} {plug_in.version}") for name, plug_in in plug_ins().items()]
                )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wsurgery {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Collect the subcommands: a module `reset_bn` holds an edit or a function `reset_bn`, typed as `reset-bn`."""
    app = typer.Typer(cls=_Commands, no_args_is_help=True, context_settings=_CONTEXT, **_SETTINGS)

    @app.callback()
    def wsurgery(
        version: bool = typer.Option(
            False, "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ) -> None:
        """Edit network weights with small commands joined by pipes, then train and compare.

        Surgery reads one safetensors checkpoint and writes one: from a file or standard input, to standard output or -o.
        """

    for name, entry in command_modules():
        if isinstance(entry, typer.Typer):
            app.add_typer(entry, name=name)
        else:
            app.command(name)(as_command(entry) if isinstance(entry, Edit) else entry)
    return app


def run() -> None:
    """Run the command line of this process."""
    gc.set_threshold(
        100_000
    )  # as often as by default, the search for cycles among a file's tensors takes a quarter of the time
    if sys.stdout is None:
        sys.exit("wsurgery: standard output is closed: send it somewhere, if only to /dev/null")
    try:
        build_app()()
    finally:
        ending.end_if_told()
