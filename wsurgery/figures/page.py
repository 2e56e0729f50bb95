"""The report's page: one HTML file with everything in it, and no script."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from string import Template

import numpy as np
from PIL import Image

from wsurgery.errors import printable
from wsurgery.figures.curves import Spread, band_caption, draw_curves
from wsurgery.figures.filters import FilterGrid, filter_grid, read_first_filters
from wsurgery.figures.report import SPREAD_NOTE, Report
from wsurgery.figures.runs import Run
from wsurgery.figures.similarities import Series, draw_similarities, layer_means, layer_names
from wsurgery.figures.style import INK, inline_svg, line_styles
from wsurgery.figures.summary import against_random, in_words
from wsurgery.figures.verdicts import (
    ENOUGH_SEEDS,
    NOT_SHOWN,
    PRETRAINED_PAIR,
    RANDOM_PAIR,
    SHOWN,
    pair_differences,
)

_FILTER_ARMS = ("random", "transfer", "meanvar", "gabor")
_TRACK_NOTE = (
    "The grey track behind each point runs from the floor, what the same draws give for unrelated images, to the "
    "ceiling, what they give for a network against itself: read a value by its place between the two, for both depend "
    "on the layer's width and on how it was sampled, and not on training."
)


def render_page(report: Report, *, title: str) -> str:
    """Return the page: UTF-8 HTML with its styles and figures inside, the same for the same runs.

    Raises:
        WsurgeryError: a checkpoint of a run is broken.
    """
    template = Template(files("wsurgery.figures").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=_text(title),
        introduction=_introduction(report),
        arms=_arm_table(report),
        curves=_curves(report),
        filters=_filters(report),
        moved=_moved(report),
        pairs=_pairs(report),
        claims=_claims(report),
    )


def _introduction(report: Report) -> str:
    runs = _runs(report)
    return (
        "<p>A toy-scale rerun of the experiment of Raghu, Zhang, Kleinberg and Bengio, <cite>Transfusion: "
        "Understanding Transfer Learning for Medical Imaging</cite> (NeurIPS 2019): one network is trained on one set "
        "of images from differently edited copies of a pretrained checkpoint, and each kind of edit is an arm. "
        f"Here are {len(runs)} runs in {len(report.arms)} arms, of up to {max(run.last_step for run in runs)} steps. "
        "The numbers speak for this toy alone and say nothing about medicine.</p>"
    )


def _arm_table(report: Report) -> str:
    styles = line_styles(report.arms)
    headings = ["arm", "seeds", "test macro AUC", "validation AUC at end"]
    headings += [f"steps to validation AUC {report.threshold:g}, by seed", "against random"]
    rows = []
    for arm in report.arms.values():
        name = f"{_swatch(styles[arm.name]['color'])}{_text(arm.name)}<small>{_text(arm.description)}</small>"
        seeds = ", ".join(run.seed for run in arm.runs)
        steps, ratio = arm.steps_in_words(), against_random(arm, report.arms)
        accuracy = [_two_lines(arm.test_spread), _two_lines(arm.valid_spread)]
        rows.append([name, _text(seeds), *accuracy, _text(steps), _text(ratio)])
    page = _table(headings, rows) + f"<p class='note'>{_text(SPREAD_NOTE)} Against random: ratio of the medians.</p>"
    if all(arm.test_spread is None for arm in report.arms.values()):
        page += _missing(
            "test AUC", "wsurgery eval RUN/last.safetensors --data SPEC --split test --json > RUN/eval.json"
        )
    return page


def _curves(report: Report) -> str:
    runs = _runs(report)
    figure = draw_curves(runs, threshold=report.threshold)
    caption = f"Macro AUC on the validation split against optimiser steps: {band_caption(runs)}. Dashed: the threshold."
    return _figure(inline_svg(figure, _text(caption)), caption)


def _filters(report: Report) -> str:
    names = [name for name in _FILTER_ARMS if name in report.arms] or list(report.arms)[:4]
    sections = []
    for name in names:
        usable = (run.folder for run in report.arms[name].runs if all(path.is_file() for path in _ends(run.folder)))
        folder = next(usable, None)
        if folder is not None:
            panels = zip(("before", "after"), _ends(folder), strict=True)
            images = "".join(_filter_image(f"{name} {when}", filter_grid(read_first_filters(p))) for when, p in panels)
            sections.append(f"<section><h3>{_text(name)}, seed {_text(folder.name)}</h3><div>{images}</div></section>")
    if not sections:
        return _missing("checkpoints", "wsurgery train INIT --data SPEC -o RUN")
    note = "Mid-grey is zero; each picture has one scale for all of its filters, written below it."
    return f"<div class='filters'>{''.join(sections)}</div><p class='note'>{note}</p>"


def _ends(folder: Path) -> tuple[Path, Path]:
    return folder / "init.safetensors", folder / "last.safetensors"


def _filter_image(label: str, grid: FilterGrid) -> str:
    buffer = io.BytesIO()
    Image.fromarray((grid.pixels * 255).round().astype(np.uint8)).save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = _text(f"{label.rpartition(' ')[2]}: black to white is ±{grid.scale:.3g}")
    alt = _text(f"First-layer filters, {label}")
    return f"<figure><img src='data:image/png;base64,{data}' alt='{alt}'><figcaption>{caption}</figcaption></figure>"


def _moved(report: Report) -> str:
    series = {arm.name: arm.init_scores for arm in report.arms.values() if arm.init_scores}
    if not series:
        command = "wsurgery cca RUN/init.safetensors RUN/last.safetensors --data SPEC -o RUN/cca-init.json"
        return _missing("comparisons with the initialisation", command)
    caption = (
        "Similarity of each layer after training to the same layer as training began, mean over the seeds; "
        "the higher, the less the layer moved. Whiskers: range of the seeds, or ± one standard error for one seed."
    )
    figure = _figure(inline_svg(draw_similarities(series), _text(caption)), caption)
    return f"{figure}<p>{_TRACK_NOTE}</p>{_similarity_table(series, 'arm')}"


def _pairs(report: Report) -> str:
    if not report.pairs:
        command = "wsurgery cca RUN_A/last.safetensors RUN_B/last.safetensors --data SPEC -o FOLDER/cca/NAME.json"
        return _missing(
            "comparisons of two networks", f"{command}` for the NAMEs `{PRETRAINED_PAIR}` and `{RANDOM_PAIR}"
        )
    series = {name: [scores] for name, scores in report.pairs.items()}
    caption = "Similarity of two networks after training, layer by layer. Whiskers: ± one standard error, of images and draws."
    page = _figure(inline_svg(draw_similarities(series), _text(caption)), caption)
    page += _similarity_table(series, "networks")
    if PRETRAINED_PAIR in report.pairs and RANDOM_PAIR in report.pairs:
        rows = [
            [_text(x.layer), f"{x.difference:+.3f}" + (f" ± {x.se:.3f}" if x.se is not None else "")]
            for x in pair_differences(report.pairs)
        ]
        page += "<p>The pretrained pair less the random pair, as in the paper's Table 5, where the difference in the "
        page += "lowest layer is .218 for ResNet-50 and .102 for CBR-Small:</p>"
        page += _table(["layer", "difference ± standard error"], rows)
    return page


def _similarity_table(series: Series, heading: str) -> str:
    rows = []
    for name, results in series.items():
        means = {field: layer_means(results, field) for field in ("value", "floor", "ceiling", "normalised")}
        rows.append([_text(name)])
        for layer in layer_names(series):
            value, low, high, place = (means[field].get(layer) for field in means)
            cell = "–" if value is None else f"{value:.3f}"
            if low is not None and high is not None:
                cell += f"<small>{low:.2f} to {high:.2f}</small>"
            if place is not None:
                cell += f"<small>at {place:.0%}</small>"
            rows[-1].append(cell)
    note = "Below each value: its floor and ceiling, and where it stands between them."
    return _table([heading, *layer_names(series)], rows) + f"<p class='note'>{note}</p>"


def _claims(report: Report) -> str:
    items = []
    for claim in report.claims:
        kind = {SHOWN: "yes", NOT_SHOWN: "no"}.get(claim.verdict, "maybe")
        verdict = f"<em class='{kind}'>{_text(claim.verdict)}</em>"
        items.append(f"<li><strong>{_text(claim.claim)}</strong>{_text(claim.evidence)}{verdict}</li>")
    seeds = fmean(len(arm.runs) for arm in report.arms.values())
    rule = (
        "The verdicts follow a fixed rule. Two sets of runs agree with a claim when their ranges do not overlap. "
        f"That counts as shown from {ENOUGH_SEEDS} seeds on, where ranges that overlap may still be suggestive, and as "
        f"suggestive with fewer; here are {seeds:.2g} an arm."
    )
    missing = [
        name for name in ("random", "transfer", "meanvar", "transfuse-block1", "gabor") if name not in report.arms
    ]
    absent = f"<p class='missing'>Not judged, for there are no runs of {', '.join(missing)}.</p>" if missing else ""
    return f"<p>{rule}</p><ol class='claims'>{''.join(items)}</ol>{absent}"


def _runs(report: Report) -> list[Run]:
    return [run for arm in report.arms.values() for run in arm.runs]


def _text(text: str) -> str:
    return escape(printable(text, 10_000))


def _two_lines(summary: Spread | None) -> str:
    mean, _, detail = in_words(summary).partition(" ")
    return f"{mean}<small>{detail}</small>"


def _swatch(colour: str) -> str:
    return f"<span class='swatch' style='background:{'currentColor' if colour == INK else colour}'></span>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Build a table that scrolls in its own box; `rows` are HTML, `headings` are text."""
    head = "".join(f"<th scope='col'>{_text(heading)}</th>" for heading in headings)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body += f"<tr><th scope='row'>{first}</th>{cells}</tr>"
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _missing(what: str, command: str) -> str:
    parts = command.split("`")
    shown = "".join(f"<code>{escape(part)}</code>" if i % 2 == 0 else escape(part) for i, part in enumerate(parts))
    return f"<p class='missing'>There are no {what}. Make them with {shown}.</p>"
