"""`wsurgery report`: an experiment as one page and one table."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Force, Json, command, table_console


@command
def report(
    folder: Annotated[Path, typer.Argument(help="An experiment: runs/ARM/SEED and, for pairs, cca/NAME.json.")],
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The page, .html, or .md.")],
    threshold: Annotated[float, typer.Option(help="Count steps to this validation macro AUC.")] = 0.9,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Transfusion, at toy scale",
    json: Json = False,
    force: Force = False,
) -> None:
    """Write an experiment's report: one self-contained HTML page, or Markdown by suffix, and its table on standard output.

    Example: wsurgery report demo/ -o report.html --threshold 0.85
    """
    from json import dumps

    from wsurgery.checkpoint import AtomicFile
    from wsurgery.checkpoint.writer import write_all
    from wsurgery.figures.page import render_page
    from wsurgery.figures.report import as_json, markdown, read_report, terminal_table

    found = read_report(folder, threshold=threshold)
    page = (markdown if output.suffix == ".md" else render_page)(found, title=title)
    with AtomicFile(output, force=force) as stream:
        write_all(stream, page.encode())
    if json:
        typer.echo(dumps(as_json(found), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        table_console().print(terminal_table(found))
