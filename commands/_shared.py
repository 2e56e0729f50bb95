"""What subcommands share: options declared once, and one way to end in an error."""

import ast
import inspect
import os
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsurgery.anatomy import MAX_BLOCK_MAP, Selection, parse_block_map
from wsurgery.commands._completion import offered
from wsurgery.ending import has_the_word, is_ending, unwound
from wsurgery.errors import UsageError, WsurgeryError, printable, redacted
from wsurgery.progress import be_quiet, is_quiet
from wsurgery.untrusted import read_regular

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from wsurgery.operations.planning import Planned

_LONGEST = 10_000  # characters of a message

Input = Annotated[
    str | None,
    typer.Argument(
        metavar="[IN]", help="A safetensors file, a folder of shards or of a run, a URL, or - (default): stdin."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=10_000, help="Threads to use. Default: all cores. Never changes the result.")
]
NetworkThreads = Annotated[
    int | None,
    typer.Option(min=1, max=10_000, help="Threads to use. Default: all cores. Another number may round otherwise."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of every random draw.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing output.")]
Device = Annotated[str, typer.Option(help="auto (cuda or cpu), cpu, cuda, cuda:N or mps.")]
Data = Annotated[str, typer.Option("--data", metavar="SPEC", help="A manifest, or scheme:argument?key=value.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FILE.py:CALLABLE",
        help="A network that timm does not know: FILE.py:CALLABLE or package.module:CALLABLE, called with num_classes, or the "
        "name of an entry point of wsurgery.models.",
    ),
]

BlockMap = Annotated[
    str | None,
    typer.Option(metavar="FILE", help='The blocks in your own words: JSON {"stem": ["conv1.*", ...], ...}, in order.'),
]


@dataclass(frozen=True)
class Part:
    """The selectors: the part of the checkpoint to act on."""

    upto: Annotated[
        str | None, typer.Option(metavar="BLOCK", help="This block, or 50% of the numbered ones, and all before it.")
    ] = None
    blocks: Annotated[str | None, typer.Option(metavar="B,...", help="These blocks; of ^block2, all but it.")] = None
    role: Annotated[str | None, typer.Option(metavar="R,...", help="Roles: conv, linear, norm, batch_norm, ...")] = None
    only: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Tensors of these names; repeatable.")] = None
    except_: Annotated[
        list[str] | None, typer.Option("--except", metavar="GLOB", help="Not these tensors; repeatable.")
    ] = None
    block_map: BlockMap = None

    @cached_property
    def _own_blocks(self) -> dict[str, list[str]] | None:
        if self.block_map is None:
            return None
        inline = self.block_map.startswith("{")  # as a record has it
        return parse_block_map(self.block_map if inline else read_regular(self.block_map, MAX_BLOCK_MAP))

    @property
    def selection(self) -> Selection:
        """The selection that the options ask for."""
        only, except_ = tuple(self.only or ()), tuple(self.except_ or ())
        return Selection(self.upto, self.blocks, self.role, only, except_, self._own_blocks)


@dataclass(frozen=True)
class OfRun:
    """Which checkpoint of a run a folder stands for."""

    last: Annotated[bool, typer.Option("--last", help="Of a run's folder, the last checkpoint, not the best.")] = False
    init: Annotated[bool, typer.Option("--init", help="Of a run's folder, what it began from, not the best.")] = False

    @property
    def which(self) -> str:
        """The name of the checkpoint.

        Raises:
            UsageError: both were asked for.
        """
        from wsurgery.checkpoint.opening import which_of_run

        return which_of_run(last=self.last, init=self.init)

    def of(self, sources: Sequence[str]) -> list[str]:
        """Return checkpoints with the folders of runs replaced by a file in them.

        Raises:
            UsageError: a checkpoint of a run is asked for, and no run is named.
            WsurgeryError: a run does not have it yet.
        """
        from wsurgery.checkpoint.opening import is_run, of_run

        runs = ["://" not in source and is_run(Path(source)) for source in sources]
        if self.which != "best" and not any(runs):
            raise UsageError(f"--{self.which} is for the folder of a run, and none is named")
        return [
            str(of_run(Path(source), self.which)) if run else source for source, run in zip(sources, runs, strict=True)
        ]


@dataclass(frozen=True)
class Output:
    """Where a surgery command writes, and how."""

    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Write this file, a folder of shards (DIR/), or an s3:// address. Default: standard output, or on a "
            "terminal a file named after the edit.",
        ),
    ] = None
    force: Force = False
    threads: Threads = None

    @contextmanager
    def destination(self, default: str) -> Iterator[Path | None]:
        """Give the file to write, None for standard output.

        On a terminal without -o it is `default`, named after what was done (`resnet50.transfuse-block2.safetensors`), and
        the name is printed when it is written.
        """
        named = self.output is not None or not sys.stdout.isatty()
        yield (Path(self.output) if self.output is not None else None) if named else Path(default)
        if not named:
            say(default)


@dataclass(frozen=True)
class SurgeryOutput(Output):
    """An output that may be sharded, or only foretold."""

    shard_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="With -o DIR/: bytes a shard (5GB, 500MB). Default: the input's shards, or 5GB."
        ),
    ] = None
    group: Annotated[
        str | None,
        typer.Option(
            "--part", metavar="K/N", help="With -o DIR/, not where IN is: write the K-th of N groups of shards only."
        ),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and write nothing.")] = False

    no_digest: Annotated[
        bool,
        typer.Option("--no-digest", help="Do not record the digests of input files; replay then takes them on trust."),
    ] = False


_EXPORTS = (".pth", ".pt", ".bin", ".npz")


def write_surgery(planned: "Planned", output: SurgeryOutput, *, exports: bool = False) -> None:
    """Write a surgery command's result, and say what is to be said of it.

    Args:
        planned: the result.
        output: where to, and how.
        exports: whether the ending of a file's name may say another format.
    """
    from wsurgery.operations.rewrite import destination, rewrite

    for line in planned.says:
        say(line)
    with output.destination(f"{planned.name}.safetensors") as path:
        named = str(path) if output.output is None and path else output.output
        known = _EXPORTS if exports else ()
        target = destination(named, output.shard_size, output.group, like=planned.flows, exports=known)
        if isinstance(target, Path) and target.suffix in known:
            from wsurgery.foreign.export import export

            export(planned, target, force=output.force, threads=output.threads)
            say(f"a {target.suffix} has no place for the history and the architecture")
        else:
            for line in rewrite(planned, target, force=output.force, threads=output.threads):
                say(line)
    for line in planned.warnings():
        say(line)


def foretell(planned: "Planned") -> None:
    """Say what would change."""
    from wsurgery.checkpoint.spool import original

    edits, flows = planned.edits, planned.flows
    changed = [e for e in edits if e.compute or original(e.source) is not flows or e.tensor.name != e.origin.name]
    elements, total = (sum(edit.tensor.elements for edit in some) for some in (changed, edits))
    typer.echo(f"{len(changed)} of {len(edits)} tensors would change, {elements:,} of {total:,} elements:")
    for edit in changed:
        renamed = "" if edit.tensor.name == edit.origin.name else f" (was {printable(edit.origin.name)})"
        typer.echo(f"  {printable(edit.tensor.name)} {edit.tensor.dtype} {edit.tensor.shape}{renamed}")
    used = {edit.origin.name for edit in edits} | {edit.tensor.name for edit in edits}
    for name in (name for name in (flows.tensors if flows else ()) if name not in used):
        typer.echo(f"  {printable(name)} would go")


def say(message: str) -> None:
    """Print a message for people: on standard error, unless --quiet."""
    if not is_quiet():
        for line in message.split("\n"):
            typer.echo(printable(line, _LONGEST), err=True)


def key_value(word: str) -> tuple[str, Any]:
    """Read an argument of a network: `KEY=VALUE`, where VALUE is Python's or text.

    Raises:
        UsageError: it is written otherwise.
    """
    key, equals, value = word.partition("=")
    if not (equals and key.isidentifier()):
        raise UsageError(f"--arg {word}: write it as KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def table_console() -> "Console":
    """Return a console for tables on standard output; into a file or pipe they are as wide as they need."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 10_000, soft_wrap=True)


def show_table(table: "Table", *, expendable: Sequence[str] = ()) -> None:
    """Print a table on standard output, made to fit if that is a terminal, and say which columns had no room.

    Args:
        table: its columns at the left are words, the others numbers, which are never broken.
        expendable: headings of columns that may be left out for want of room, the first one first.
    """
    from wsurgery.commands._tables import fitted

    console = table_console()
    parts, left_out = fitted(table, console, expendable=expendable)
    for part in parts:
        console.print(part, soft_wrap=not sys.stdout.isatty())
    if left_out:
        say(f"no room on {console.width} columns for: {', '.join(left_out)}")


def _printable_column(cells: Sequence[str]) -> Sequence[str]:
    return cells if "".join(cells).isprintable() and max(map(len, cells)) <= 200 else list(map(printable, cells))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[str], expendable: Sequence[str] = ()
) -> None:
    """Print a table: made to fit a terminal, and into a file or pipe as wide as it needs.

    Args:
        columns: their names.
        rows: cells.
        left: the columns that stand at the left; the others do at the right.
        expendable: columns that a terminal may have no room for, the first one to go first.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    lines = [columns, *zip(*(_printable_column(cells) for cells in zip(*rows, strict=True)), strict=True)]
    if sys.stdout.isatty():
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in columns:
            table.add_column(name, justify="left" if name in left else "right", overflow="fold")
        for line in lines[1:]:
            table.add_row(*map(Text, line))
        show_table(table, expendable=expendable)
        return

    # By hand, column by column: rich takes a hundred times as long, and a file may have a million tensors.
    padded = []
    for name, *cells in zip(*lines, strict=True):
        column = [name, *cells]
        widths = list(map(len if "".join(column).isascii() else cell_len, column))
        spaces = [" " * n for n in range(max(widths) + 1)]
        gaps = [spaces[-1 - width] for width in widths]
        padded.append(list(map(add, column, gaps) if name in left else map(add, gaps, column)))
    sys.stdout.writelines(f"{'  '.join(line)}\n" for line in zip(*padded, strict=True))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make `function` a subcommand.

    A parameter whose type is a dataclass is replaced by one option for each of its fields, so that a group of options
    is declared once and arrives as one object. The shell completes what `_completion` knows. `--quiet` and `--debug` are
    added. An error that the user caused ends in one line on standard error and its exit status, and so do a library that
    is missing, if an extra brings it, and whatever a plug-in or a network of the user's raises; `--debug` shows the traceback.
    """
    # As they are written: get_type_hints of Python 3.10 changes what has the default None.
    hints: dict[str, Any] = inspect.get_annotations(function, eval_str=True)
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(hints[name]):
            groups[name] = hints[name]
            inner = typing.get_type_hints(hints[name], include_extras=True)
            for field in fields(hints[name]):
                default = inspect.Parameter.empty if field.default is MISSING else field.default
                flat.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=default,
                        annotation=offered(field.name, inner[field.name]),
                    )
                )
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=offered(name, hints[name])))
    for name, help_text in (("quiet", "Print nothing but errors."), ("debug", "Show the traceback of an error.")):
        annotation = Annotated[bool, typer.Option(f"--{name}", help=help_text)]
        flat.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation))

    module, name = function.__module__.rpartition(".")[2], function.__name__
    title = (name if name == module else f"{module} {name.removeprefix(module + '_')}").replace("_", "-")

    def run(**given: Any) -> None:
        be_quiet(given.pop("quiet"))
        debug = given.pop("debug")
        grouped = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in groups.items()
        }
        with unwound():
            try:
                function(**given, **grouped)
                sys.stdout.flush()
            except (Exception, KeyboardInterrupt, SystemExit) as error:
                said = None if debug else _one_line(error, title, given.get("model"))
                if said is None:
                    raise
                if not isinstance(error, KeyboardInterrupt) or has_the_word():
                    typer.echo(printable(redacted(f"wsurgery {title}: {said}"), _LONGEST), err=True)
                if isinstance(error, BrokenPipeError):
                    # Python flushes stdout again at exit.
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                interrupted = 130 if isinstance(error, KeyboardInterrupt) else 1  # as shells have it: 128 + SIGINT
                raise typer.Exit(getattr(error, "exit_status", interrupted)) from None

    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run


_STREAMS: dict[object, str] = {0: "standard input", 1: "standard output", 2: "standard error"}


def _one_line(error: BaseException, title: str, model: str | None) -> str | None:
    """Say what a user can cause; None of all else, which is a fault of this program."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, BrokenPipeError):
        return "standard output was closed by its reader before the end"
    if isinstance(error, OSError) and error.strerror:
        name = "input/output" if error.filename in (None, "") else error.filename
        return f"{_STREAMS.get(name) or printable(os.fsdecode(name), 1000)}: {error.strerror}"
    if isinstance(error, WsurgeryError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        from wsurgery.extras import remedy

        if said := remedy(error):
            return said
    if isinstance(error, SystemExit) and is_ending():
        return None
    from wsurgery.entry_points import fault

    if theirs := fault(error, title, model):
        return f"{theirs}; --debug shows the traceback"
    return str(error) if isinstance(error, OSError) else None
