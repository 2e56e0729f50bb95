"""The report's page: one HTML file with everything in it, and no script."""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from markdown_it import MarkdownIt

from wsurgery.errors import printable
from wsurgery.experiments.cca import PRETRAINED_PAIR, RANDOM_PAIR, Comparison, differences, layer_names
from wsurgery.experiments.claims import NOT_CORRECTED, Claim, NotJudged, not_judged_in_words
from wsurgery.experiments.networks import Networks, gap_rows
from wsurgery.experiments.report import Report
from wsurgery.experiments.runs import Run
from wsurgery.experiments.summary import in_words
from wsurgery.figures.curves import band_caption, draw_curves
from wsurgery.figures.filter_grid import FilterGrid, filter_grid, png, read_first_filters
from wsurgery.figures.gather import results_html
from wsurgery.figures.html import html_page, text
from wsurgery.figures.similarities import draw_comparisons
from wsurgery.figures.style import INK, PAGE_WIDTH, inline_svg, line_styles, marker_points
from wsurgery.figures.tables import arms_note, notes_of, speed_rows
from wsurgery.figures.titles import networks_of_runs
from wsurgery.statistics.permutation import NOT_SHOWN, SHOWN
from wsurgery.statistics.spread import Spread, spread

_FILTER_ARMS = ("random", "transfer", "meanvar", "gabor")
# A cell that begins with a number and is no sentence, of our tables or of Markdown's: it stays on one line.
_NUMBER = re.compile(r"<td( style=\"[^\"]*\")?>(?=(?:(?:&[gl]t;|[≤≥~]) ?)?[+−-]?\.?\d[^<]{0,60}<)")
_MANY = 128  # weights beside each other, more than can be told apart in half a column
_SIMILARITY_NOTE = (
    "In the figures of similarity, bands: smallest to largest seed, or ± one standard deviation from 4 seeds on; whiskers, "
    "for one seed: ± one standard error, of images and draws. Dotted in the same colour: the floor, what the same draws "
    "give for unrelated images, and the ceiling, what they give for a network against itself. Read a value by its place "
    "between the two, for both depend on the layer's width and on how it was sampled, and not on training."
)


def render_results(results: Sequence[Path], *, title: str) -> str:
    """Return a page of Markdown files, such as recipes' RESULTS.md: UTF-8 HTML with styles and pictures inside.

    Raises:
        WsurgeryError: a file or a picture in it cannot be read.
    """
    return _page(title, results_html(results))


def render_page(report: Report | Networks, *, title: str, paper: str = "") -> str:
    """Return the page: UTF-8 HTML with its styles and figures inside, the same for the same runs.

    Args:
        report: one experiment, or several.
        title: of the page.
        paper: Markdown that stands first, under "The paper". HTML in it is shown as text, images as their descriptions.

    Raises:
        WsurgeryError: a checkpoint of a run is broken.
    """
    parts = ["<h2>The paper</h2>" + _paper(paper)] if paper else []
    reports = report.reports if isinstance(report, Networks) else {"": report}
    if isinstance(report, Networks):
        parts += [_introduction(reports)]
        for name, one in report.reports.items():
            parts += [f"<h2 class='network'>{text(name)}</h2>", _sections(one, "h3")]
        rows = [[text(cell) for cell in row] for row in gap_rows(report.reports)]
        listed = _claim_list(report.claims, report.not_judged)
        if rows or listed:
            parts += ["<h2>Across networks</h2>", _table(rows[0], rows[1:]) if rows else "", listed]
        claims, compared = report.all_claims, any(one.comparisons for one in report.reports.values())
    else:
        parts += [_introduction(reports), _sections(report, "h2")]
        claims, compared = list(report.claims), bool(report.comparisons)
    notes = [_SIMILARITY_NOTE] * compared + notes_of(reports.values(), claims)
    ran = "".join(_what_ran(name, one) for name, one in reports.items())
    if notes:
        parts += ["<h2>How to read this</h2>", *(f"<p>{text(note)}</p>" for note in notes)]
    if ran:
        parts.append(f"<details><summary>What was run</summary>{ran}</details>")
    return _page(title, "\n".join(parts))


def _page(title: str, body: str) -> str:
    return html_page(title, _NUMBER.sub(r"<td class='number'\1>", body), "report.css")


def _paper(markdown: str) -> str:
    renderer = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    html: str = renderer.render("".join(printable(line, 10_000) + "\n" for line in markdown.splitlines()))
    return html.replace("<table>", "<div class='scroll'><table>").replace("</table>", "</table></div>")


def _introduction(reports: Mapping[str, Report]) -> str:
    runs = [run for report in reports.values() for run in _runs(report)]
    here = "Here are no runs, but comparisons of networks alone."
    if runs:
        arms = len({run.arm for run in runs})
        here = (
            f"Here are {len(runs)} runs in {arms} arms, of up to {max(run.last_step for run in runs)} steps: a network is "
            "trained from differently edited copies of a pretrained checkpoint, and each kind of edit is an arm."
        )
    return (
        "<p>An experiment after Raghu, Zhang, Kleinberg and Bengio, <cite>Transfusion: Understanding Transfer Learning for "
        f"Medical Imaging</cite> (NeurIPS 2019). {here} The numbers speak for these networks and this data alone.</p>"
    )


def _sections(report: Report, level: str) -> str:
    """Build the sections of one experiment, under headings of `level`."""
    sections = {}
    if report.arms:
        sections["Accuracy and speed"] = _arm_table(report)
        sections["Convergence"] = _curves(report)
        sections["First-layer filters, before and after training"] = _filters(report)
    if report.to_init or not report.selected:
        sections["How far each layer moved"] = _moved(report)
    if report.pairs or not report.selected:
        sections["Are two networks alike?"] = _pairs(report)
    if listed := _claim_list(report.claims, report.not_judged):
        sections["What is and is not shown here"] = listed
    return "\n".join(f"<{level}>{heading}</{level}>\n{content}" for heading, content in sections.items())


def _arm_table(report: Report) -> str:
    styles = line_styles(report.arms)
    headings = ["arm", "seeds", "test macro AUC", "validation AUC at end", "mean along training"]
    rows = []
    for arm in report.arms.values():
        name = f"{_swatch(arm.name, styles[arm.name])}{text(arm.name)}<small>{text(arm.origin)}</small>"
        seeds = ", ".join(run.seed for run in arm.runs)
        accuracy = (arm.test_spread, arm.valid_spread, spread(report.areas(arm)))
        rows.append([name, text(seeds), *map(_two_lines, accuracy)])
    head, *steps = speed_rows(report)
    page = _table(headings, rows)
    page += _table(head, [[text(name), text(by_seed), *map(_on_two_lines, ratios)] for name, by_seed, *ratios in steps])
    page += f"<p class='note'>{text(note)}</p>" if (note := arms_note(report)) else ""
    if all(arm.test_spread is None for arm in report.arms.values()):
        page += _missing("test AUC", "wsurgery eval RUN --data SPEC --split test --json > RUN/eval.json")
    return page


def _curves(report: Report) -> str:
    runs = _runs(report)
    figure = draw_curves(runs, thresholds=report.thresholds.aucs, width=PAGE_WIDTH)
    dashed = "the thresholds" if report.thresholds.others else "the threshold"
    caption = f"Macro AUC on the validation split against optimiser steps: {band_caption(runs)}. Dashed: {dashed}."
    return _figure(inline_svg(figure, text(caption)), caption)


def _filters(report: Report) -> str:
    names = [name for name in _FILTER_ARMS if name in report.arms] or list(report.arms)[:4]
    sections = []
    for name in names:
        usable = (run.folder for run in report.arms[name].runs if all(path.is_file() for path in _ends(run.folder)))
        folder = next(usable, None)
        if folder is not None:
            panels = zip(("before", "after"), _ends(folder), strict=True)
            grids = [(when, filter_grid(read_first_filters(path))) for when, path in panels]
            images = "".join(_filter_image(f"{name} {when}", grid) for when, grid in grids)
            many = " class='many'" if max(grid.pixels.shape[1] for _, grid in grids) > _MANY else ""
            sections.append(
                f"<section{many}><h3>{text(name)}, seed {text(folder.name)}</h3><div>{images}</div></section>"
            )
    if not sections:
        return _missing("checkpoints", "wsurgery train INIT --data SPEC -o RUN")
    note = "Mid-grey is zero; each picture has one scale for all of its filters, written below it."
    return f"<div class='filters'>{''.join(sections)}</div><p class='note'>{note}</p>"


def _ends(folder: Path) -> tuple[Path, Path]:
    return folder / "init.safetensors", folder / "best.safetensors"


def _filter_image(label: str, grid: FilterGrid) -> str:
    data = base64.b64encode(png(grid.pixels)).decode()
    caption = text(f"{label.rpartition(' ')[2]}: black to white is ±{grid.scale:.3g}")
    alt = text(f"First-layer filters, {label}")
    return f"<figure><img src='data:image/png;base64,{data}' alt='{alt}'><figcaption>{caption}</figcaption></figure>"


def _moved(report: Report) -> str:
    if not report.to_init:
        command = "wsurgery cca RUN --with-init --data SPEC -o RUN/cca-init.json"
        return _missing("comparisons with the initialisation", command)
    what = "Similarity of each layer after training to the same layer as training began; the higher, the less it moved."
    return _comparisons(report.to_init, what, "arm", _network(report))


def _pairs(report: Report) -> str:
    if not report.pairs:
        command = "wsurgery cca RUN_A RUN_B --data SPEC -o FOLDER/cca/NAME/SEED.json"
        return _missing(
            "comparisons of two networks", f"{command}` for the NAMEs `{PRETRAINED_PAIR}` and `{RANDOM_PAIR}"
        )
    page = _comparisons(report.pairs, "Similarity of two networks, layer by layer.", "networks", _network(report))
    if PRETRAINED_PAIR in report.pairs and RANDOM_PAIR in report.pairs:
        rows = [
            [text(x.layer), f"{x.difference:+.3f}" + (f" ± {x.se:.3f}" if x.se is not None else "")]
            for x in differences(report.pairs[PRETRAINED_PAIR], report.pairs[RANDOM_PAIR])
        ]
        page += "<p>The pretrained pair less the random pair, as in the paper's Table 5, where the difference in the "
        page += "lowest layer is .218 for ResNet-50 and .102 for CBR-Small:</p>"
        page += _table(["layer", "difference ± standard error"], rows)
    return page


def _network(report: Report) -> str:
    return networks_of_runs(run.folder for run in _runs(report))


def _comparisons(shown: Mapping[str, Comparison], caption: str, heading: str, network: str) -> str:
    drawn = draw_comparisons(shown, title=network, width=PAGE_WIDTH)
    figure = _figure(inline_svg(drawn, text(caption)), caption)
    layers = layer_names({name: comparison.results for name, comparison in shown.items()})
    rows = []
    for name, comparison in shown.items():
        floors, ceilings, places = (comparison.means(field) for field in ("floor", "ceiling", "normalised"))
        seeds = len(comparison.by_seed)
        rows.append([f"{text(name)}<small class='short'>{seeds} seed{'s' if seeds > 1 else ''}</small>"])
        for layer in layers:
            cell = _two_lines(comparison.spread(layer))
            if layer in floors and layer in ceilings:
                cell += f"<small>[{floors[layer]:.2f}, {ceilings[layer]:.2f}]</small>"
            if layer in places:
                cell += f"<small>at {places[layer]:.0%}</small>"
            rows[-1].append(cell)
    note = "Below each value: its spread over the seeds, [floor, ceiling], and where it stands between those."
    return f"{figure}{_table([heading, *layers], rows)}<p class='note'>{note}</p>"


def _what_ran(name: str, report: Report) -> str:
    """Write what was run of one experiment: facts, then the commands of each arm's first run."""
    ran = report.ran
    if not ran.facts and not ran.commands:
        return ""
    rows = [[text(heading), "<br>".join(map(text, said))] for heading, said in ran.facts.items()]
    page = f"<h3>{text(name)}</h3>" if name else ""
    page += _table(["", "as the runs say it"], rows) if rows else ""
    for arm, commands in ran.commands.items():
        seed = report.arms[arm].runs[0].seed
        page += f"<p>{text(arm)}{f', seed {text(seed)}' if seed else ''}:</p><pre>{_lines(commands)}</pre>"
    return page


def _lines(words: str) -> str:
    return "\n".join(map(text, words.splitlines()))


def _claim_list(claims: Sequence[Claim], others: Sequence[NotJudged]) -> str:
    items = []
    for claim in claims:
        kind = (
            "yes"
            if claim.verdict.startswith(SHOWN) and NOT_CORRECTED not in claim.verdict
            else "no"
            if claim.verdict.startswith(NOT_SHOWN) or claim.verdict.endswith("not suggested")
            else "maybe"
        )
        verdict = f"<em class='{kind}'>{text(claim.verdict)}</em>"
        items.append(f"<li><strong>{text(claim.claim)}</strong>{text(claim.evidence)}{verdict}</li>")
    page = f"<ol class='claims'>{''.join(items)}</ol>" if items else ""
    return page + (f"<p class='note'>{text(said)}</p>" if (said := not_judged_in_words(others)) else "")


def _runs(report: Report) -> list[Run]:
    return [run for arm in report.arms.values() for run in arm.runs]


def _two_lines(summary: Spread | None) -> str:
    mean, _, detail = in_words(summary).partition(" ")
    return f"{mean}<small>{detail}</small>" if detail else mean


def _on_two_lines(ratio: str) -> str:
    """Put the interval of a ratio below it."""
    value, bracket, interval = text(ratio).partition(" (")
    return f"{value}<small>({interval}</small>" if bracket else value


def _swatch(arm: str, style: Mapping[str, str]) -> str:
    """Draw an arm's line and marker as its figures do."""
    colour = "currentColor" if style["color"] == INK else style["color"]
    dashes = {"-": "none", "--": "6 3", ":": "2 3", "-.": "6 3 2 3"}[style["linestyle"]]
    return (
        f"<svg class='swatch' viewBox='-16 -5 32 10' fill='{colour}' stroke='{colour}' role='img' aria-label='{text(arm)}'>"
        f"<path d='M-15 0H15' stroke-width='2' stroke-dasharray='{dashes}'/>"
        f"<polygon points='{marker_points(style['marker'], 8)}' stroke='none'/></svg>"
    )


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a table that scrolls in its own box; `rows` are HTML, `headings` are text."""
    head = "".join(f"<th scope='col'>{text(heading)}</th>" for heading in headings)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body += f"<tr><th scope='row'>{first}</th>{cells}</tr>"
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _missing(what: str, command: str) -> str:
    parts = command.split("`")
    shown = "".join(f"<code>{escape(part)}</code>" if i % 2 == 0 else escape(part) for i, part in enumerate(parts))
    return f"<p class='missing'>There are no {what}. Make them with {shown}.</p>"
