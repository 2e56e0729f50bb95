"""`wsurgery report`: an experiment, or several, as one page and one table."""

from pathlib import Path
from typing import Annotated

import typer

from wsurgery.commands._shared import Force, Json, command, say, show_table
from wsurgery.errors import UsageError, printable, printable_json


@command
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="An experiment: runs/ARM/SEED, cca/NAME.json, cca/NAME/SEED.json. Several: NET, NET@N. Or Markdown "
            "files, RESULTS.md, that come on one page as they are.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", metavar="FILE", help="The page, .html, or .md.")],
    arms: Annotated[str | None, typer.Option(metavar="A,...", help="These arms, in this order; or none.")] = None,
    cca: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="These comparisons, ARM-to-init among them; or none.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,...", help="These seeds; default: all that are there.")
    ] = None,
    threshold: Annotated[
        str,
        typer.Option(
            metavar="T,...", help="Count steps to this validation macro AUC; or to three: tested at the middle one."
        ),
    ] = "0.9",
    plateau: Annotated[
        str | None,
        typer.Option(
            metavar="ARM", help="Thresholds such as 90% are shares of where its runs end; no claim is about it."
        ),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="ARM", help="Hold the others against it. Default: random, else the first.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Transfusion",
    paper: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="What the paper found, to stand at the top of the page.")
    ] = None,
    claims: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Judge these claims, one a line: see docs/claims.md.")
    ] = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Write a report: one self-contained HTML page, or Markdown by suffix, and its tables on standard output.

    Several folders are networks, the deepest first, each with its section, and claims across them at the end.

    Example: wsurgery report demo/ -o report.html --threshold 0.8,0.85,0.9

    Example: wsurgery report demo/ -o report.html --threshold 80%,90%,95% --plateau random-twin --claims claims.txt

    Example: wsurgery report out/resnet50 out/cbr_small --arms random,meanvar --cca none -o meanvar.html

    Example: wsurgery report meanvar/RESULTS.md gabor/RESULTS.md -o results.html
    """
    from wsurgery.checkpoint import AtomicFile
    from wsurgery.checkpoint.sink import write_all
    from wsurgery.experiments.claim_lines import read_claims
    from wsurgery.experiments.networks import json_of, overlooked, read_experiments
    from wsurgery.figures.page import render_page, render_results
    from wsurgery.figures.tables import markdown, terminal_tables

    if output.suffix not in (".html", ".htm", ".md"):
        raise UsageError(
            f"-o {printable(str(output))}: a report is an .html page, which a browser prints as PDF, or .md"
        )
    if any(path.suffix == ".md" for path in folders):
        if (
            json
            or arms
            or cca
            or seeds
            or baseline
            or plateau
            or claims
            or paper
            or output.suffix == ".md"
            or any(path.suffix != ".md" for path in folders)
        ):
            raise UsageError(
                "Markdown files only come together on an .html page: no folder beside them, no --arms, --cca, --seeds, "
                "--baseline, --claims, --paper or --json"
            )
        with AtomicFile(output, force=force) as stream:
            write_all(stream, render_results(folders, title=title).encode())
        return
    try:
        about = paper.read_text(encoding="utf-8") if paper else ""
    except UnicodeDecodeError:
        raise UsageError(f"--paper {printable(str(paper))} is not UTF-8 text") from None
    lines = read_claims(claims) if claims else []
    wanted = _names(seeds)
    found = read_experiments(
        folders,
        threshold=threshold,
        plateau=plateau,
        arms=_names(arms),
        comparisons=_names(cca),
        seeds=wanted,
        baseline=baseline,
        claims=lines,
    )
    for line in overlooked(found, wanted, lines):
        say(line)
    page = (markdown if output.suffix == ".md" else render_page)(found, title=title, paper=about)
    with AtomicFile(output, force=force) as stream:
        write_all(stream, page.encode())
    if json:
        typer.echo(printable_json(json_of(found)))
    else:
        for table in terminal_tables(found):
            show_table(table)


def _names(words: str | None) -> list[str] | None:
    """Read a list of names: None for all, [] for `none`."""
    if words is None:
        return None
    return [] if words == "none" else list(dict.fromkeys(map(str.strip, words.split(","))))
