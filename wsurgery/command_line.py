"""The command line: one subcommand for each module in `commands/`, and for each plug-in."""

import gc
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from wsurgery import __version__, ending, lazy_dynamo
from wsurgery.commands._edits import as_command
from wsurgery.errors import WsurgeryError, printable, redacted
from wsurgery.operations.declaration import Edit
from wsurgery.registry import command_modules, load_command, plug_ins

# Importing rich's Markdown takes longer than all the rest of --help.
_SETTINGS: dict[str, Any] = {"pretty_exceptions_enable": False, "rich_markup_mode": None}
_CONTEXT = {"help_option_names": ["-h", "--help"]}
# Of 62 characters at most, for a terminal of 80 columns; a command's own help says the rest.
_GROUPS: dict[str, dict[str, str]] = {
    "Surgery": {
        "adapt": "Other input channels or another image size.",
        "add-noise": "Add iid Gaussian noise.",
        "align": "Permute hidden units to bring a network close to another.",
        "average": "Average checkpoints of one architecture.",
        "cast": "Convert to another floating-point type.",
        "convert": "Turn a checkpoint as downloaded into clean safetensors.",
        "covariance": "Resample Gaussian, with the covariance of kernels or filters.",
        "drop": "Leave tensors out.",
        "fetch": "Fetch pretrained weights, by timm's name.",
        "freeze-spec": "Record which tensors `train` must leave alone.",
        "gabor": "Put Gabor filters in the first convolution.",
        "init": "Make a fresh random network.",
        "join": "Put checkpoints that share no tensor together in one.",
        "keep": "Leave out all but the selected tensors.",
        "lerp": "Interpolate linearly between two checkpoints.",
        "low-rank": "The nearest matrices of lower rank.",
        "meanvar": "Resample each tensor from a Gaussian of its mean and variance.",
        "merge": "Merge fine-tuned checkpoints: TIES, DARE, model stock.",
        "new-head": "A fresh classifier for another number of classes.",
        "permute": "Permute hidden units; the function stays.",
        "prune": "Set a share of the weights to zero.",
        "push": "Copy a checkpoint to s3:// or hf://; remove broken uploads.",
        "recalibrate-bn": "Set batch norm's statistics to those of images.",
        "rename": "Rename tensors by a pattern.",
        "replay": "Run a checkpoint's history again: does every byte agree?",
        "reset-bn": "Set batch norm to the identity.",
        "sample": "Draw each tensor's elements iid from its own values.",
        "scale": "Multiply tensors by a number.",
        "set-metadata": "Set and delete entries of the metadata.",
        "shuffle": "Permute each tensor at random.",
        "spectrum": "Keep singular values, with random singular vectors.",
        "transfuse": "Keep the weights up to a block; replace the rest.",
    },
    "Look": {
        "diff": "How far the tensors moved from A to B.",
        "digest": "A hash of the content, whatever the order or the shards.",
        "log": "The history, as the shell pipeline that made it.",
        "show": "Blocks, roles and shapes, what is frozen, the origin.",
        "view": "One page: blocks as areas, histograms, the history drawn.",
    },
    "Data and training": {
        "cca": "Compare two networks layer by layer: CCA, CKA, Procrustes.",
        "compare": "Compare two runs or arms: steps to a threshold, AUC.",
        "data": "Make, cache and describe data sets.",
        "eval": "AUC for each label and their mean, with intervals.",
        "path": "AUC and loss along the line between two, and the barrier.",
        "recipe": "List the experiments that come along, and copy one.",
        "train": "Train a checkpoint as a multi-label classifier.",
    },
    "Figures": {
        "curves": "Convergence: AUC or loss against steps, a line an arm.",
        "filters": "The filters of the first convolution, as pictures.",
        "histogram": "How weights are distributed.",
        "report": "An experiment on one page of HTML, or in Markdown.",
    },
}


class _ByName(Mapping[str, Any]):
    """The subcommands by name: each is imported, and its options made, when it is looked up, and not for the others."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter([*command_modules(), *plug_ins()])

    def __len__(self) -> int:
        return len(command_modules()) + len(plug_ins())

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            if name not in command_modules() and name not in plug_ins():
                raise KeyError(name)
            self._made[name] = _made(name)
        return self._made[name]


def _made(name: str) -> Any:
    try:
        entry = load_command(name) if name in command_modules() else plug_ins()[name].load()
    except WsurgeryError as error:
        typer.echo(f"wsurgery: {error}", err=True)
        raise typer.Exit(error.exit_status) from None
    short = next((lines[name] for lines in _GROUPS.values() if name in lines), None)
    app = typer.Typer(add_completion=False, context_settings=_CONTEXT, **_SETTINGS)
    if isinstance(entry, typer.Typer):
        app.add_typer(entry, name=name, short_help=short)
        return typer.main.get_group(app).commands[name]
    try:
        app.command(name, short_help=short)(as_command(entry) if isinstance(entry, Edit) else entry)
        return typer.main.get_command(app)
    except Exception as error:  # whatever typer says of an annotation
        if name in command_modules():
            raise
        typer.echo(
            f"wsurgery: {plug_ins()[name]} has parameters of which no options can be made: {printable(str(error))}",
            err=True,
        )
        raise typer.Exit(1) from None


class _Commands(TyperGroup):
    """The command line; a plug-in is imported when it is run, and not for the help of the others."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _ByName()  # type: ignore[assignment]

    def invoke(self, ctx: Any) -> Any:
        """Run a subcommand; what the parser says of a word does not repeat a secret that is in it."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if hasattr(error, "format_message"):
                error.message = redacted(error.message)  # type: ignore[attr-defined]
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the help's list of subcommands, in groups."""
        listed = {name for lines in _GROUPS.values() for name in lines}
        others = {  # an edit is a file: it needs no line above
            name: self.commands[name].get_short_help_str(60) for name in command_modules() if name not in listed
        }
        groups = {**_GROUPS, "Surgery": dict(sorted({**_GROUPS["Surgery"], **others}.items()))}
        for name, plug_in in plug_ins().items():
            groups.setdefault(f"Plug-ins of {plug_in.package} {plug_in.version}", {})[name] = plug_in.sentence
        longest = max(len(name) for lines in groups.values() for name in lines)
        for title, lines in groups.items():
            if lines:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(longest), line) for name, line in lines.items()])


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wsurgery {__version__}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Make the command line. A module `reset_bn` of `commands/` holds an edit or a function `reset_bn`, typed as `reset-bn`."""
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

    return app


def run() -> None:
    """Run the command line of this process."""
    gc.set_threshold(
        100_000
    )  # as often as by default, the search for cycles among a file's tensors takes a quarter of the time
    if sys.stdout is None:
        sys.exit("wsurgery: standard output is closed: send it somewhere, if only to /dev/null")
    lazy_dynamo.put_off()
    try:
        build_app()()
    finally:
        ending.end_if_told()
