"""`wsurgery view`: a checkpoint as a page."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import BlockMap, Force, Input, Part, Threads, command
from wsurgery.errors import UsageError, printable


@command
def view(
    output: Annotated[Path, typer.Option("-o", metavar="FILE.html", help="The page.")],
    source: Input = None,
    against: Annotated[
        str | None, typer.Option(metavar="B", help="Another checkpoint: show how far each tensor is from it, too.")
    ] = None,
    force: Force = False,
    threads: Threads = None,
    block_map: BlockMap = None,
) -> None:
    """Write a checkpoint as one HTML page: its blocks as areas of parameters, what is in them, and its history, drawn.

    The page needs nothing else, runs no script and asks no server for anything. A click, or Enter, opens a block: each tensor
    has a histogram, a matrix its singular values, the first convolution its filters.

    Example: wsurgery view init.safetensors -o init.html

    Example: wsurgery view run/init.safetensors --against run -o moved.html
    """
    from wsurgery.checkpoint import AtomicFile, open_checkpoint
    from wsurgery.checkpoint.provenance import History
    from wsurgery.checkpoint.sink import write_all
    from wsurgery.checkpoint.spool import seekable
    from wsurgery.figures.checkpoint_page import render_view
    from wsurgery.operations.changes import changes

    if output.suffix not in (".html", ".htm"):
        raise UsageError(f"-o {printable(str(output))}: a view is an .html page")
    if against == "-" and source in (None, "-"):
        raise UsageError("only one of IN and --against can be standard input: name the other")
    selection = Part(block_map=block_map).selection
    with AtomicFile(output, force=force) as stream, ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source))
        changed, label = None, ""
        if against is not None:
            opened = [checkpoint, stack.enter_context(open_checkpoint(against))]
            checkpoint, other = (stack.enter_context(seekable(each)) for each in opened)
            selection = selection.with_map(History.of(checkpoint).blocks or History.of(other).blocks)
            changed, label = changes(checkpoint, other, selection, threads=threads), other.name or other.label
        page = render_view(checkpoint, selection=selection, against=label, changed=changed, threads=threads)
        write_all(stream, page.encode())
